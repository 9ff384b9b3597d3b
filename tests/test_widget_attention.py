"""The attention explorer: its weights are those by which the model mixes its values."""

import torch

from llama2lab.model import SIZES, Llama
from llama2lab.widgets.attention import attention_parts, attention_weights

IDS = [1, 9, 30, 31, 7, 100, 2, 5, 64]


def test_weights_are_those_of_the_model():
    model = Llama(SIZES["nano"], seed=3).eval()
    with torch.no_grad():
        for p in model.parameters():  # far from the even weights of a new model
            p.mul_(6.0) if p.ndim > 1 else None
    given = []
    hooks = [layer.attention.out.register_forward_hook(lambda _, args, out: given.append(args[0][0].clone()))
             for layer in model.layers]
    with torch.no_grad():
        model.hidden(torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    weights, cache = attention_parts(model, IDS)
    c, seq = model.config, len(IDS)
    assert weights.shape == (c.n_layers, c.n_heads, seq, seq)
    assert torch.equal(weights, attention_weights(model, IDS))
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5) and (weights.triu(1) == 0).all()
    assert weights.std() > 0.1
    for layer in range(c.n_layers):  # mixed by the weights, the values are what goes into the output matrix
        v = cache.values[layer, 0].repeat_interleave(c.group, 0)  # (n_heads, seq, head_dim)
        mixed = (weights[layer] @ v).transpose(0, 1).reshape(seq, -1)
        assert torch.allclose(mixed, given[layer], atol=1e-5)
