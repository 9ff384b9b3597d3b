"""Exercises of notebook 02: the transformer, its grouped attention and its cache (Llama 2, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import close, judge, randn, read
from llama2lab.lab.predictions import Choice, Guess, Number, Prediction
from llama2lab.lessons.n02_transformer.own_output import (
    draw_attention,
    draw_causal_mask,
    draw_document_mask,
    draw_rope,
    draw_swiglu,
)
from llama2lab.model import attention, network, rope
from llama2lab.model.network import SIZES, RMSNorm

# ---- RMSNorm -----------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The library's RMSNorm with this weight."""
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = weight
    return norm(x).detach()


def check_rms_norm(f: Callable) -> None:
    weight = randn(6, seed=1)
    for i, x in enumerate((randn(2, 5, 6) * 3 + 1, randn(2, 6, seed=2) * 1e-3)):
        eps = 1e-5
        mean_square = x.pow(2).mean(-1, keepdim=True)
        root = (mean_square + eps).sqrt()
        wrongs = [
            (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt() * weight,
                "That is LayerNorm: it takes the mean away first. RMSNorm only divides by the root of the mean square.",
            ),
            (x / root, "The weight is missing: multiply by it at the end."),
            (
                x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt() * weight,
                "You divide by the root of the sum of squares; it is their mean: otherwise the result shrinks with the "
                "size.",
            ),
            (x / (mean_square + eps) * weight, "The square root is missing: rms is the root of the mean square."),
            (
                x / (x.pow(2).mean() + eps).sqrt() * weight,
                "The mean goes over all elements; it must go over the last dimension only, for each token alone.",
            ),
            (x / mean_square.sqrt() * weight, "eps is not used: a token that is almost zero is blown up."),
            (
                x / (mean_square.sqrt() + eps) * weight,
                "eps stands outside of the root; it is added to the mean square, inside.",
            ),
            (x * root * weight, "You multiply by the rms instead of dividing by it."),
        ]
        got = read(f(x, weight, eps), x.shape)
        judge(got, rms_norm(x, weight, eps), *(wrongs[:5] + wrongs[7:] if i == 0 else wrongs))


RMS_NORM = Exercise(
    "02.rms_norm",
    "RMSNorm",
    "Write rms_norm(x, weight, eps): each token, the last dimension of x (..., dim), divided by the root of its mean "
    "square (with eps added to the mean square), times weight (dim,).",
    Level(difficulty=1, minutes=5, points=2),
    "2.2; arXiv 1910.07467",
    (
        "The mean square of each token is one number: use keepdim=True, so that dividing broadcasts.",
        "x / sqrt(mean(x²) + eps) * weight, with the mean over dimension -1.",
    ),
    check_rms_norm,
    rms_norm,
    lesson="What comes in may be as loud as it likes, its direction alone goes on: so depth does not blow numbers up. "
    "Taking the mean away, as LayerNorm does, turned out to add little but time.",
)


# ---- rotary positions --------------------------------------------------------------------------------------------


def rotate_positions(x: Tensor, theta: float) -> Tensor:
    """The library's tables and its turn, for positions from 0."""
    seq, size = x.shape[2:]
    cos, sin = rope.rope_tables(size, theta, seq, None, seq)
    return rope.rotate(x, cos, sin)


def _turned(x: Tensor, angles: Tensor, sign: float = 1.0, neighbours: bool = False) -> Tensor:
    """x with its pairs turned by angles (seq, head_dim/2), for the ways to do it wrong."""
    cos, sin = angles.cos(), sign * angles.sin()
    if neighbours:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def check_rope(f: Callable) -> None:
    theta, size, seq = 10000.0, 8, 6
    x = randn(2, 3, seq, size)
    at = torch.arange(seq, dtype=torch.float32)
    pairs = torch.arange(size // 2)
    angles = torch.outer(at, theta ** (-2 * pairs / size))
    wrongs = [
        (
            _turned(x, angles, neighbours=True),
            "It rotates neighbours (0, 1), (2, 3), ..., not halves: here pair i is (i, i + head_dim/2).",
        ),
        (
            _turned(x, angles, -1.0),
            "It turns the wrong way: the sign of the sine is swapped. First half: a cos - b sin; second half: b cos + "
            "a sin.",
        ),
        (
            _turned(x, torch.outer(at + 1, theta ** (-2 * pairs / size))),
            "Positions start at 1; the first token stands at 0 and is not turned.",
        ),
        (
            _turned(x, torch.outer(at, theta ** (-pairs / size))),
            "The frequencies fall too slowly: pair i turns by theta ** (-2 i / head_dim), the 2 is missing.",
        ),
        (
            _turned(x, torch.outer(at, theta ** (2 * pairs / size))),
            "The frequencies grow; they fall: theta ** (-2 i / head_dim), with a minus.",
        ),
        (x, "Nothing is turned."),
        (
            _turned(x, angles[:, :1].expand(-1, size // 2)),
            "All pairs turn equally fast; each has a frequency of its own.",
        ),
    ]
    got = read(f(x, theta), x.shape)
    if not close(got.double().norm(dim=-1), x.double().norm(dim=-1), 1e-3):
        raise Mistake(
            "A rotation keeps the length of every vector; yours does not. Each pair needs both terms: (a cos - b sin, "
            "b cos + a sin)."
        )
    judge(got, rotate_positions(x, theta), *wrongs)
    other = randn(1, 1, 3, 4, seed=3)
    judge(
        read(f(other, 500.0), other.shape),
        rotate_positions(other, 500.0),
        (rotate_positions(other, theta), "theta is an argument; you use 10000 always."),
    )


ROPE = Exercise(
    "02.rope",
    "Rotary positions",
    "Write rope(x, theta) for x (batch, heads, seq, head_dim): at position t = 0, 1, ... turn each pair (i, i + "
    "head_dim/2) by the angle t * theta ** (-2 i / head_dim).",
    Level(difficulty=3, minutes=15, points=3),
    "2.2; arXiv 2104.09864",
    (
        "Angles are an outer product: positions (seq,) with frequencies (head_dim/2,).",
        "Split x into its two halves a and b along the last dimension.",
        "The result is the halves a cos - b sin and b cos + a sin, joined again.",
    ),
    check_rope,
    rotate_positions,
    lesson="Query and key are both turned, so their product knows only how far apart they stand: what is learnt about "
    "neighbours holds at every place. Values are not turned: they carry what is said, not where.",
    picture=draw_rope,
)


# ---- grouped attention -------------------------------------------------------------------------------------------


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The library's attention under a causal mask."""
    mask = attention.causal_mask(q.shape[2], k.shape[2])
    return attention.attend(q, k, v, attention.score_bias(mask, q.shape[1], k.shape[1], q.dtype))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    repeat: bool = False,
    dim: int = -1,
) -> Tensor:
    """Attention with everything that can be done wrongly as an argument."""
    group = q.shape[1] // k.shape[1]
    k, v = ((t.repeat(1, group, 1, 1) if repeat else t.repeat_interleave(group, 1)) for t in (k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -1e9)
    return scores.softmax(dim) @ v


def check_attention(f: Callable) -> None:
    q, k, v = randn(2, 4, 5, 6), randn(2, 2, 5, 6, seed=1), randn(2, 2, 5, 6, seed=2)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    root = 6**-0.5
    wrongs = [
        (
            _attention(q, k, v, causal, root, repeat=True),
            "Queries share KV heads in the wrong order: heads 0 and 1 use KV head 0 (repeat_interleave), not heads 0 "
            "and 2 (repeat).",
        ),
        (_attention(q, k, v, causal, 1.0), "The scores are not divided by sqrt(head_dim)."),
        (_attention(q, k, v, causal, 1 / 6), "The scores are divided by head_dim; it is its square root."),
        (_attention(q, k, v, torch.ones_like(causal), root), "There is no mask: every token sees the future."),
        (
            _attention(q, k, v, torch.ones_like(causal).tril(1), root),
            "The mask lets a token see the next one: it is one diagonal too wide.",
        ),
        (_attention(q, k, v, causal.T, root), "The mask is upside down: tokens see the future, not the past."),
        (
            _attention(q, k, v, causal, root, dim=-2),
            "The softmax goes over the queries; for each query the weights over keys (last dimension) add up to 1.",
        ),
        (
            _attention(q, k, v, causal, 24**-0.5),
            "The scores are divided by sqrt(dim) of all heads together; each head divides by sqrt(head_dim).",
        ),
    ]
    got = read(f(q, k, v), q.shape)
    judge(got, grouped_attention(q, k, v), *wrongs, tolerance=1e-3)
    one = randn(1, 1, 3, 6, seed=4)
    for heads in (1, 3):  # as many KV heads as heads, and one for all
        many = randn(1, heads, 3, 6, seed=5)
        judge(
            read(f(many, one, one), many.shape),
            grouped_attention(many, one, one),
            what=f"the result for {heads} heads on one KV head",
            tolerance=1e-3,
        )


GROUPED_ATTENTION = Exercise(
    "02.grouped_attention",
    "Grouped-query attention",
    "Write grouped_attention(q, k, v), causal, for q (batch, heads, seq, head_dim) and k, v (batch, kv_heads, seq, "
    "head_dim); head h uses KV head h // (heads / kv_heads). Give back the shape of q.",
    Level(difficulty=3, minutes=20, points=4),
    "2.2, A.2.1; arXiv 2305.13245",
    (
        "First bring k and v to as many heads as q: each KV head is used by heads / kv_heads neighbours.",
        "torch.repeat_interleave(k, group, dim=1) gives 0 0 1 1; repeat would give 0 1 0 1.",
        "softmax(q @ k.mT / sqrt(head_dim), with -inf where the key is later than the query) @ v.",
    ),
    check_attention,
    grouped_attention,
    lesson="Writing a token waits for memory, not for arithmetic: all keys and values are read again for it. Fewer KV "
    "heads are less to read, and the queries, which are never kept, stay as many.",
    picture=draw_attention,
)


# ---- the cache ---------------------------------------------------------------------------------------------------


def append(keys: Tensor, values: Tensor, length: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The library's KVCache around this memory, with one layer."""
    batch, heads, _, size = keys.shape
    cache = attention.KVCache(1, heads, size, batch, 1)
    cache.keys, cache.values, cache.length = keys[None], values[None], length
    return cache.append(0, k, v, length + k.shape[2])


def check_cache(f: Callable) -> None:
    keys, values = torch.full((2, 2, 7, 4), 9.0), torch.full((2, 2, 7, 4), 8.0)
    all_k, all_v = randn(2, 2, 5, 4), randn(2, 2, 5, 4, seed=1)
    length = 0
    for new in (3, 1, 1):
        end = length + new
        k, v = all_k[:, :, length:end], all_v[:, :, length:end]
        result = f(keys, values, length, k.clone(), v.clone())
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake("Two tensors are expected: the keys and the values of all tokens so far.")
        shape = (2, 2, end, 4)
        for name, got, memory, right, other in (
            ("keys", result[0], keys, all_k, all_v),
            ("values", result[1], values, all_v, all_k),
        ):
            got = read(got, None, f"the {name}")
            if got.shape == memory.shape:
                raise Mistake(
                    f"You give back all the memory, with the part that is still empty: of the {name} only "
                    f"the first length + seq = {end} tokens are to be looked at."
                )
            if got.shape[2:3] == (new,) and new != end:
                raise Mistake("You give back the new tokens alone; the query looks at the old ones too.")
            got = read(got, shape, f"the {name}")
            if not close(memory[:, :, :end], right[:, :, :end]):
                if close(memory[:, :, :new], right[:, :, length:end]) and length:
                    raise Mistake("You write to the beginning of the memory, over the older tokens; start at length.")
                if close(memory[:, :, :end], other[:, :, :end]):
                    raise Mistake("Keys and values are swapped.")
                raise Mistake(
                    f"The {name} are not written into the memory (keys[:, :, length:...] = k): at the next "
                    "token they would be missing."
                )
            judge(got, right[:, :, :end], (other[:, :, :end], "Keys and values are swapped."), what=f"the {name}")
        length = end


KV_CACHE = Exercise(
    "02.kv_cache",
    "The KV cache",
    "Write kv_cache(keys, values, length, k, v): the memory keys and values (batch, kv_heads, room, head_dim) holds "
    "`length` tokens. Write k and v (batch, kv_heads, seq, head_dim) of the new tokens behind them, in place, and "
    "return the keys and values of all tokens so far.",
    Level(difficulty=2, minutes=10, points=3),
    "2.2, A.2.1",
    (
        "The new tokens go to the places length to length + seq of dimension 2.",
        "Return slices keys[:, :, :end] and values[:, :, :end]: the rest is still empty.",
    ),
    check_cache,
    append,
    in_place=True,
    lesson="Keys and values of old tokens never change, since no token sees a later one. The causal mask is what makes "
    "a cache possible; a model that looks both ways has to compute everything anew.",
    extra=True,
)


# ---- masks -------------------------------------------------------------------------------------------------------


def causal_mask(q_len: int, k_len: int) -> Tensor:
    """The library's mask, without its dimensions for batch and head."""
    return attention.causal_mask(q_len, k_len)[0, 0]


def as_mask(value: object, shape: tuple[int, ...]) -> Tensor:
    """A mask of bools, or of 0 and 1, also with dimensions of size 1 in front."""
    mask = read(value, None, "the mask")
    while mask.ndim > len(shape) and mask.shape[0] == 1:
        mask = mask[0]
    mask = read(mask, shape, "the mask")
    if not ((mask == 0) | (mask == 1)).all():
        raise Mistake("The mask must hold True and False (or 1 and 0), True where a token may look.")
    return mask.bool()


def check_causal_mask(f: Callable) -> None:
    for q_len, k_len in ((4, 4), (2, 5), (1, 3)):
        got = as_mask(f(q_len, k_len), (q_len, k_len))
        right = causal_mask(q_len, k_len)
        past = k_len - q_len
        everything = torch.ones(q_len, k_len, dtype=torch.bool)
        judge(
            got,
            right,
            (everything.tril(past + 1), "The mask lets a token see the next one."),
            (everything.tril(past - 1), "A token must see itself too."),
            (~right, "The mask is inverted: True is where a token may look."),
            (everything.triu(past), "The mask is upside down: True is above the diagonal, in the future."),
            (
                everything.tril(),
                "With a cache the queries are the last q_len of k_len positions: query 0 stands "
                f"at position {past} and sees all before it.",
            ),
            (everything, "Everything may look at everything; the future must be hidden."),
            what=f"the mask for {q_len} queries and {k_len} keys",
        )


CAUSAL_MASK = Exercise(
    "02.causal_mask",
    "The causal mask",
    "Write causal_mask(q_len, k_len) -> bool (q_len, k_len), True where a query may look. The queries are the last "
    "q_len of the k_len positions (with a cache there are more keys than queries).",
    Level(difficulty=2, minutes=8, points=2),
    "2.2",
    (
        "Query i stands at position k_len - q_len + i.",
        "It may look at every key whose position is not larger.",
        "torch.tril has a second argument, the diagonal.",
    ),
    check_causal_mask,
    causal_mask,
    lesson="With it one pass trains every position, each as if the text ended there: as many examples as tokens. "
    "A model without it would see what it is to predict, and has to be shown gaps instead.",
    picture=draw_causal_mask,
)


def document_mask(segments: Tensor) -> Tensor:
    """The library's mask, without its dimension for heads."""
    return attention.document_mask(segments)[:, 0]


def check_document_mask(f: Callable) -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 0, 0]])
    got = as_mask(f(segments), (2, 6, 6))
    same = segments[:, :, None] == segments[:, None, :]
    real = (segments > 0)[:, :, None] & (segments > 0)[:, None, :]
    judge(
        got,
        document_mask(segments),
        (same & real, "Within a document a token sees the next ones: the mask must be causal too."),
        (same, "Within a document a token sees the next ones, and padding sees padding."),
        (same.tril(), "Padding (segment 0) is no document: its tokens must not see each other."),
        (real.tril(), "Documents see each other: compare the segment numbers of query and key."),
        (torch.ones_like(same).tril(), "That is only causal: documents see each other."),
        (same.tril(-1) & real, "A token must see itself too."),
        what="the mask",
    )


DOCUMENT_MASK = Exercise(
    "02.document_mask",
    "Documents packed in one row",
    "Write document_mask(segments) -> bool (batch, seq, seq): causal, and only within one document. segments (batch, "
    "seq) numbers each token's document from 1; 0 is padding, which sees nothing and is seen by nobody.",
    Level(difficulty=2, minutes=10, points=2),
    "3.1",
    ("Compare segments[:, :, None] with segments[:, None, :].", "Then make it causal, and take the padding out."),
    check_document_mask,
    document_mask,
    lesson="A model learns to look wherever it may. Unmasked, it would spend attention on texts that stand beside its "
    "own by chance, and find other company, or none, when it answers.",
    extra=True,
    picture=draw_document_mask,
)


# ---- the feed-forward --------------------------------------------------------------------------------------------


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The library's feed-forward with these weights."""
    ffn = network.FeedForward(gate.shape[1], gate.shape[0])
    for layer, weight in ((ffn.gate, gate), (ffn.up, up), (ffn.down, down)):
        layer.weight.data = weight
    return ffn(x).detach()


def check_swiglu(f: Callable) -> None:
    x, gate, up, down = randn(2, 3, 4), randn(6, 4, seed=1), randn(6, 4, seed=2), randn(4, 6, seed=3)
    g, u = x @ gate.T, x @ up.T
    wrongs = [
        (
            (torch.sigmoid(g) * u) @ down.T,
            "sigmoid(gate) * up is the older GLU; SwiGLU's gate is silu(z) = z * sigmoid(z).",
        ),
        ((torch.relu(g) * u) @ down.T, "That is ReGLU: its gate is relu, SwiGLU's is silu(z) = z * sigmoid(z)."),
        ((functional.gelu(g) * u) @ down.T, "That is GEGLU: its gate is gelu, SwiGLU's is silu(z) = z * sigmoid(z)."),
        ((g * functional.silu(u)) @ down.T, "silu belongs around the gate, not around up."),
        (functional.silu(g) @ down.T, "up is missing: the gate multiplies it, number by number."),
        (functional.silu(g * u) @ down.T, "silu goes over the gate alone, before the two are multiplied."),
        ((g * u) @ down.T, "The gate needs its silu(z) = z * sigmoid(z); without it nothing is shut."),
        ((functional.silu(g) + u) @ down.T, "Gate and up are multiplied, not added."),
    ]
    got = read(f(x, gate, up, down), x.shape)
    judge(got, swiglu(x, gate, up, down), *wrongs, tolerance=1e-3)


SWIGLU = Exercise(
    "02.swiglu",
    "SwiGLU",
    "Write swiglu(x, gate, up, down) for x (batch, seq, dim) and weights as torch keeps them: gate and up (ffn_dim, "
    "dim), down (dim, ffn_dim). The feed-forward is down of silu(gate of x) times up of x; silu(z) is z * sigmoid(z).",
    Level(difficulty=1, minutes=5, points=2),
    "2.2; arXiv 2002.05202",
    ("A weight (out, in) is applied by x @ weight.T.", "torch.nn.functional has silu."),
    check_swiglu,
    swiglu,
    lesson="A product of two views lets one feature shut off another, which a sum cannot. It takes three matrices "
    "instead of two, so each is made narrower for the same number of weights.",
    extra=True,
    picture=draw_swiglu,
)


# ---- questions and predictions -----------------------------------------------------------------------------------

_70B = SIZES["70b"]
_CACHE = 2 * _70B.n_layers * _70B.n_kv_heads * _70B.head_size * 4096 * 2 / 2**30  # GiB of one sequence of 4096 in fp16

CACHE_SIZE = Exercise(
    "02.cache_size",
    "How large is the cache of the 70B?",
    "Llama 2 70B: 80 layers, 64 heads, 8 KV heads, head_dim 128. How many GiB does the KV cache of one sequence of "
    "4,096 tokens take in 16 bit?",
    Level(difficulty=2, minutes=5, points=1),
    "2.2, table 1",
    ("Keys and values, for each layer, each KV head, each token: 128 numbers of 2 bytes.",),
    Number(
        _CACHE,
        (
            (_CACHE * 8, "That counts 64 heads: only the 8 KV heads are kept, which is what GQA is for."),
            (_CACHE / 2, "That is half of it: keys and values are both kept."),
            (_CACHE * 2, "A number in 16 bit takes 2 bytes, not 4."),
            (_CACHE / 80, "That is one layer; there are 80."),
        ),
        relative=0.08,
    ),
    lesson="About a hundred such sequences weigh as much as the model itself: how many people can be served at once is "
    "a matter of the cache, and so of the KV heads.",
)

WHY_ROOT = Exercise(
    "02.why_root",
    "Why the square root?",
    "The plot shows attention weights without dividing the scores by sqrt(head_dim). What is wrong with them?",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("How large is a product of two random vectors?",),
    Choice(
        a=("they do not add up to 1", "Softmax always adds up to 1, whatever the scores."),
        b="nearly all weight is on one key, so gradients vanish",
        c=(
            "they are nearly equal for all keys",
            "That is what dividing by too much would do; larger scores make the softmax sharper, not flatter.",
        ),
        d=("they can be negative", "Softmax is never negative; only scores can be."),
    ),
    lesson="A product adds up head_dim terms, so its variance grows with head_dim and its size with the root. Dividing "
    "by that makes scores of heads of any size alike, and the softmax still able to learn.",
)

GQA_LOSS = Prediction(
    "02.gqa_loss",
    "What does sharing KV heads cost?",
    "Two of our models differ only in their KV heads: 4 (each head its own) or 1 (all share one), with equal "
    "parameters. Predict how much higher the loss of the second is, in nats.",
    Level(difficulty=2, minutes=3, points=1),
    "2.2, A.2.1",
    ("In the report's 30B models multi-query lost 0.4 points of 44 on average.",),
    Guess(
        -1.0,
        3.0,
        "Sharing costs more than you thought.",
        "Sharing costs less than you thought: heads differ mostly by what they ask, not by what they look at.",
        absolute=0.03,
    ),
    lesson="The report: mean of eleven tasks 44.15 with own heads, 43.76 with one, 44.28 with groups.",
)


EXERCISES = (
    RMS_NORM,
    ROPE,
    GROUPED_ATTENTION,
    KV_CACHE,
    CAUSAL_MASK,
    DOCUMENT_MASK,
    SWIGLU,
    CACHE_SIZE,
    WHY_ROOT,
    GQA_LOSS,
)
