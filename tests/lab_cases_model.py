"""Answers to the exercises of notebook 02: right ones in other styles, and wrong ones with words of their message."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from llama2lab.lessons.n02_transformer.exercises import (
    CAUSAL_MASK,
    DOCUMENT_MASK,
    GROUPED_ATTENTION,
    KV_CACHE,
    RMS_NORM,
    ROPE,
    SWIGLU,
)


def rms_loop(x, weight, eps):
    out = torch.empty_like(x, dtype=torch.float64)
    for index in np.ndindex(*x.shape[:-1]):
        row = x[index].double()
        out[index] = row / math.sqrt(float((row * row).mean()) + eps) * weight
    return out


def rms_numpy(x, weight, eps):
    x, weight = x.numpy(), weight.numpy()
    return weight * x / np.sqrt((x**2).mean(-1)[..., None] + eps)


def rms_transposed(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps).transpose(0, 1).contiguous().transpose(0, 1)


def rope_complex(x, theta):
    half = x.shape[-1] // 2
    turn = torch.polar(
        torch.ones(x.shape[2], half),
        torch.outer(torch.arange(x.shape[2]).float(), theta ** (-torch.arange(half) / half)),
    )
    z = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([z.real, z.imag], -1)


def rope_loop(x, theta):
    out, half = x.clone().double(), x.shape[-1] // 2
    for t in range(x.shape[2]):
        for i in range(half):
            c, s = math.cos(t * theta ** (-2 * i / (2 * half))), math.sin(t * theta ** (-2 * i / (2 * half)))
            a, b = x[:, :, t, i], x[:, :, t, i + half]
            out[:, :, t, i], out[:, :, t, i + half] = a * c - b * s, a * s + b * c
    return out


def rope(x, theta, sign=1.0, start=0, power=2.0, neighbours=False, lost=False):
    half = x.shape[-1] // 2
    at = torch.arange(start, start + x.shape[2]).float()
    angle = torch.outer(at, theta ** (-power * torch.arange(half) / (2 * half)))
    cos, sin = angle.cos(), sign * angle.sin()
    if neighbours:
        out = torch.empty_like(x)
        out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
        return out
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - (0 if lost else b * sin), b * cos + a * sin], -1)


def attention(q, k, v, scale=None, mask="causal", repeat=False, dim=-1):
    group, n = q.shape[1] // k.shape[1], q.shape[2]
    k, v = (t.repeat(1, group, 1, 1) if repeat else t.repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    diagonal = {"causal": 1, "wide": 2, "narrow": 0, "none": n}[mask]
    return scores.masked_fill(torch.ones(n, n).triu(diagonal).bool(), -math.inf).softmax(dim) @ v


def attention_torch(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention_loop(q, k, v):
    out, group = torch.zeros_like(q, dtype=torch.float64), q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                w = (k[b, h // group, : t + 1] @ q[b, h, t] / math.sqrt(q.shape[-1])).softmax(0)
                out[b, h, t] = w @ v[b, h // group, : t + 1]
    return out


def cache_copy(keys, values, length, k, v):
    end = length + k.shape[2]
    keys.narrow(2, length, k.shape[2]).copy_(k)
    values.narrow(2, length, k.shape[2]).copy_(v)
    return [keys[:, :, :end].clone(), values[:, :, :end].clone()]


def cache_loop(keys, values, length, k, v):
    for i in range(k.shape[2]):
        keys[:, :, length + i], values[:, :, length + i] = k[:, :, i], v[:, :, i]
    return keys[..., : length + k.shape[2], :], values[..., : length + k.shape[2], :]


def cache_all(keys, values, length, k, v):
    cache_copy(keys, values, length, k, v)
    return keys, values


def cache_new(keys, values, length, k, v):
    cache_copy(keys, values, length, k, v)
    return k, v


def cache_start(keys, values, length, k, v):
    keys[:, :, : k.shape[2]], values[:, :, : k.shape[2]] = k, v
    return keys[:, :, : length + k.shape[2]], values[:, :, : length + k.shape[2]]


def cache_cat(keys, values, length, k, v):
    return torch.cat([keys[:, :, :length], k], 2), torch.cat([values[:, :, :length], v], 2)


def cache_swapped(keys, values, length, k, v):
    return cache_copy(keys, values, length, v, k)


def ones(q, k):
    return torch.ones(q, k, dtype=torch.bool)


def document(segments, causal=True, padding=True, same=True):
    n = segments.shape[1]
    mask = torch.ones(len(segments), n, n, dtype=torch.bool)
    if same:
        mask &= segments.unsqueeze(2) == segments.unsqueeze(1)
    if causal:
        mask &= torch.arange(n) <= torch.arange(n)[:, None]
    if padding:
        mask &= (segments != 0)[:, :, None] & (segments != 0)[:, None, :]
    return mask


def document_loop(segments):
    rows = segments.tolist()
    return [[[int(j <= i and row[i] == row[j] != 0) for j in range(len(row))] for i in range(len(row))] for row in rows]


RIGHT = [
    (SWIGLU, lambda x, gate, up, down: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)),
    (SWIGLU, lambda x, gate, up, down: (down @ ((z := gate @ x.mT) * torch.sigmoid(z) * (up @ x.mT))).mT),
    (RMS_NORM, rms_loop),
    (RMS_NORM, rms_numpy),
    (RMS_NORM, rms_transposed),
    (RMS_NORM, lambda x, w, e: F.rms_norm(x.bfloat16(), w.shape, w.bfloat16(), e)),
    (RMS_NORM, lambda x, weight, eps: x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight),
    (ROPE, rope_complex),
    (ROPE, rope_loop),
    (ROPE, rope),
    (GROUPED_ATTENTION, attention),
    (GROUPED_ATTENTION, attention_torch),
    (GROUPED_ATTENTION, attention_loop),
    (KV_CACHE, cache_copy),
    (KV_CACHE, cache_loop),
    (CAUSAL_MASK, lambda q, k: torch.arange(k) <= torch.arange(k - q, k)[:, None]),
    (CAUSAL_MASK, lambda q, k: [[1 if j <= i + k - q else 0 for j in range(k)] for i in range(q)]),
    (CAUSAL_MASK, lambda q, k: np.tril(np.ones((1, 1, q, k)), k - q)),
    (DOCUMENT_MASK, document),
    (DOCUMENT_MASK, document_loop),
]

WRONG = [
    (SWIGLU, lambda x, g, u, d: (torch.sigmoid(x @ g.T) * (x @ u.T)) @ d.T, "older GLU"),
    (SWIGLU, lambda x, g, u, d: (F.gelu(x @ g.T) * (x @ u.T)) @ d.T, "GEGLU"),
    (SWIGLU, lambda x, g, u, d: ((x @ g.T) * F.silu(x @ u.T)) @ d.T, "around the gate"),
    (SWIGLU, lambda x, g, u, d: F.silu(x @ g.T) @ d.T, "up is missing"),
    (SWIGLU, lambda x, g, u, d: F.silu(x @ g.T) * (x @ u.T), "shape"),
    (RMS_NORM, lambda x, w, e: F.layer_norm(x, w.shape, w, eps=e), "LayerNorm"),
    (RMS_NORM, lambda x, w, e: x / (x.pow(2).mean(-1, keepdim=True) + e).sqrt(), "weight is missing"),
    (RMS_NORM, lambda x, w, e: x / (x.pow(2).sum(-1, keepdim=True) + e).sqrt() * w, "sum of squares"),
    (RMS_NORM, lambda x, w, e: x / x.pow(2).mean(-1, keepdim=True).sqrt() * w, "eps is not used"),
    (RMS_NORM, lambda x, w, e: x / (x.pow(2).mean(-1, keepdim=True).sqrt() + e) * w, "outside of the root"),
    (RMS_NORM, lambda x, w, e: x / (x.pow(2).mean() + e).sqrt() * w, "over all elements"),
    (RMS_NORM, lambda x, w, e: x / (x.pow(2).mean(-1, keepdim=True) + e) * w, "square root is missing"),
    (RMS_NORM, lambda x, w, e: x[..., 0], "shape"),
    (ROPE, lambda x, theta: rope(x, theta, neighbours=True), "neighbours"),
    (ROPE, lambda x, theta: rope(x, theta, sign=-1.0), "wrong way"),
    (ROPE, lambda x, theta: rope(x, theta, start=1), "start at 1"),
    (ROPE, lambda x, theta: rope(x, theta, power=1), "the 2 is missing"),
    (ROPE, lambda x, theta: rope(x, theta, power=-2), "frequencies grow"),
    (ROPE, lambda x, theta: rope(x, theta, lost=True), "keeps the length"),
    (ROPE, lambda x, theta: rope(x, 10000.0), "10000 always"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, repeat=True), "repeat_interleave"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, scale=1.0), "not divided by sqrt"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, scale=1 / q.shape[-1]), "its square root"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, mask="none"), "no mask"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, mask="wide"), "see the next one"),
    (GROUPED_ATTENTION, lambda q, k, v: attention(q, k, v, mask="narrow"), "NaN"),
    (KV_CACHE, cache_all, "still empty"),
    (KV_CACHE, cache_new, "new tokens alone"),
    (KV_CACHE, cache_start, "start at length"),
    (KV_CACHE, cache_cat, "not written into the memory"),
    (KV_CACHE, cache_swapped, "swapped"),
    (KV_CACHE, lambda keys, values, length, k, v: k, "Two tensors"),
    (CAUSAL_MASK, lambda q, k: ones(q, k).tril(k - q + 1), "see the next one"),
    (CAUSAL_MASK, lambda q, k: ones(q, k).tril(k - q - 1), "see itself"),
    (CAUSAL_MASK, lambda q, k: ones(q, k).triu(k - q + 1), "inverted"),
    (CAUSAL_MASK, lambda q, k: ones(q, k).tril(), "last q_len of k_len"),
    (CAUSAL_MASK, lambda q, k: torch.zeros(q, k).masked_fill(ones(q, k).triu(1), -math.inf), "True and False"),
    (DOCUMENT_MASK, lambda s: document(s, causal=False), "causal too"),
    (DOCUMENT_MASK, lambda s: document(s, padding=False), "Padding"),
    (DOCUMENT_MASK, lambda s: document(s, same=False), "Documents see each other"),
]
