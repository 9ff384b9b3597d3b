"""Pictures of a student's own output in notebook 02: rotated positions, attention and its masks."""

from __future__ import annotations

from typing import Any

import torch

from llama2lab.lab.compare import randn, read
from llama2lab.lab.own_output import Answer, beside, numbers, own, own_curves, spaced
from llama2lab.lab.pictures import heatmap

TOKENS = 8
Weights = list[list[float]]


def seen(title: str, weights: Weights, cell: int = 20, document: list[int] | None = None) -> str:
    """A heat map of queries by keys, blank where nothing is seen; rows are the last of the positions."""
    past = len(weights[0]) - len(weights)
    rows = [f"query {past + i}" for i in range(len(weights))]
    columns = [f"key {i}" for i in range(len(weights[0]))]
    if document:
        rows = [f"{name}, {f'document {n}' if n else 'padding'}" for name, n in zip(rows, document, strict=True)]
    return heatmap([[w or None for w in line] for line in weights], title, rows, columns, cell=cell)


def draw_rope(f: Answer) -> str:
    """The score of one and the same query and key by their distance, from two places on."""
    size, far, later = 64, 96, 32
    turned = read(f(torch.ones(1, 1, far + later, size), 10_000.0), (1, 1, far + later, size))[0, 0].double()

    def scores(start: int) -> list[tuple[float, float]]:
        return [(float(d), numbers(turned[start] @ turned[start + d]) / size) for d in range(far)]

    return own_curves(
        "Your rotation: the score of a query and a key by their distance",
        [("key at 0", scores(0))],
        "distance, tokens",
        "score, as a share of that at distance 0",
        f"Circles: the key stands at {later}. They lie on the line, for only the distance counts.",
        marks=scores(later)[::8],
    )


def draw_attention(f: Answer) -> str:
    """The weights of four heads on two KV heads: the values are unit vectors, so what comes out is the weights."""
    q, k = 2 * randn(1, 4, TOKENS, TOKENS, seed=1), randn(1, 2, TOKENS, TOKENS, seed=2)
    units = torch.eye(TOKENS).repeat(1, 2, 1, 1)
    heads = numbers(f(q, k, units), 1, 4, TOKENS, TOKENS)[0]
    maps = [
        (f"head {h}, KV head {h // 2}", heatmap([[w or None for w in line] for line in head], f"head {h}", cell=14))
        for h, head in enumerate(heads)
    ]
    note = "Rows are queries, columns keys; the fuller the blue, the larger the weight. Each two heads share keys."
    return own("Your attention weights", beside(*maps), note=note)


def draw_causal_mask(f: Answer) -> str:
    """The mask of whole text, and with a cache."""
    maps = [
        (name, seen(name, numbers(_flat(f(n, TOKENS)), n, TOKENS)))
        for name, n in ((f"{TOKENS} queries", TOKENS), ("3 queries, with a cache", 3))
    ]
    return own("Your causal mask", beside(*maps), note="Filled: the query may look at the key.")


def draw_document_mask(f: Answer) -> str:
    """The mask of three documents and padding in one row."""
    row = [1, 1, 1, 2, 2, 3, 3, 3, 0, 0]
    mask = numbers(_flat(f(torch.tensor([row]))), len(row), len(row))
    title = "Your mask of three documents in one row"
    return own(title, seen(title, mask, document=row), note="Filled: the query may look at the key.")


def _flat(mask: Any) -> torch.Tensor:
    """A mask without the dimensions of size 1 in front, its own or those that a check lets pass."""
    tensor = torch.as_tensor(mask).double()
    while tensor.ndim > 2 and len(tensor) == 1:
        tensor = tensor[0]
    return tensor


def draw_swiglu(f: Answer) -> str:
    """A single unit: what it lets through of `up` by its gate's input."""
    x = spaced(-6.0, 6.0, 41)
    one = torch.ones(1, 1)
    gate, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])

    def through(value: float) -> list[tuple[float, float]]:
        given = torch.tensor([[[place, value] for place in x]])
        got = read(f(given, gate, up, one.repeat(2, 1)), (1, len(x), 2))[0, :, 0]
        return list(zip(x, numbers(got, len(x)), strict=True))

    series = [(f"up of x = {value:g}", through(value)) for value in (2.0, 1.0, -1.0)]
    return own_curves("Your SwiGLU: one unit", series, "gate of x", "what comes out")
