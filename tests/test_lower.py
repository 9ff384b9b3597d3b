"""The upper layers trained alone, on kept states of the lower ones: the same numbers as with no state kept."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.model.attention import document_mask, document_positions
from llama2lab.model.lower import Lower, train_upper
from llama2lab.model.network import SIZES, Llama
from llama2lab.stages.ppo import Critic
from llama2lab.stages.reward import RewardModel

CONFIG = replace(SIZES["nano"], n_layers=4, tie_embeddings=True)
PAD = 0


def models(pad: int = PAD) -> tuple[Llama, Llama]:
    """The same model twice: as it is, and on a lower part of three layers."""
    plain = Llama(CONFIG, seed=3).eval()
    return plain, train_upper(copy.deepcopy(plain), Lower(copy.deepcopy(plain), 3, pad))


def rows() -> Tensor:
    """(3, 7) texts of several lengths, padded on the right."""
    return torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, PAD, PAD, PAD, PAD], [9, 8, 7, 6, 5, PAD, PAD]])


def test_states_are_those_of_the_whole_model() -> None:
    plain, upper = models()
    real = rows() != PAD
    for _ in range(2):  # computed, then kept
        assert torch.allclose(plain.hidden(rows())[real], upper.hidden(rows())[real], atol=1e-6)


def test_packed_texts_see_themselves_alone() -> None:
    plain, upper = models()
    tokens = torch.tensor([[5, 6, 7, 9, 8, 7, 6, PAD, PAD]])
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
    packed = tokens, document_positions(segments), document_mask(segments)
    assert torch.allclose(plain.hidden(*packed)[:, :7], upper.hidden(*packed)[:, :7], atol=1e-6)


def test_a_text_is_computed_once_whatever_it_is_padded_to() -> None:
    _, upper = models()
    assert isinstance(upper.lower, Lower)
    upper.hidden(rows())
    read = upper.lower.computed
    assert read == 7 + 4 + 6  # one padding token each
    upper.hidden(torch.cat([rows(), torch.full((3, 2), PAD)], 1)[1:])
    packed = torch.tensor([[9, 8, 7, 6, 5, PAD, 5, 6, 7, PAD]]), torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]])
    segments = torch.tensor([[1] * 6 + [2] * 4])
    upper.hidden(*packed, document_mask(segments))
    assert upper.lower.computed == read


def test_the_padding_may_be_the_token_that_ends_a_text() -> None:
    plain, upper = models(pad=11)
    tokens = torch.tensor([[5, 6, 11, 11, 11], [5, 6, 7, 8, 11]])
    for row, end in ((0, 3), (1, 5)):
        assert torch.allclose(plain.hidden(tokens)[row, :end], upper.hidden(tokens)[row, :end], atol=1e-6)


def test_gradients_of_the_upper_layers_are_those_of_the_whole_model() -> None:
    plain, upper = models()
    with torch.inference_mode():
        upper.hidden(rows())  # states that scoring has kept can be trained on
    for model in (plain, upper):
        model.hidden(rows())[:, 0].square().sum().backward()
    assert torch.allclose(plain.layers[3].ffn.up.weight.grad, upper.layers[3].ffn.up.weight.grad, atol=1e-6, rtol=1e-4)
    assert [name for name, p in upper.named_parameters() if p.requires_grad and not name.startswith("layers.3.")] == [
        "norm.weight"
    ]


def test_generation_goes_through_all_layers() -> None:
    plain, upper = models()
    cache = upper.new_cache(1, 8)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.allclose(plain(tokens), upper(tokens, cache=cache), atol=1e-5)


def test_states_beyond_the_limit_go_the_longest_unread_first() -> None:
    plain, _ = models()
    lower = Lower(plain, 3, PAD, kept_bytes=7 * CONFIG.dim * 4)
    upper = train_upper(copy.deepcopy(plain), lower)
    texts = [torch.tensor([[i, i + 1, i + 2]]) for i in (1, 11, 21)]
    for text in texts:
        upper.hidden(text)
    assert lower.size <= 7 * CONFIG.dim * 4
    upper.hidden(texts[2])
    assert lower.computed == 9
    upper.hidden(texts[0])
    assert lower.computed == 12


def test_reward_critic_and_copies_stand_on_the_same_lower_part() -> None:
    _, upper = models()
    critic = Critic(RewardModel(copy.deepcopy(upper)))
    for model in (critic.backbone, copy.deepcopy(upper)):
        assert model.lower is upper.lower
    assert critic.backbone.layers[0] is upper.layers[0]
    trained = [name for name, p in critic.named_parameters() if p.requires_grad]
    assert trained and all("layers.3" in name or "norm" in name or name == "head.weight" for name in trained)


def test_a_model_trained_as_a_whole_is_refused() -> None:
    _, upper = models()
    assert isinstance(upper.lower, Lower)
    with pytest.raises(LabError, match="trained as a whole"):
        train_upper(Llama(CONFIG, seed=4), upper.lower)


@pytest.mark.parametrize("layers", [0, 4, 9])
def test_a_lower_part_leaves_some_layer_above_it(layers: int) -> None:
    with pytest.raises(LabError, match="1 to 3 can be trained alone"):
        Lower(Llama(CONFIG, seed=3), layers, PAD)


def test_what_is_kept_is_of_one_precision() -> None:
    _, upper = models()
    assert isinstance(upper.lower, Lower)
    machine = Machine(torch.device("cpu"), "bf16")
    with torch.no_grad():
        whole = upper.hidden(rows())
        with machine.autocast():
            half = upper.hidden(rows())
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)
