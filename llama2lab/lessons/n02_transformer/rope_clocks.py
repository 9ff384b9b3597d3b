"""RoPE clocks: a hand for each pair of a real query, one for its key, turned by their positions (RoFormer, arXiv
2104.09864, section 3.4; Llama 2, section 2.2). Moved together, the angles between the hands stay."""

from __future__ import annotations

import html
import math
from typing import Any

import torch
from torch import Tensor

from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import label, lines, svg
from llama2lab.lessons.n02_transformer.attention import words_of
from llama2lab.lessons.n02_transformer.seen import see, short_question
from llama2lab.model.rope import rope_frequencies, rotate
from llama2lab.report.look import BLUE, GREEN, ORANGE, tame

PLACES = 48  # positions on the line


@torch.no_grad()
def clocks(lab: Finished, stage: str = "rlhf-v5") -> dict[str, Any]:
    """The data of the picture: a query and a key of the chat model, as they are at each of PLACES positions.

    The rule that picks them: of all heads the one that, reading `short_question`, gives the most weight to the token
    before (the mean over the tokens from the third on, since the second has little choice), and there the token that
    does so most. `query` and `key` hold the turned vectors, (PLACES, head_dim); `scores[m][n]`, n <= m, their product
    through the square root of head_dim; `turn` the tokens that each pair needs for a full turn.
    """
    model, (question, ids) = lab.model(stage), short_question(lab, stage)
    config, layers = model.config, see(model, ids).layers
    before = torch.stack([one.weights.diagonal(-1, 1, 2)[:, 1:] for one in layers])  # (n_layers, n_heads, seq - 2)
    layer, head = divmod(int(before.mean(-1).argmax()), config.n_heads)
    m = int(before[layer, head].argmax()) + 2
    kv_head, n = head // config.group, m - 1

    cos, sin = (
        table[0].float().cpu() for table in model.rope_at(torch.arange(PLACES)[None].to(model.embed.weight.device))
    )

    def turned(vector: Tensor) -> Tensor:
        return rotate(vector.expand(1, PLACES, -1), cos, sin)[0]

    query, key = turned(layers[layer].q[head, m]), turned(layers[layer].k[kv_head, n])
    scores = query @ key.T / config.head_size**0.5  # (query's place, key's place)
    frequencies, _ = rope_frequencies(
        config.head_size, config.rope_theta, config.max_seq_len, config.rope_scaling, PLACES
    )
    words = words_of(lab.tokenizer, ids)
    return {
        "question": question,
        "layer": layer + 1,
        "head": head + 1,
        "kv_head": kv_head + 1,
        "head_dim": config.head_size,
        "theta": config.rope_theta,
        "at": {"query": m, "key": n},
        "words": {"query": words[m], "key": words[n]},
        "turn": [2 * math.pi / f for f in frequencies.tolist()],
        "query": _rounded(query),
        "key": _rounded(key),
        "scores": [row[: i + 1] for i, row in enumerate(_rounded(scores))],
    }


def _rounded(table: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in table.tolist()]


def angle(query: list[float], key: list[float], pair: int) -> float:
    """Radians from the key's hand to the query's, in (-pi, pi]: the halves of a head hold the pairs' two numbers."""
    half = len(query) // 2
    between = math.atan2(query[pair + half], query[pair]) - math.atan2(key[pair + half], key[pair])
    return math.pi - (math.pi - between) % (2 * math.pi)


class RopeClocks(Picture):
    """The clocks of one query and one key on a line of positions, and their score by distance."""

    def __init__(self, lab: Finished, stage: str = "rlhf-v5"):
        super().__init__(data=clocks(lab, stage))

    def static(self) -> str:
        d = self.data
        m, n = d["at"]["query"], d["at"]["key"]
        across, size, body = 8, 78, ""
        for pair, turn in enumerate(d["turn"]):
            x, y = (pair % across + 0.5) * size, pair // across * (size + 22) + size / 2
            body += _clock(x, y, size / 2 - 5, d["query"][m], d["key"][n], pair)
            body += label(x, y + size / 2 + 9, f"turn: {turn:,.0f}" if turn > 99 else f"turn: {turn:.1f}", "middle")
        rows = math.ceil(len(d["turn"]) / across)
        words = (
            f"{len(d['turn'])} clocks, one for each pair of dimensions, with a hand for the query and one for the key"
        )
        curve = [(float(distance), row[0]) for distance, row in enumerate(d["scores"])]
        asked = html.escape(tame(f"“{d['question']}”: query of “{d['words']['query']}”, key of “{d['words']['key']}”"))
        return (
            f"<p><b>RoPE clocks</b>. {asked}, layer {d['layer']}, head {d['head']}; {m - n} apart. Blue is the query's "
            "hand, orange the key's; a clock's turn is in tokens. Moved together, both hands turn by the same angle: "
            "the green angle between them stays, and so does the score.</p>"
            + svg(body, across * size, rows * (size + 22), words)
            + lines([("score", curve)], "score by distance", "distance, tokens", "score", marks=[curve[m - n]])
        )


def _clock(x: float, y: float, radius: float, query: list[float], key: list[float], pair: int) -> str:
    body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="none" stroke="currentColor" opacity="0.3"/>'
    half = len(query) // 2
    ends = []
    for vector, colour in ((key, ORANGE), (query, BLUE)):
        way = math.atan2(vector[pair + half], vector[pair])
        ends.append((x + 0.45 * radius * math.cos(way), y + 0.45 * radius * math.sin(way)))
        body += (
            f'<path d="M{x:.1f} {y:.1f}l{radius * math.cos(way):.1f} {radius * math.sin(way):.1f}" '
            f'stroke="{colour}" stroke-width="2.5"/>'
        )
    sweep, r = int(angle(query, key, pair) > 0), 0.45 * radius
    return body + (
        f'<path d="M{ends[0][0]:.1f} {ends[0][1]:.1f}A{r:.1f} {r:.1f} 0 0 {sweep} {ends[1][0]:.1f} {ends[1][1]:.1f}" '
        f'fill="none" stroke="{GREEN}" stroke-width="3"/>'
    )
