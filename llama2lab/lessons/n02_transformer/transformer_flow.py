"""Transformer flow: one real question on its way through the real chat model, part by part, and the KV cache as its
answer begins (Llama 2, section 2.2). Every number comes from one forward pass of the library, see `seen.py`."""

from __future__ import annotations

import html
import math
from typing import Any

from torch import Tensor

from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import bars, heatmap
from llama2lab.lessons.n02_transformer.attention import words_of
from llama2lab.lessons.n02_transformer.seen import Layer, see, short_question
from llama2lab.lessons.n02_transformer.sizes import cache_bytes
from llama2lab.model.network import ModelConfig
from llama2lab.report.look import tame

LONGEST = 16  # tokens read: question and the beginning of the answer
TOP = 8  # tokens whose probability is shown
Table = dict[str, Any]  # {"unit": u, "rows": [[whole numbers]]}: the numbers are rows times unit


def flow(lab: Finished, stage: str = "rlhf-v5") -> dict[str, Any]:
    """The data of the picture: `short_question`, read by the chat model, and what it answers when the likeliest token
    is always taken, up to LONGEST tokens. `layers` holds the tables of `seen.Layer` by name; of several heads, a list
    of tables. `top[i]` are the likeliest tokens after the first `asked` + i: [word, logit, probability], and
    `said[i]` is the answer when the likeliest is taken.

    A row never depends on later ones (the causal mask), so one pass over all tokens gives what reading the question and
    then one token at a time from the cache gives; a test holds both equal.
    """
    model, (question, ids) = lab.model(stage), short_question(lab, stage)
    asked, config = len(ids), model.config
    if asked < LONGEST:
        ids = ids + lab.generate(model, [ids], LONGEST - asked, temperature=0.0)[0].tokens
    ids = ids[: max(asked, LONGEST)]
    seen, tokenizer = see(model, ids), lab.tokenizer
    top, said = [], []
    for i, logits in enumerate(seen.logits[asked - 1 :]):
        best, probabilities = logits.topk(min(TOP, len(logits))), logits.softmax(-1)
        words = words_of(tokenizer, best.indices.tolist())
        said.append(tokenizer.decode([*ids[asked : asked + i], int(best.indices[0])]).strip())
        top.append(
            [
                [word, round(logit, 2), float(f"{probabilities[token].item():.3g}")]
                for word, logit, token in zip(words, best.values.tolist(), best.indices, strict=True)
            ]
        )
    return {
        "question": question,
        "stage": stage,
        "words": words_of(tokenizer, ids),
        "ids": ids,
        "asked": asked,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "bytes": cache_bytes(config, 1, 1, model.embed.weight.element_size()),
        "parts": parts(config),
        "embedded": table(seen.embedded),
        "layers": [_layer(one) for one in seen.layers],
        "normal": table(seen.normal),
        "top": top,
        "said": said,
    }


def table(numbers: Tensor, unit: float | None = None) -> Table:
    """Numbers (rows, columns) as whole multiples of a unit, by which the largest has three digits."""
    largest = numbers.abs().max().item()
    unit = unit or 10.0 ** (math.floor(math.log10(largest)) - 2 if largest > 0 else 0)
    return {"unit": unit, "rows": (numbers.double() / unit).round().long().tolist()}


def _layer(one: Layer) -> dict[str, Any]:
    heads = ("q", "k", "v", "q_turned", "k_turned", "scores", "mixed")
    rows = ("normal", "attended", "middle", "ffn_normal", "gate", "up", "gated", "fed", "y")
    return {
        **{name: [table(head) for head in getattr(one, name)] for name in heads},
        "weights": [table(head, 0.001) for head in one.weights],
        **{name: table(getattr(one, name)) for name in rows},
    }


def parts(c: ModelConfig) -> list[dict[str, str]]:
    """The parts of the model in their order, with what each does; those between `embed` and `final` are of a layer."""
    size, root = c.head_size, f"√{c.head_size}"
    rms = "Each row is divided by its root mean square and multiplied by learnt gains: all rows come to one size."
    told = (
        (
            "tokens",
            "Tokens",
            "The question in the chat’s format, cut into tokens. Each is a row number of the embedding.",
        ),
        ("embed", "Embedding", f"Each token fetches its row: {c.dim} numbers. The residual stream begins."),
        ("norm1", "RMSNorm", rms),
        (
            "qkv",
            "Q, K, V",
            f"One product gives each token {c.n_heads} queries, {c.n_kv_heads} keys and {c.n_kv_heads} values of "
            f"{size} numbers: {c.group} query heads share each KV head.",
        ),
        ("rope", "RoPE", "Queries and keys turn by angles that grow with the position. Values do not turn."),
        ("scores", "Scores", f"Each query times each key, through {root}: the larger, the better they fit."),
        ("mask", "Mask", "No token may look at later ones: their scores are struck out."),
        ("softmax", "Softmax", "What is left becomes weights. Each row adds up to 1."),
        ("mix", "Mix of values", "Each head adds up the values by its weights: what a token takes from earlier ones."),
        ("add1", "+ attention", f"A matrix makes {c.dim} numbers of the heads’ mixes. They are added to the stream."),
        ("norm2", "RMSNorm", rms),
        ("swiglu", "SwiGLU", f"silu(gate) × up, {c.ffn_dim} numbers a token: one product opens and shuts the other."),
        ("add2", "+ feed-forward", f"A matrix makes {c.dim} numbers of these. They are added to the stream."),
        ("final", "Last RMSNorm", rms),
        (
            "logits",
            "Next token",
            f"The last row times the embedding: one logit for each of {c.vocab_size:,} tokens. Softmax makes them "
            "probabilities; the likeliest token is taken.",
        ),
        (
            "cache",
            "KV cache",
            "The token is appended. Earlier keys and values stay as they are: only its own column is worked out.",
        ),
    )
    return [{"key": key, "name": name, "does": does} for key, name, does in told]


class TransformerFlow(Picture):
    """A question's way through the model, to be played, stepped through and looked into."""

    def __init__(self, lab: Finished, stage: str = "rlhf-v5"):
        super().__init__(data=flow(lab, stage))

    def static(self) -> str:
        d = self.data
        words, last = d["words"][: d["asked"]], len(d["layers"])
        steps = "".join(
            f"<li><b>{html.escape(part['name'])}</b>: {html.escape(part['does'])}</li>" for part in d["parts"]
        )
        maps = ""
        for number, weights in enumerate(d["layers"][-1]["weights"], 1):
            rows = [
                [weights["rows"][i][j] * weights["unit"] if j <= i else None for j in range(d["asked"])]
                for i in range(d["asked"])
            ]
            said = f"attention weights of layer {last}, head {number}"
            maps += (
                f'<div style="flex: 1 1 220px; max-width: 320px">head {number}{heatmap(rows, said, words, words)}</div>'
            )
        likely = bars([(word, p) for word, _, p in d["top"][0]], "probabilities of the next token", 1.0)
        return (
            f"<p><b>Transformer flow</b>. “{html.escape(tame(d['question']))}” through {last} layers:</p>"
            f"<ol>{steps}</ol><p>Who looks at whom in layer {last}:</p>"
            f'<div style="display: flex; flex-wrap: wrap; gap: 8px">{maps}</div><p>The next token:</p>{likely}'
        )
