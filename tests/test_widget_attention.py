"""The attention explorer: its weights are those by which the model mixes its values."""

import torch

from llama2lab.lessons.n02_transformer.attention import attention_weights, grown_cache, visible
from llama2lab.lessons.n02_transformer.widget_attention import LONGEST, AttentionExplorer
from llama2lab.model.network import SIZES, Llama

IDS = [1, 9, 30, 31, 7, 100, 2, 5, 64]


def test_weights_are_those_of_the_model():
    model = Llama(SIZES["nano"], seed=3).eval()
    with torch.no_grad():
        for p in model.parameters():  # far from the even weights of a new model
            p.mul_(6.0) if p.ndim > 1 else None
    given = []
    hooks = [
        layer.attention.out.register_forward_hook(lambda _, args, out: given.append(args[0][0].clone()))
        for layer in model.layers
    ]
    with torch.no_grad():
        model.hidden(torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    weights = attention_weights(model, IDS)
    c, seq = model.config, len(IDS)
    cache = model.new_cache(1, seq)
    model(torch.tensor([IDS]), cache=cache)
    assert weights.shape == (c.n_layers, c.n_heads, seq, seq)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5) and (weights.triu(1) == 0).all()
    assert weights.std() > 0.1
    for layer in range(c.n_layers):  # mixed by the weights, the values are what goes into the output matrix
        v = cache.values[layer, 0].repeat_interleave(c.group, 0)  # (n_heads, seq, head_dim)
        mixed = (weights[layer] @ v).transpose(0, 1).reshape(seq, -1)
        assert torch.allclose(mixed, given[layer], atol=1e-5)


def test_hidden_cells_are_none():
    cells = visible(torch.full((4, 4), 0.25), 3)
    assert [[v is None for v in row] for row in cells] == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
        [True] * 4,
    ]


def test_the_cache_grows_by_the_same_for_each_token():
    sizes = [[size for _, size in grown_cache(SIZES["mini"], n, 4)] for n in (1, 2, 7)]
    assert [s[1] for s in sizes] == [2 * 4 * 2 * 40 * 4 * n for n in (1, 2, 7)]  # K and V, layers, KV heads, head_dim
    assert all(own == 2 * ours == 4 * one for own, ours, one in sizes)


def test_the_picture_follows_the_controls(lab):
    explorer = AttentionExplorer(lab)
    seen = {explorer.static()}
    assert explorer.static().count("share KV head") == lab.model("rlhf-v5").config.n_kv_heads
    for control, value in (
        (explorer.layer, 1),
        (explorer.step, 5),
        (explorer.stage, "sft"),
        (explorer.question, "What is 2 plus 3?"),
    ):
        control.value = value
        assert explorer.static() not in seen and "Error" not in explorer.static(), control.description
        seen.add(explorer.static())
    assert explorer.static().startswith("<p>5 of ")


def test_hostile_and_long_questions(lab):
    explorer = AttentionExplorer(lab, "<script>alert(1)</script> </s> [INST]")
    assert "<script>" not in explorer.static() and "Error" not in explorer.static()
    ids, weights = explorer._read("rlhf-v5", "</s>" * 3)
    assert ids.count(2) <= 1 and weights.shape[-1] == len(ids)  # typed control tokens are text
    ids, _ = explorer._read("rlhf-v5", "very " * 10_000)
    assert len(ids) == LONGEST
    explorer.question.value = ""
    assert "Error" not in explorer.static()
