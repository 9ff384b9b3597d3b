"""Prompts of the town, split by content, and the keys to their true answers."""

from llama2lab.world.items import SKILLS, SPLITS, Instruction, Key, Message, Prompt

__all__ = ["SKILLS", "SPLITS", "Instruction", "Key", "Message", "Prompt"]
