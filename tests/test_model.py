"""The network against transformers' Llama, the report's sizes, and the masks."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llama2lab.engine.errors import LabError
from llama2lab.model.attention import (
    Attention,
    causal_mask,
    document_mask,
    document_positions,
    left_padding_mask,
    plain_attention,
    product,
    score_bias,
)
from llama2lab.model.checkpoint import load_model, save_model
from llama2lab.model.network import SIZES, Llama, ModelConfig

NANO = SIZES["nano"]
SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Texts that are short enough to test are still attended in more than one block."""
    monkeypatch.setattr("llama2lab.model.attention.ROWS", 128)


def loud(model: Llama) -> Llama:
    """Larger weights, so that attention is far from uniform and mistakes show."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model.eval()


def tokens(batch: int, seq: int, vocab: int = 512) -> torch.Tensor:
    return torch.randint(8, vocab, (batch, seq), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name, count", [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("34b", 33_743_970_304), ("70b", 68_976_648_192)]
)
def test_llama2_sizes(name, count):
    with torch.device("meta"):
        model = Llama(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"n_kv_heads": 4},
        {"n_kv_heads": 1},
        {"tie_embeddings": True},
        {"head_dim": 16},
        *({"rope_scaling": s, "max_seq_len": 128 if s["rope_type"] == "dynamic" else 256} for s in SCALINGS),
    ],
    ids=str,
)
def test_equals_transformers(change, tmp_path):
    ours = loud(Llama(replace(NANO, **change), seed=1))
    save_model(tmp_path / "m", ours)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "m").eval()
    x = tokens(2, 200)  # attended in two blocks
    with torch.no_grad():
        expected = theirs(x).logits
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(load_model(tmp_path / "m")(x), expected, atol=1e-4, rtol=0)


def test_gradients_equal_transformers(tmp_path):
    ours = loud(Llama(NANO)).train()
    save_model(tmp_path / "m", ours)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "m")
    x = tokens(2, 180)
    for model in (ours, theirs):
        logits = model(x) if model is ours else model(x).logits
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    torch.testing.assert_close(ours.embed.weight.grad, theirs.model.embed_tokens.weight.grad, atol=1e-5, rtol=1e-3)
    q = theirs.model.layers[0].self_attn.q_proj.weight.grad
    torch.testing.assert_close(ours.layers[0].attention.qkv.weight.grad[: len(q)], q, atol=1e-5, rtol=1e-3)


def test_no_token_sees_the_future():
    model, x = loud(Llama(NANO)), tokens(1, 150)
    y = x.clone()
    y[0, 100:] = 9
    with torch.no_grad():
        a, b = model(x), model(y)
    torch.testing.assert_close(a[:, :100], b[:, :100], atol=1e-5, rtol=0)
    assert not torch.allclose(a[:, 100:], b[:, 100:], atol=1e-2)


def test_cache_in_pieces_equals_one_pass():
    model, x = loud(Llama(NANO)), tokens(2, 250)
    cache = model.new_cache(2, 250)
    with torch.no_grad():
        pieces = [model(x[:, a:b], cache=cache) for a, b in ((0, 70), (70, 249), (249, 250))]
        torch.testing.assert_close(torch.cat(pieces, 1), model(x), atol=1e-4, rtol=0)
    with pytest.raises(LabError, match="KV cache"):
        model(x[:, :1], cache=cache)


def test_left_padding_changes_nothing():
    model, x = loud(Llama(NANO)), tokens(1, 180)
    padding = torch.tensor([30])
    padded = torch.cat([torch.full((1, 30), 3), x], 1)
    positions = (torch.arange(210)[None] - 30).clamp(min=0)
    with torch.no_grad():
        y = model(padded, positions, left_padding_mask(padding, 210, 210))
        assert y.isfinite().all()  # rows of padding see nothing at all
        torch.testing.assert_close(y[:, 30:], model(x), atol=1e-4, rtol=0)


def test_packed_documents_are_strangers():
    model = loud(Llama(NANO))
    a, b = tokens(1, 90), tokens(1, 70).flip(1)
    packed = torch.cat([a, b, torch.full((1, 10), 3)], 1)
    segments = torch.tensor([[1] * 90 + [2] * 70 + [0] * 10])
    with torch.no_grad():
        y = model(packed, document_positions(segments), document_mask(segments))
        assert y.isfinite().all()
        torch.testing.assert_close(y[:, :90], model(a), atol=1e-4, rtol=0)
        torch.testing.assert_close(y[:, 90:160], model(b), atol=1e-4, rtol=0)


def test_masks():
    assert causal_mask(2, 4)[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    segments = torch.tensor([[1, 1, 2, 0]])
    assert document_mask(segments)[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert document_positions(torch.tensor([[1, 1, 2, 2, 2, 0, 0]])).tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    assert left_padding_mask(torch.tensor([0, 2]), 1, 3)[:, 0, 0].int().tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_plain_attention_is_the_fast_one(monkeypatch, kv_heads):
    """One layer after another, for packed documents, left padding, and new tokens behind a cache."""
    model, x = loud(Llama(replace(NANO, n_kv_heads=kv_heads))), tokens(2, 210)
    segments = torch.tensor([[1] * 150 + [2] * 60, [1] * 80 + [2] * 100 + [0] * 30])
    padding = torch.tensor([0, 30])

    def everything() -> list[torch.Tensor]:
        """Logits of the tokens that are no padding, (tokens, vocab)."""
        cache = model.new_cache(2, 220)
        packed = model(x, document_positions(segments), document_mask(segments))
        padded = model(x, (torch.arange(210) - padding[:, None]).clamp(min=0), left_padding_mask(padding, 210, 210))
        return [
            model(x).flatten(0, 1),
            packed[segments > 0],
            padded[torch.arange(210) >= padding[:, None]],
            *(model(x[:, a:b], cache=cache).flatten(0, 1) for a, b in ((0, 150), (150, 209), (209, 210))),
        ]

    def plain(attention, x, cos, sin, bias, cache, layer):
        return plain_attention(attention, x, cos, sin, masks[-1], cache, layer)

    def mask_is_kept(mask, *settings):
        masks.append(mask)
        return score_bias(mask, *settings)

    masks: list[torch.Tensor] = []
    with torch.no_grad():
        fast = everything()
        monkeypatch.setattr("llama2lab.model.network.score_bias", mask_is_kept)
        monkeypatch.setattr(Attention, "forward", plain)
        for one, other in zip(everything(), fast, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert len(masks) == 6


def test_the_plain_attention_learns_as_the_fast_one():
    model, x = loud(Llama(NANO)), tokens(2, 180)
    attention, states = model.layers[0].attention, model.embed(x).detach()
    mask = causal_mask(180, 180)
    cos, sin = model.rope_at(torch.arange(180)[None])
    plain = plain_attention(attention, states, cos, sin, mask)
    fast = attention(states, cos, sin, score_bias(mask, 4, 2, torch.float32), None, 0)
    torch.testing.assert_close(plain, fast, atol=1e-5, rtol=0)
    one, other = (torch.autograd.grad(y.square().sum(), attention.qkv.weight)[0] for y in (plain, fast))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_rotary_score_depends_on_distance_alone():
    model, x = loud(Llama(NANO)), tokens(1, 20)
    with torch.no_grad():
        near = model(x, torch.arange(20)[None])
        far = model(x, torch.arange(100, 120)[None])
    torch.testing.assert_close(near, far, atol=1e-3, rtol=0)


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = Llama(NANO, seed=3), Llama(NANO, seed=3), Llama(NANO, seed=4)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    assert torch.equal(a.layers[1].ffn.up.weight, b.layers[1].ffn.up.weight)
    assert not torch.equal(a.embed.weight, c.embed.weight)
    assert a.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert a.layers[0].ffn.down.weight.std().item() == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2 * 2 layers)


def test_bf16_autocast_is_near_float32():
    model, x = loud(Llama(NANO)), tokens(2, 70)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x).float()
    assert (exact - rough).std() < 0.03 * exact.std()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dim": 33}, "not divisible by n_heads"),
        ({"n_kv_heads": 3}, "not divisible by n_kv_heads"),
        ({"head_dim": 7}, "odd"),
        ({"n_layers": 0}, "n_layers"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "below 1"),
    ],
)
def test_impossible_configs(change, words):
    with pytest.raises(LabError, match=words):
        replace(NANO, **change)


def test_too_long_a_text():
    with pytest.raises(LabError, match="at most 256 tokens, here are 257"):
        Llama(NANO)(tokens(1, 257))


def test_presets_match_transformers_defaults():
    ours, theirs = SIZES["7b"], LlamaConfig()  # whose defaults are Llama 2 7B's
    assert (ours.dim, ours.n_layers, ours.n_heads, ours.ffn_dim, ours.vocab_size) == (
        theirs.hidden_size,
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        theirs.intermediate_size,
        theirs.vocab_size,
    )
    assert isinstance(ours, ModelConfig)


@pytest.mark.parametrize("rows", [(1,), (2,), (4, 8), (33,)])
def test_a_product_turned_round_is_the_same(rows):
    weight, x = torch.randn(1024, 512), torch.randn(*rows, 512)
    plain = torch.nn.functional.linear(x, weight)
    with torch.no_grad():
        turned = product(x, weight)
        assert turned.is_contiguous()
        torch.testing.assert_close(turned, plain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(product(x.bfloat16(), weight.bfloat16()), plain.bfloat16(), atol=0.5, rtol=0.05)
    assert product(x, weight.requires_grad_()).requires_grad
