"""Talk to a checkpoint: what `llama2lab chat` and `llama2lab generate` do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_as
from llama2lab.engine.stagefiles import check_sums, read_marker, stage_folder, stages_in_order
from llama2lab.model.chat import Message, decode_answer, encode_chat
from llama2lab.model.checkpoint import load_checkpoint
from llama2lab.model.config_json import CAUSAL
from llama2lab.model.generate import generate
from llama2lab.model.network import Llama
from llama2lab.model.own_template import own_template, template_fault
from llama2lab.model.tokenizer import CONTROL_TOKENS, encode_text


@dataclass
class _Config:
    """What config.json says of the kind of model."""

    architectures: list[str] | None = None


def talking_stages(run: Path) -> list[str]:
    """The finished stages that hold a language model, in the run's order: not the reward models, nor rows of data."""

    def talks(folder: Path) -> bool:
        config = folder / "config.json"
        cure = f"remove {folder} and run again"
        return config.exists() and CAUSAL in (read_as(_Config, config, cure).architectures or [])

    return [name for name in stages_in_order(run) if talks(run / name)]


def pick_stage(run: Path, stage: str | None) -> str:
    """`stage` if one can talk to it, else the most refined one there is; LabError that lists them."""
    read_marker(run)
    if stage is not None:
        stage_folder(run, stage)
    names = talking_stages(run)
    if not names:
        raise LabError(f"{run} has no model to talk to yet; go on with: llama2lab run --out {run}")
    if stage is None:
        # Controls such as rlhf-v1-random are there for comparison; nobody means them without saying so.
        main = [n for n in names if n in ("base", "sft", "gatt") or (n.startswith("rlhf-v") and n.count("-") == 1)]
        return (main or names)[-1]
    if stage not in names:
        raise LabError(f"{run / stage} holds no model to talk to; choose one with --stage: {', '.join(names)}")
    return stage


def is_checkpoint(path: Path) -> bool:
    """Whether the folder or file is one model and no run."""
    return path.is_file() or ((path / "config.json").exists() and not (path / "run.json").exists())


def assumed_format(tokenizer: Any) -> str:
    """What is assumed of a model whose tokenizer has no chat format; "" for one that has its own or Llama 2's."""
    if own_template(tokenizer) or all(token in tokenizer.get_vocab() for token in CONTROL_TOKENS[4:]):
        return ""
    fault = template_fault(tokenizer)
    marks = [token or "nothing" for token in (tokenizer.bos_token, tokenizer.eos_token)]
    return (
        "this checkpoint's tokenizer does not know [INST] as a token, so Llama 2's chat format is written as text, "
        f"between its own {marks[0]} and {marks[1]}{f', for {fault}' if fault else ''}. A model that was trained on "
        "another format answers worse for that: see also llama2lab generate"
    )


def load(checkpoint: str | Path) -> tuple[Llama, Any]:
    """Model and tokenizer; LabError if one is missing."""
    check_sums(Path(checkpoint))
    model, tokenizer = load_checkpoint(checkpoint)
    if tokenizer is None:
        raise LabError(f"{checkpoint} has no tokenizer; save the model together with its tokenizer")
    if own := own_template(tokenizer):
        tokenizer.eos_token = own.end  # what ends an answer ends writing
    return model.eval(), tokenizer


def write(
    model: Llama, tokenizer: Any, ids: list[int], temperature: float, max_new_tokens: int, seed: int
) -> list[int]:
    """The tokens that follow; in fp32, so that greedy text is the same on every machine."""
    eos = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # -1: none, so it never ends by itself
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    return generate(
        model, [ids], max_new_tokens, temperature=temperature, seed=seed, eos_id=eos, pad_id=pad, precision="fp32"
    )[0].tokens


def answer(
    model: Llama, tokenizer: Any, messages: list[Message], temperature: float, max_new_tokens: int, seed: int
) -> str:
    """The next answer of a conversation that ends with a user message."""
    ids, _ = encode_chat(tokenizer, messages, add_generation_prompt=True)
    return decode_answer(tokenizer, write(model, tokenizer, ids, temperature, max_new_tokens, seed))


def say(checkpoint: Path, messages: list[Message], temperature: float, max_new_tokens: int, seed: int) -> str:
    """One answer from a checkpoint folder."""
    if not messages[-1]["content"].strip():
        raise LabError("the prompt is empty; ask something, or leave it out for a conversation")
    model, tokenizer = load(checkpoint)
    note(assumed_format(tokenizer))
    return answer(model, tokenizer, messages, temperature, max_new_tokens, seed)


def complete(checkpoint: str, prompt: str, temperature: float, max_new_tokens: int, seed: int) -> str:
    """Prompt and continuation as one text."""
    model, tokenizer = load(checkpoint)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = start + (encode_text(tokenizer, prompt) if prompt else [])
    if not ids:
        raise LabError(f"{checkpoint}: its tokenizer has no start token; give a prompt")
    written = write(model, tokenizer, ids, temperature, max_new_tokens, seed)
    return tokenizer.decode(ids + written, skip_special_tokens=True)


def note(line: str) -> None:
    if line:
        print(f"note: {line}", file=sys.stderr)


def converse(run: Path, stage: str | None, temperature: float, max_new_tokens: int, seed: int) -> None:
    """A conversation in the terminal with a stage of a run, or without one with the checkpoint that `run` is. /stage
    NAME changes the model, /reset forgets, /quit ends."""
    model, tokenizer = load(run / stage if stage else run)
    messages: list[Message] = []
    if stage:
        print(
            f"stages: {', '.join(talking_stages(run))}\ntalking to {stage}; /stage NAME, /reset, /quit", file=sys.stderr
        )
    else:
        note(assumed_format(tokenizer))
        print(f"talking to {run}; /reset, /quit", file=sys.stderr)
    while True:
        print("you> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if not text:
            continue
        try:
            if text == "/reset":
                messages = []
                print("forgotten; ask anew", file=sys.stderr)
            elif text.split()[0] == "/stage" and stage:
                stage = pick_stage(run, text.removeprefix("/stage").strip())
                model, tokenizer = load(run / stage)
                messages = []
                print(f"talking to {stage}", file=sys.stderr)
            elif text.startswith("/"):
                print(f"there are: {'/stage NAME, ' if stage else ''}/reset, /quit", file=sys.stderr)
            else:
                asked = [*messages, {"role": "user", "content": text}]
                said = answer(model, tokenizer, asked, temperature, max_new_tokens, seed + len(messages))
                messages = [*asked, {"role": "assistant", "content": said}]
                print(said, flush=True)
        except LabError as e:  # a mistake ends the turn, not the conversation
            print(f"error: {e}" + (" (or /reset)" if messages else ""), file=sys.stderr)
