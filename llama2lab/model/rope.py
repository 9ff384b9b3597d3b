"""Rotary positions (RoFormer, arXiv 2104.09864): pairs turn by an angle that grows with the position."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llama2lab.engine.errors import LabError

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def rope_kind(scaling: dict | None) -> str:
    """The kind of scaling; files of transformers before 4.43 say "type" for "rope_type"."""
    scaling = scaling or {}
    return scaling.get("rope_type") or scaling.get("type") or "default"


def rope_frequencies(
    size: int, theta: float, max_seq_len: int, scaling: dict | None, seq_len: int = 0
) -> tuple[Tensor, float]:
    """Radians a token that each pair of a head turns by, (size/2,), and the factor on cos and sin.

    RoFormer section 3.2.2, with the usual ways to stretch a trained context: linear interpolation
    (arXiv 2306.15595), dynamic NTK, YaRN (arXiv 2309.00071, section 3) and Llama 3.1's.
    `seq_len` matters to "dynamic" alone. Raises LabError for other kinds.
    """
    scaling = scaling or {}
    kind, theta = rope_kind(scaling), float(theta)
    if kind not in ROPE_KINDS:
        raise LabError(f"model config: rope scaling {kind!r} is not supported; there are: {', '.join(ROPE_KINDS)}")

    def setting(name: str, default: float | None = None) -> float:
        value = scaling.get(name, default)
        if value is None:
            raise LabError(f"model config: rope scaling {kind!r} needs {name!r}")
        return float(value)

    factor = 1.0 if kind == "default" else setting("factor")
    if not 1 <= factor <= 1e6:
        which = "below 1" if factor < 1 else "over a million"
        raise LabError(f"model config: rope scaling factor {factor} is {which}; it stretches the context")
    if kind == "dynamic":
        longest = max(seq_len, max_seq_len)
        theta *= (factor * longest / max_seq_len - (factor - 1)) ** (size / (size - 2))
    pairs = torch.arange(0, size, 2, device="cpu", dtype=torch.float32)
    plain = 1.0 / theta ** (pairs / size)
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "llama3":
        # Fast pairs stay, slow ones are interpolated, those between slide from one to the other.
        low, high = setting("low_freq_factor"), setting("high_freq_factor")
        if low >= high:
            raise LabError(f"model config: rope scaling low_freq_factor {low} is not below high_freq_factor {high}")
        turns = setting("original_max_position_embeddings", max_seq_len) * plain / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * keep + plain / factor * (1 - keep), 1.0
    if kind == "yarn":
        original = setting("original_max_position_embeddings", max_seq_len)

        def pair_of(turns: float) -> float:  # the (real-valued) pair that turns so often in the old context
            return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair_of(setting("beta_fast", 32)), pair_of(setting("beta_slow", 1))
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        keep = 1 - ((pairs / 2 - low) / max(high - low, 1e-3)).clamp(0, 1)

        def loudness(m: float) -> float:
            return 0.1 * m * math.log(factor) + 1

        m, m_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        default = loudness(m) / loudness(m_all) if m and m_all else loudness(1)
        return plain * keep + plain / factor * (1 - keep), float(scaling.get("attention_factor") or default)
    return plain, 1.0


def rope_tables(size: int, theta: float, max_seq_len: int, scaling: dict | None, seq_len: int) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, each (seq_len, size); the halves hold the same angles.

    The first half of sin is negative, so that turning is x * cos + swap_halves(x) * sin.
    """
    frequencies, loudness = rope_frequencies(size, theta, max_seq_len, scaling, seq_len)
    angles = torch.outer(torch.arange(seq_len, device="cpu", dtype=torch.float32), frequencies)
    cos, sin = angles.cos() * loudness, angles.sin() * loudness
    return torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) by its position's angle. x (batch, heads, seq, head_dim); cos and
    sin (batch or 1, 1, seq, head_dim)."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
