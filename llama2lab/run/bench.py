"""`llama2lab bench`: training and generation against transformers' Llama, on the same weights and tokens."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2lab.engine.device import Machine, describe_machine, matmul_ceiling, peak_memory_mb, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.parallel import backward, shared_cores, split
from llama2lab.model.checkpoint import save_model
from llama2lab.model.generate import generate, precision_for
from llama2lab.model.network import SIZES, Llama, ModelConfig
from llama2lab.stages.pretrain import training_flops_per_token

MODELS = {"mini (1.0M)": SIZES["mini"], "2.8M": ModelConfig(2048, 192, 5, 6, 2, 512, max_seq_len=1024)}
ROWS, SEQ = 32, 256  # of a training batch
REPEATS = 5
BATCHES = (1, 64, 256)  # rows that are generated together
NEW_TOKENS = 48
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run_bench(json_path: str | Path | None = None, repeats: int = REPEATS) -> dict[str, Any]:
    """Measure, print a table, and write it as JSON if asked. Returns {"machine", "precision", "training", "generation"}
    with, in each row, the `precision` that both computed in: the one that the lab picks on this machine for such work.

    Ours and transformers' take turns, and the median counts, so that other work on the machine strikes both
    alike. `share` is the part of the machine's ceiling for matrix products in this precision that training
    uses, by `pretrain.training_flops_per_token`. LabError if the JSON cannot be written.
    """
    machine = this_machine()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "precision": machine.precision,
        "training": [],
        "generation": [],
    }
    for name, config in MODELS.items():
        ours, theirs = pair(config, machine.device)
        print(
            f"\n{name}: {sum(p.numel() for p in ours.parameters()):,} parameters, {machine.device}; this machine's "
            f"precision is {machine.precision}"
        )
        result["training"].append({"model": name, **_train(ours, theirs, machine, repeats)})
        t = result["training"][-1]
        print(
            f"  training   {ROWS} x {SEQ:<4} ours {t['ours']:8,.0f}   transformers {t['transformers']:8,.0f} tokens/s"
            f"   ratio {t['ratio']:.2f}   {t['precision']}   share of the ceiling {t['share']:.0%}"
        )
        for batch in BATCHES:
            row = {"model": name, "batch": batch, **_generate(ours, theirs, batch, machine, repeats)}
            result["generation"].append(row)
            print(
                f"  generation {batch:>3} rows   ours {row['ours']:8,.0f}   transformers {row['transformers']:8,.0f} "
                f"tokens/s   ratio {row['ratio']:.2f}   {row['precision']}"
            )
    result["peak_memory_mb"] = round(peak_memory_mb())
    print(f"\npeak memory {result['peak_memory_mb']:,} MB (both together)")
    if json_path is not None:
        try:
            Path(json_path).write_text(json.dumps(result, indent=1))
        except OSError as e:
            raise LabError(f"cannot write {json_path}: {e.strerror}; give another file") from e
    return result


def pair(config: ModelConfig, device: torch.device) -> tuple[Llama, nn.Module]:
    """Our model and transformers' (SDPA attention), with the same weights."""
    from transformers import LlamaForCausalLM

    ours = Llama(config)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "m", ours)
        theirs: nn.Module = LlamaForCausalLM.from_pretrained(
            Path(folder) / "m", attn_implementation="sdpa", trust_remote_code=False, local_files_only=True
        )
    return ours.to(device), theirs.to(device)


def _train(ours: Llama, theirs: nn.Module, machine: Machine, repeats: int) -> dict[str, Any]:
    """Tokens a second of whole steps: forward, loss, backward, AdamW. Ours as `loop.fit` does it."""
    config, device = ours.config, machine.device
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(8, config.vocab_size, (ROWS, SEQ + 1), generator=generator).to(device)

    def loss(logits_of: Callable[[Tensor], Tensor], rows: Sequence[int]) -> Tensor:
        with machine.autocast():
            logits = logits_of(tokens[rows, :-1])  # (rows, seq, vocab)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[rows, 1:].flatten())

    weights = list(ours.parameters())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for model in (ours, theirs)]

    def our_step() -> None:
        with shared_cores(device):
            backward(lambda rows: (loss(ours, rows), len(rows), {}), split(range(ROWS), device), weights, device)
            optimizers[0].step()
            optimizers[0].zero_grad()

    def their_step() -> None:
        loss(lambda x: theirs(x, use_cache=False).logits, range(ROWS)).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()

    seconds = _take_turns({"ours": our_step, "transformers": their_step}, repeats)
    rates = {name: tokens[:, 1:].numel() / s for name, s in seconds.items()}
    share = rates["ours"] * training_flops_per_token(config, SEQ) / matmul_ceiling(device, DTYPES[machine.precision])
    return {**rates, "ratio": rates["ours"] / rates["transformers"], "precision": machine.precision, "share": share}


def _generate(ours: Llama, theirs: Any, batch: int, machine: Machine, repeats: int) -> dict[str, Any]:
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
    theirs.to(DTYPES[precision]).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seconds = _take_turns(
            {
                "ours": lambda: generate(ours, prompts, NEW_TOKENS, eos_id=-1, precision=precision),
                "transformers": lambda: theirs.generate(padded, **settings),
            },
            max(2, repeats - 2),
        )
    theirs.float()
    rates = {name: batch * NEW_TOKENS / s for name, s in seconds.items()}
    return {**rates, "ratio": rates["ours"] / rates["transformers"], "precision": precision}


def _take_turns(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run by turns after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 1):
        for name, function in work.items():
            begin = time.perf_counter()
            function()
            if round_:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(s) for name, s in seconds.items()}
