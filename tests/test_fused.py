"""Gradients by hand, against finite differences and against the plain forms."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from llama2lab.model import attention, fused
from llama2lab.model.attention import Attended, causal_mask, document_mask, score_bias
from llama2lab.model.fused import RMSNormed, SwiGLU, token_nll
from llama2lab.model.rope import rope_tables, rotate


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)


def same(fast, plain, inputs):
    """Values and gradients."""
    torch.testing.assert_close(fast, plain)
    ask = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9), dtype=plain.dtype)
    for one, other in zip(torch.autograd.grad(fast, inputs, ask), torch.autograd.grad(plain, inputs, ask), strict=True):
        torch.testing.assert_close(one, other)


def test_rms_norm() -> None:
    x, weight = numbers(2, 3, 8), numbers(8, seed=1)
    assert gradcheck(lambda x, w: RMSNormed.apply(x, w, 1e-5), (x, weight))
    same(RMSNormed.apply(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5), (x, weight))


def test_swiglu() -> None:
    gate, up = numbers(3, 8), numbers(3, 8, seed=1)
    assert gradcheck(SwiGLU.apply, (gate, up))
    same(SwiGLU.apply(gate, up), F.silu(gate) * up, (gate, up))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_nll_of_tokens_in_stretches(monkeypatch, temperature) -> None:
    monkeypatch.setattr(fused, "STRETCH", 3)  # seven rows in three stretches
    hidden, weight, targets = numbers(7, 4), numbers(11, 4, seed=1), torch.tensor([0, 10, 3, 3, 5, 1, 9])
    assert gradcheck(lambda h, w: token_nll(h, w, targets, temperature), (hidden, weight))
    plain = F.cross_entropy(hidden @ weight.T / temperature, targets, reduction="none")
    same(token_nll(hidden, weight, targets, temperature), plain, (hidden, weight))


def plain_attended(qkv, cos, sin, mask, n_heads, n_kv_heads):
    """attention.plain_attention between its two products with weights."""
    batch, seq, _ = qkv.shape
    q, k, v = (
        part.view(batch, seq, -1, cos.shape[-1]).transpose(1, 2)
        for part in qkv.split([n * cos.shape[-1] for n in (n_heads, n_kv_heads, n_kv_heads)], -1)
    )
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k, v = (part.repeat_interleave(n_heads // n_kv_heads, 1) for part in (k, v))
    weights = (q @ k.transpose(2, 3) / cos.shape[-1] ** 0.5).masked_fill(~mask, attention.HIDDEN).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, seq, -1)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("rows", [256, 4])  # one block of queries, or three of which the last is shorter
@pytest.mark.parametrize("packed", [False, True])
def test_attention(monkeypatch, n_heads, n_kv_heads, rows, packed) -> None:
    monkeypatch.setattr(attention, "ROWS", rows)
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]])
    mask = document_mask(segments) if packed else causal_mask(10, 10)
    cos, sin = (table[:10].double()[None, None] for table in rope_tables(4, 1e4, 64, None, 10))
    qkv = numbers(2, 10, (n_heads + 2 * n_kv_heads) * 4)
    bias = score_bias(mask, n_heads, n_kv_heads, torch.float64)
    fast = Attended.apply(qkv, cos, sin, bias, n_heads, n_kv_heads)
    plain = plain_attended(qkv, cos, sin, mask, n_heads, n_kv_heads)
    real = (segments > 0)[..., None] if packed else torch.ones(2, 10, 1, dtype=torch.bool)
    same(fast * real, plain * real, (qkv,))  # what padding sees means nothing
    assert gradcheck(lambda x: Attended.apply(x, cos, sin, bias, n_heads, n_kv_heads), (qkv,), fast_mode=True)


def test_types_are_those_of_the_input() -> None:
    """In bf16 the states stay bf16, the gradients of float32 weights float32."""
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(8, requires_grad=True)
    y = RMSNormed.apply(x, weight, 1e-5)
    one, other = torch.autograd.grad(y.sum(), (x, weight))
    assert (y.dtype, one.dtype, other.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    head = torch.randn(5, 8, requires_grad=True)
    nll = token_nll(x, head, torch.tensor([0, 1, 4]))
    one, other = torch.autograd.grad(nll.mean(), (x, head))
    assert (nll.dtype, one.dtype, other.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_without_a_gradient_keep_no_probabilities(monkeypatch, mode) -> None:
    """Scoring with a large vocabulary: what the gradient alone needs is not held."""
    hidden, weight = torch.randn(4, 8), torch.randn(1000, 8, requires_grad=True)
    asked, plain = [], torch.Tensor.new_empty

    def new_empty(tensor, *shape, **more):
        asked.append(shape)
        return plain(tensor, *shape, **more)

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    with mode():
        nll = token_nll(hidden, weight, torch.arange(4))
    assert (0, 1000) in asked and (4, 1000) not in asked
    torch.testing.assert_close(nll, F.cross_entropy(hidden @ weight.T, torch.arange(4), reduction="none"))
