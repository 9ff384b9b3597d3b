"""`llama2lab bench`: how fast the lab is on this machine, beside transformers' Llama and TRL's trainers where these can
do the same, on the same weights and texts. Here: what is printed, pretraining and generation; bench_tuning.py has the
rest."""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2lab.engine.device import Machine, describe_machine, peak_memory_mb, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import fit
from llama2lab.engine.parallel import limited_to, workers
from llama2lab.model.checkpoint import save_model
from llama2lab.model.fused import token_nll
from llama2lab.model.generate import generate, precision_for
from llama2lab.model.network import SIZES, Llama, ModelConfig
from llama2lab.run import bench_tuning
from llama2lab.run.presets import PRESETS
from llama2lab.run.turns import (
    DTYPES,
    OURS,
    compared,
    offline,
    seconds_of,
    seconds_of_loop,
    share_of_ceiling,
    take_turns,
)
from llama2lab.stages.pretrain import training_flops_per_token

SECTIONS = ("training", "generation", "sft", "reward", "ppo", "workers")
MODELS = {"mini": SIZES["mini"], "larger": ModelConfig(2048, 192, 5, 6, 2, 512, max_seq_len=1024)}
PEER = "transformers"
ROWS, SEQ = 32, 256  # of a training batch
STEPS = 2  # of pretraining in a turn
OPTIM = PRESETS["mini"].pretrain.optim
REPEATS = 5
BATCHES = (1, 64, 256)  # rows that are generated together
NEW_TOKENS = 48


def run_bench(
    json_path: str | Path | None = None, repeats: int = REPEATS, sections: Sequence[str] = SECTIONS
) -> dict[str, Any]:
    """Measure, print a table, and write it as JSON if asked. Returns {"machine", "precision", "training", "generation",
    "sft", "reward", "ppo", "workers", "peak_memory_mb"}: lists of rows, empty for a section that was not asked for,
    "workers" also where there are at most two.

    A row has its `model`, `ours` and the peer's figure (`transformers`, `trl`) in work a second, medians over turns,
    `ratio`, how many times as fast as the peer ours is (see turns.Turns), and the `precision` that both computed in:
    the one that the lab picks on this machine for such work. Figure and ratio of a peer that is not installed are None.
    `share` is the part of the machine's ceiling for matrix products in this precision that training uses, by
    `pretrain.training_flops_per_token`. A row of "workers" has their number and the `speedup` over one.

    LabError for an unknown section, or if the JSON cannot be written.
    """
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown or not sections:
        raise LabError(f"unknown section {', '.join(unknown) or repr('')}; choose of {','.join(SECTIONS)}")
    machine = this_machine()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "precision": machine.precision,
        **{section: [] for section in SECTIONS},
    }
    with offline():
        for name, config in MODELS.items():
            _bench_model(name, config, machine, repeats, sections, result)
    result["peak_memory_mb"] = round(peak_memory_mb())
    print(f"\npeak memory {result['peak_memory_mb']:,} MB (ours and peers together)")
    keep_json(json_path, result)
    return result


def keep_json(path: str | Path | None, result: dict[str, Any]) -> None:
    """Write a benchmark's result, where a file is given; LabError if it cannot."""
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(result, indent=1))
    except OSError as e:
        raise LabError(f"cannot write {path}: {e.strerror}; give another file") from e


def _bench_model(
    name: str, config: ModelConfig, machine: Machine, repeats: int, sections: Sequence[str], result: dict[str, Any]
) -> None:
    """The rows of one model, printed and added to `result`."""
    ours, theirs = pair(config, machine.device)
    count = sum(p.numel() for p in ours.parameters())
    print(f"\n{name}: {count:,} parameters, {machine.device}; this machine's precision is {machine.precision}")
    name = f"{name} ({count / 1e6:.1f}M)"
    few = max(2, repeats - 2)  # of what takes long

    def add(section: str, what: str, row: dict[str, Any], unit: str, peer: str) -> None:
        row = {"model": name, **row}
        result[section].append(row)
        print(line(what, row, unit, peer))

    if "training" in sections:
        add("training", f"training {ROWS} x {SEQ}", train_row(ours, theirs, machine, repeats), "tokens/s", PEER)
    if "generation" in sections:
        for batch in BATCHES:
            row = {"batch": batch, **generate_row(ours, theirs, batch, machine, few)}
            add("generation", f"generation {batch:>3} rows", row, "tokens/s", PEER)
    if {"sft", "reward", "ppo"} & set(sections):
        texts, trl = bench_tuning.town_texts(config.vocab_size), bench_tuning.PEER
        if "sft" in sections:
            add("sft", "SFT", bench_tuning.sft_row(ours, theirs, texts, machine, few), "tokens/s", trl)
        if "reward" in sections:
            add("reward", "reward model", bench_tuning.reward_row(ours, texts, machine, few), "pairs/s", trl)
        if "ppo" in sections:
            add("ppo", "PPO", bench_tuning.ppo_row(ours, texts, machine, few), "answers/s", "")
    if "workers" in sections and workers(machine.device) > 2:
        for row in worker_rows(ours, machine, few):
            add("workers", f"training, workers: {row['workers']}", row, "tokens/s", "")


def line(what: str, row: dict[str, Any], unit: str, peer: str) -> str:
    """A row as it is printed."""
    parts = [f"  {what:<20} ours {row[OURS]:8,.0f}"]
    if not peer:
        parts.append(unit)
    elif row[peer] is None:
        parts.append(f"{unit}   no peer installed: pip install 'llama2lab[peers]'")
    else:
        parts.append(f"  {peer} {row[peer]:8,.0f} {unit}   ratio {row['ratio']:.2f}")
    if "speedup" in row:
        parts.append(f"  {row['speedup']:.2f} times one worker's")
    parts.append(f"  {row['precision']}")
    if "share" in row:
        parts.append(f"  share of the ceiling {row['share']:.0%}")
    return " ".join(parts)


def pair(config: ModelConfig, device: torch.device) -> tuple[Llama, nn.Module]:
    """Our model and transformers' (SDPA attention), with the same weights."""
    ours = Llama(config)
    theirs = peer_of(ours)
    return ours.to(device), theirs.to(device)


def peer_of(ours: Llama) -> nn.Module:
    """transformers' model (SDPA attention) with the weights of ours, on the CPU."""
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "m", ours)
        theirs: nn.Module = LlamaForCausalLM.from_pretrained(
            Path(folder) / "m", attn_implementation="sdpa", trust_remote_code=False, local_files_only=True
        )
    return theirs


@dataclass(frozen=True)
class Work:
    """What is trained in a turn."""

    rows: int
    seq: int
    steps: int

    def batch(self, config: ModelConfig, device: torch.device) -> Tensor:
        """Random tokens, (rows, seq + 1)."""
        shape, generator = (self.rows, self.seq + 1), torch.Generator().manual_seed(0)
        return torch.randint(8, config.vocab_size, shape, generator=generator).to(device)


def _seconds_of_ours(ours: Llama, machine: Machine, work: Work | None = None) -> float:
    return seconds_of_loop(training_of_ours(ours, machine, work or Work(ROWS, SEQ, STEPS)), machine.device)


def training_of_ours(ours: Llama, machine: Machine, work: Work, compiled: bool = False) -> Callable[[], object]:
    """Some steps of a copy, to be called: `loop.fit`, with the loss as pretraining computes it."""
    model, tokens = copy.deepcopy(ours), work.batch(ours.config, machine.device)
    hidden = torch.compile(model.hidden) if compiled else model.hidden

    def loss_of(rows: Sequence[int]) -> tuple[Tensor, float, dict[str, float]]:
        states = hidden(tokens[rows, :-1])  # (rows, seq, dim)
        return token_nll(states.flatten(0, 1), model.lm_head.weight, tokens[rows, 1:].flatten()).mean(), len(rows), {}

    return lambda: fit(model, lambda step: list(range(work.rows)), loss_of, work.steps, OPTIM, machine)


def _seconds_of_theirs(theirs: nn.Module, config: ModelConfig, machine: Machine, work: Work) -> float:
    """Of some steps of a copy: forward, loss, backward, clipping, AdamW."""
    model, tokens = copy.deepcopy(theirs).train(), work.batch(config, machine.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=OPTIM.lr, fused=True)

    def steps() -> None:
        for _ in range(work.steps):
            with machine.autocast():
                logits = model(tokens[:, :-1], use_cache=False).logits  # (rows, seq, vocab)
            F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)
            optimizer.step()
            optimizer.zero_grad()

    return seconds_of(steps, machine.device)


def train_row(
    ours: Llama, theirs: nn.Module, machine: Machine, repeats: int, work: Work | None = None
) -> dict[str, Any]:
    """Tokens a second of pretraining, each row of the batch one document. Both begin with the same weights in each
    turn, and their optimisers' state is made in its first step."""
    work = work or Work(ROWS, SEQ, STEPS)
    config, tokens = ours.config, work.steps * work.rows * work.seq
    turns = take_turns(
        {
            OURS: lambda: _seconds_of_ours(ours, machine, work),
            PEER: lambda: _seconds_of_theirs(theirs, config, machine, work),
        },
        repeats,
    )
    share = share_of_ceiling(tokens * training_flops_per_token(config, work.seq), turns.of(OURS), machine)
    return {**compared(tokens, turns, PEER, machine.precision), "share": share}


def worker_rows(ours: Llama, machine: Machine, repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of pretraining by 1, 2, 4, ... workers, up to as many as the lab takes on this machine."""
    most = workers(machine.device)
    numbers = [n for n in (2**k for k in range(most.bit_length())) if n < most] + [most]

    def train(n: int) -> float:
        with limited_to(n):
            return _seconds_of_ours(ours, machine)

    turns = take_turns({str(n): lambda n=n: train(n) for n in numbers}, repeats)  # type: ignore[misc]
    return [
        {
            "workers": n,
            OURS: STEPS * ROWS * SEQ / turns.of(str(n)),
            "speedup": turns.of("1") / turns.of(str(n)),
            "precision": machine.precision,
        }
        for n in numbers
    ]


def generate_row(ours: Llama, theirs: Any, batch: int, machine: Machine, repeats: int) -> dict[str, Any]:
    """New tokens a second at temperature 1, prompts of 16 to 40 tokens, no row ending early; both in the precision that
    `generate` picks for so many rows: few rows gain nothing from bf16."""
    r = random.Random(0)
    config, device = ours.config, machine.device
    precision = "fp32" if machine.precision == "fp32" else precision_for(batch, device)
    prompts = [[r.randrange(8, config.vocab_size) for _ in range(r.randrange(16, 41))] for _ in range(batch)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[3] * (longest - len(p)) + p for p in prompts], device=device)
    settings = {
        "attention_mask": (padded != 3).long(),
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "pad_token_id": 3,
        "eos_token_id": None,
    }
    peer = copy.deepcopy(theirs).to(DTYPES[precision]).eval()
    turns = take_turns(
        {
            OURS: lambda: seconds_of(
                lambda: generate(ours, prompts, NEW_TOKENS, eos_id=-1, precision=precision), device
            ),
            PEER: lambda: seconds_of(lambda: peer.generate(padded, **settings), device),
        },
        repeats,
    )
    return compared(batch * NEW_TOKENS, turns, PEER, precision)
