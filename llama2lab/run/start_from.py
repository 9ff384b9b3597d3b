"""Starting from somebody's checkpoint instead of pretraining: the control tokens that it lacks, room for them, the
rates at which it learns, and what it must not forget.

**Learning rates.** The defaults of the recipe are for a model of a million parameters that the recipe itself trained. A
larger one that knows much is wrecked by them (docs/trials.md). So where a recipe starts from a checkpoint, every rate
that it does not set itself is

    the report's (sections 3.1, 3.2.2, 3.2.3) * sqrt(135 million / parameters that are trained), never less than the
    report's and never more than the recipe's default; the last norm's gain learns as fast as the matrices

which is the report's from 135 million parameters on, and 4e-4 for the SFT of a quarter of a million. What the report
gives no rate for takes that of its kind: rejection sampling that of SFT, PPO's critic that of the reward models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.model.chat import chat_template
from llama2lab.model.network import Llama
from llama2lab.model.own_template import own_template
from llama2lab.model.tokenizer import BOS, CONTROL_TOKENS, EOS, PAD, UNK, control_strings

# The report's learning rates, by the setting that they are for.
RATES = {
    "sft.optim": 2e-5,
    "rejection.optim": 2e-5,
    "helpfulness.optim": 1e-5,
    "safety.optim": 1e-5,
    "ppo.optim": 1e-6,
    "ppo.critic_optim": 1e-5,
}
MEASURED = 135e6  # parameters of the checkpoint that the rule was tried on
WORSE = 0.1  # share by which a stage may worsen held-out bits a byte before it is said


def learning_rate(report: float, parameters: int, default: float) -> float:
    """The rate where so many parameters of a checkpoint are trained: see the rule above."""
    return min(default, report * max(1.0, math.sqrt(MEASURED / parameters)))


def for_checkpoint(recipe: Any, parameters: int) -> Any:
    """A recipe on real text with the learning rates for so many trained parameters of a checkpoint."""
    for name, report in RATES.items():
        optim = setting(recipe, name)
        lr = learning_rate(report, parameters, optim.lr)
        recipe = _changed(recipe, name, dataclasses.replace(optim, lr=float(f"{lr:.2g}"), gain_lr=1.0))
    return _changed(recipe, "sft.format_lr", min(recipe.sft.format_lr, 10 * recipe.sft.optim.lr))


def hasty(recipe: Any, parameters: int, times: float = 4.0) -> list[str]:
    """What a recipe sets to much more than the rule gives: one line each."""
    rule = for_checkpoint(type(recipe)(), parameters)
    lines = []
    for name in [f"{optim}.{rate}" for optim in RATES for rate in ("lr", "gain_lr")]:
        ours, usual = setting(recipe, name), setting(rule, name)
        if ours > times * usual:
            of = f"where {parameters:,} parameters of a checkpoint are trained"
            lines.append(f"{name} is {ours:g}, {of} {usual:g} would be usual")
    return lines


def setting(recipe: Any, name: str) -> Any:
    """The setting of a dotted name."""
    for part in name.split("."):
        recipe = getattr(recipe, part)
    return recipe


def _changed(recipe: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return dataclasses.replace(recipe, **{first: _changed(getattr(recipe, first), rest, value) if rest else value})


def worsened(stage: str, name: str, optim: Optim, before: float, after: float) -> str:
    """What to say of a stage that reads held-out text so much worse than the model it began with; "" if it does not.
    `before` and `after` are bits a byte, `name` is the setting of its `optim`."""
    if after <= (1 + WORSE) * before:  # also False where `after` is no number
        return ""
    rate = "gain_lr" if optim.gain_lr > 1 else "lr"
    cure = f"lower {name}.{rate} (it is {getattr(optim, rate):g})"
    return (
        f"{stage} reads held-out text worse than what it was trained from: {after:.3f} bits a byte after "
        f"{before:.3f}, more than {WORSE:.0%}; {cure}"
    )


def find_checkpoint(name: str, folder: Path | None) -> str:
    """The folder or GGUF file `name` in the data folder if it is there, else `name` itself: a path or a hub name."""
    return str(folder / name) if folder and (folder / name).exists() else name


def with_control_tokens(tokenizer: Any) -> tuple[Any, list[str]]:
    """The tokenizer ready for chats, and the list of the tokens that it lacked. Known tokens keep their ids; new ones
    get new ids after the last.

    One with a chat template of its own keeps it: what ends an answer there ends every text, and padding is another
    token. One without gets Llama 2's format, with its eight control tokens."""
    before, own = tokenizer.get_vocab(), own_template(tokenizer)
    if own is None:
        named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
        wanted, more = list(CONTROL_TOKENS), {"extra_special_tokens": list(CONTROL_TOKENS[4:])}
    else:
        ends, more = (own.end, tokenizer.eos_token), {}
        pad = next((t for t in (tokenizer.pad_token, tokenizer.unk_token) if t in own.tokens and t not in ends), PAD)
        named = {"bos_token": tokenizer.bos_token or BOS, "eos_token": own.end, "pad_token": pad}
        wanted = list(named.values())
    lacked = [token for token in wanted if token not in before]
    tokenizer.add_special_tokens({**named, **more})
    new = {token: i for token, i in tokenizer.get_vocab().items() if token not in before}
    if sorted(new) != sorted(lacked) or not set(before.values()).isdisjoint(new.values()):  # a tokenizer with gaps
        raise LabError(
            f"start_from: the tokenizer cannot take the control tokens {', '.join(lacked)} with ids of "
            "their own; choose a checkpoint with an ordinary tokenizer.json"
        )
    if own is None:
        tokenizer.chat_template = chat_template(control_strings(tokenizer))
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # what is saved is what it began with
    return tokenizer, lacked


def with_room(model: Llama, before: Any, after: Any, seed: int) -> Llama:
    """The model with rows for the tokens that `after` has and `before`, the checkpoint's own tokenizer, has not. New
    beginnings and ends start as copies of the checkpoint's.

    A vocabulary is often padded to a round number: the rows beyond the tokenizer's ids mean nothing, and a new token
    does not start as one of them."""
    ids, known = after.get_vocab(), before.get_vocab()
    read, rows = max(known.values()) + 1, model.config.vocab_size
    if read > rows:
        raise LabError(
            f"start_from: the tokenizer has {read:,} tokens, the model has rows for {rows:,}; they do not "
            "belong together: give a folder with both as they were published"
        )
    own = {BOS: before.bos_token_id, EOS: before.eos_token_id}  # what the checkpoint begins and ends with
    new = {ids[token]: own.get(token) for token in ids.keys() - known.keys()}
    copies = {to: i for to, i in new.items() if i is not None}
    return grow_vocabulary(model, max(rows, *(i + 1 for i in new), 0), copies, seed, sorted(new), read)


@torch.no_grad()
def grow_vocabulary(
    model: Llama, vocab_size: int, copies: dict[int, int], seed: int, new: Sequence[int] = (), read: int | None = None
) -> Llama:
    """The model with rows for new tokens: those beyond the rows it has, and those of `new`. A row in `copies` (new id
    -> old id) starts as the old token's, the others as the mean of all old rows (of the first `read`, where the rest
    is padding) with a little noise: an untrained row far from the others would take or lose probability at once, which
    tells nothing about language."""
    old = model.config.vocab_size
    fresh = sorted({*new, *range(old, vocab_size)})
    if not fresh:
        return model
    with torch.device("meta"):
        grown = Llama(dataclasses.replace(model.config, vocab_size=max(old, vocab_size)))
    state = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name in ("embed.weight",) if model.config.tie_embeddings else ("embed.weight", "lm_head.weight"):
        rows = state[name][:read]
        noise = torch.randn(len(fresh), rows.shape[1], generator=generator)
        table = torch.zeros(grown.config.vocab_size, rows.shape[1], dtype=rows.dtype)
        table[:old] = state[name]
        table[fresh] = rows.mean(0) + 0.1 * rows.std(0) * noise
        for to, source in copies.items():
            table[to] = rows[source]
        state[name] = table
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["embed.weight"]
    grown.load_state_dict(state, assign=True)
    if model.config.tie_embeddings:
        grown.lm_head.weight = grown.embed.weight
    return grown
