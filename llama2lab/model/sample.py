"""Answers to conversations: the chat format, then sampling."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from llama2lab.engine.bar import bar
from llama2lab.engine.distributed import shared
from llama2lab.model.chat import decode_answer, encode_chats
from llama2lab.model.generate import Reading, generate
from llama2lab.model.network import Llama


def sample_answers(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[dict]],
    *,
    k: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    precision: str = "fp32",
    what: str = "sampling",
    readings: list[Reading] | None = None,
) -> list[list[str]]:
    """`k` answers to each conversation (its last message is a user's), as texts. `readings` as in `generate.generate`,
    for dialogues turn by turn."""
    encoded = encode_chats(tokenizer, [list(m) for m in conversations], add_generation_prompt=True)
    prompts = [ids for ids, _ in encoded for _ in range(k)]
    with bar(len(shared(prompts)), what, "answer") as progress:
        generations = generate(
            model,
            prompts,
            max_new_tokens,
            temperature=temperature,
            seed=seed,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            precision=precision,
            progress=progress.update,
            readings=readings,
        )
    texts = [decode_answer(tokenizer, g.tokens) for g in generations]
    return [texts[i * k : (i + 1) * k] for i in range(len(conversations))]
