"""What Llama 2's sizes take of memory and time, for docs/scale.md: computed, nothing of it measured.

Parameters are counted by a checkpoint's tensors (`checkpoint.count_parameters`), the cache by the sampler, and
activations are what a forward pass of the library's model keeps for its gradient, seen on the meta device, where
tensors have shapes and no memory. `llama2lab scale` prints the tables, and with --write puts them into the page.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from llama2lab.engine.files import write_atomic
from llama2lab.engine.optim import TRAINED_BYTES
from llama2lab.evidence.page import table
from llama2lab.evidence.readme import with_blocks
from llama2lab.model.checkpoint import count_parameters
from llama2lab.model.generate import cache_bytes
from llama2lab.model.network import SIZES, Llama, ModelConfig
from llama2lab.stages.pretrain import packed_lm_loss

PAGE = Path("docs") / "scale.md"
NAMES = ("7b", "13b", "34b", "70b")
CONTEXT = 4096  # tokens of a row, as in the report
TOKENS = 2e12  # of the report's pretraining
REPORT_HOURS = {"7b": 184_320, "13b": 368_640, "34b": 1_038_336, "70b": 1_720_320}  # GPU hours, table 2
PEAKS = {"A100": 312e12, "H100": 989e12}  # operations a second, bfloat16 without sparsity, as NVIDIA states them
SHARE = 0.4  # of the peak, which a good training is assumed to reach
GPU_BYTES, USABLE = 80e9, 0.9  # of such a GPU, and the part of its memory that is planned with


@functools.cache
def activation_bytes(config: ModelConfig, seq_len: int) -> int:
    """What one row of `seq_len` tokens keeps from the forward for the backward pass, in bytes, in bfloat16. Seen at one
    layer and at two: each further one keeps as much."""
    one, two = (_kept(dataclasses.replace(config, n_layers=n), seq_len) for n in (1, 2))
    return one + (config.n_layers - 1) * (two - one)


def _kept(config: ModelConfig, seq_len: int) -> int:
    """Bytes of all tensors that autograd keeps, the weights aside."""
    with torch.device("meta"):
        model = Llama(config).bfloat16()
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}  # by storage; held, so that no address is given out twice

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if x.is_meta and storage._cdata not in own:
            kept[storage._cdata] = (x, storage.nbytes())
        return x

    row = torch.ones(1, seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        packed_lm_loss(model, row, row, row.bool(), device=torch.device("meta"))
    return sum(n for _, n in kept.values())


def cache_bytes_of(config: ModelConfig, seq_len: int) -> int:
    with torch.device("meta"):
        return cache_bytes(Llama(dataclasses.replace(config, n_layers=1)).bfloat16()) * config.n_layers * seq_len


def gpus(config: ModelConfig, seq_len: int) -> int | None:
    """The fewest GPUs that hold a training whose state is dealt out over them (FSDP2), each with a row of its own; None
    where the row alone is too large."""
    left = USABLE * GPU_BYTES - activation_bytes(config, seq_len)
    return math.ceil(TRAINED_BYTES * count_parameters(config) / left) if left > 0 else None


def gpu_hours(config: ModelConfig, tokens: float, gpu: str) -> float:
    """6 operations a parameter and token, at SHARE of the GPU's peak."""
    return 6 * count_parameters(config) * tokens / (PEAKS[gpu] * SHARE) / 3600


def implied_share(name: str) -> float:
    """Of an A100's peak, that the report's GPU hours come to."""
    return 6 * count_parameters(SIZES[name]) * TOKENS / (REPORT_HOURS[name] * 3600 * PEAKS["A100"])


def gb(n: float) -> str:
    return f"{n / 1e9:,.0f}" if n >= 1e10 else f"{n / 1e9:.1f}"


def memory_table() -> str:
    rows = []
    for name in NAMES:
        config = SIZES[name]
        count, few = count_parameters(config), gpus(config, CONTEXT // 2)
        rows.append(
            [
                name.upper(),
                f"{count:,}",
                gb(2 * count),
                gb(cache_bytes_of(config, CONTEXT)),
                gb(TRAINED_BYTES * count),
                *(gb(activation_bytes(config, n)) for n in (CONTEXT // 2, CONTEXT)),
                "-" if few is None else str(few),
            ]
        )
    half = f"{CONTEXT // 2:,}"
    header = ("model", "parameters", "weights in bf16", f"cache of {CONTEXT:,} tokens", "training state")
    more = (f"a row of {half} tokens", f"of {CONTEXT:,}", f"80 GB GPUs at the least, rows of {half}")
    return table((*header, *more), rows)


def time_table() -> str:
    rows = []
    for name in NAMES:
        config = SIZES[name]
        rows.append(
            [
                name.upper(),
                *(f"{gpu_hours(config, 1e9, gpu):,.0f}" for gpu in PEAKS),
                *(f"{gpu_hours(config, TOKENS, gpu):,.0f}" for gpu in PEAKS),
                f"{REPORT_HOURS[name]:,}",
                f"{implied_share(name):.0%}",
            ]
        )
    header = [f"{words}, {gpu}" for words in ("a billion tokens", "2 trillion") for gpu in PEAKS]
    return table(("model", *header, "the report, A100", "its share of the peak"), rows)


def blocks() -> dict[str, str]:
    """The page's marked blocks by their names."""
    return {"memory": memory_table(), "time": time_table()}


def write_page(root: Path) -> list[Path]:
    """Write the tables into the page; it, if it changed. LabError where it has not the marked blocks."""
    path = root / PAGE
    before = path.read_text(encoding="utf-8")
    after = with_blocks(before, blocks(), str(PAGE))
    if after == before:
        return []
    write_atomic(path, after)
    return [path]
