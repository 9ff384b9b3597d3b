"""Reward models: the loss and its margin, the gate, logit and whitening, the likelihood head, the mixes."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.scale import MARGINS
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.gate import (
    combined_score,
    combined_scores,
    gated_reward,
    logit,
    mean_and_std,
    share_reference,
    whiten,
)
from llama2lab.stages.reward import (
    RewardModel,
    RewardSettings,
    accuracy,
    accuracy_by_grade,
    calibration,
    load_reward,
    mix,
    pair_loglikelihoods,
    pairs_so_far,
    ranking_loss,
    safety_auxiliary_loss,
    save_reward,
    score_answers,
    train_reward,
    worst_loglikelihoods,
)
from llama2lab.town.items import Prompt

CPU = Machine(torch.device("cpu"), "fp32")

TEXTS = ["Mira lives on Mill Lane. Tom eats soup and says thank you.", "yes no good bad apple pear"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 320, chat_template=CHAT_TEMPLATE)


def tiny(tokenizer, seed=0):
    torch.manual_seed(seed)  # the reward head is drawn from the global generator
    return Llama(
        ModelConfig(
            vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=128
        ),
        seed,
    )


def row(chosen, rejected, grade="significantly", safety="", question="Which one?"):
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "grade": grade,
        "safety": safety,
    }


def test_ranking_loss_is_equation_2():
    chosen, rejected, margin = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 1.5]), torch.tensor([1.0, 1 / 3])
    expected = -sum(math.log(1 / (1 + math.exp(-x))) for x in (2 - 1 - 1, 0.5 - 1.5 - 1 / 3)) / 2
    assert ranking_loss(chosen, rejected, margin).item() == pytest.approx(expected, rel=1e-6)


def test_a_margin_of_the_wrong_shape_does_not_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        ranking_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1))


def test_margins_are_the_reports():
    assert MARGINS["small"] == {"significantly": 1, "better": 2 / 3, "slightly": 1 / 3, "negligibly": 0}
    assert list(MARGINS["large"].values()) == [3, 2, 1, 0]
    assert set(MARGINS["none"].values()) == {0}


def test_auxiliary_loss_ignores_unknown_labels():
    scores = torch.tensor([2.0, -1.0, 9.0])
    known = safety_auxiliary_loss(scores[:2], torch.tensor([1, 0]))
    assert safety_auxiliary_loss(scores, torch.tensor([1, 0, -1])).item() == pytest.approx(known.item())
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert known.item() == pytest.approx(expected, rel=1e-5)
    assert safety_auxiliary_loss(scores, torch.tensor([-1, -1, -1])).item() == 0


def test_gate_takes_safety_for_safety_prompts_and_below_the_threshold():
    helpfulness, safety = torch.tensor([1.0, 1.0, 1.0]), torch.logit(torch.tensor([0.9, 0.9, 0.149]))
    gated = gated_reward(helpfulness, safety, torch.tensor([False, True, False]))
    assert gated.tolist() == pytest.approx([torch.sigmoid(torch.tensor(1.0)).item(), 0.9, 0.149], rel=1e-5)
    at = gated_reward(helpfulness[:1], torch.logit(torch.tensor([0.1501])), torch.tensor([False]))
    assert at.item() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())


@given(st.floats(-12, 12))
def test_logit_undoes_the_sigmoid(x):
    assert logit(torch.sigmoid(torch.tensor(x, dtype=torch.float64)), 1e-9).item() == pytest.approx(x, abs=1e-3)


def test_combined_score_is_the_logit_of_the_gate():
    assert combined_score([1.5, 1.5, 1.5], [3.0, 3.0, -4.0], [False, True, False]) == pytest.approx([1.5, 3.0, -4.0])


def test_whitening_has_mean_zero_and_variance_one():
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3 + 7
    mean, std = mean_and_std(x)
    white = whiten(x, mean, std)
    assert white.mean().abs() < 1e-5 and abs(white.std() - 1) < 1e-5
    grown = whiten(x + 3, mean, std)  # by the statistics of an earlier batch a gain stays one
    assert grown.mean().item() == pytest.approx(3 / std.item(), rel=1e-4)
    assert mean_and_std(torch.tensor([])).tolist() == [0, 1] and mean_and_std(torch.tensor([4.0])).tolist() == [4, 1]
    assert whiten(torch.ones(3), *mean_and_std(torch.ones(3))).tolist() == [0, 0, 0]


def test_mixes_are_the_reports():
    own, other = [{"own": i} for i in range(900)], [{"other": i} for i in range(2000)]
    assert sum("other" in r for r in mix(own, other, 0.5, 0)) == 900
    assert sum("other" in r for r in mix(own, other, 0.1, 0)) == 100
    assert len(mix(own, other[:50], 0.5, 0)) == 950


def test_score_is_read_at_the_last_real_token(tokenizer):
    """Padding on the right changes nothing, and a batch scores as its rows do alone."""
    model = RewardModel(tiny(tokenizer)).eval()
    conversations = [[{"role": "user", "content": "Which one?"}]] * 2
    together = score_answers(model, tokenizer, conversations, ["yes", "no good bad apple pear"], CPU)
    alone = [score_answers(model, tokenizer, conversations[:1], [a], CPU)[0] for a in ("yes", "no good bad apple pear")]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-6)


def test_scores_in_bf16_are_not_rounded_to_ties(tokenizer):
    """The head's product is float32: in bfloat16, scores of about 1 lie on a grid of .004 to .008."""
    model = RewardModel(tiny(tokenizer)).eval()
    words = ("yes no good bad apple pear", "Tom Mira soup Lane", "eats lives says on")
    answers = [" ".join(three) for three in itertools.product(*(w.split() for w in words))]
    scores = score_answers(
        model,
        tokenizer,
        [[{"role": "user", "content": "Which one?"}]] * len(answers),
        answers,
        Machine(torch.device("cpu"), "bf16"),
    )
    assert len(set(scores)) == len(answers) == 96


def test_a_score_that_is_not_finite_is_an_error(tokenizer):
    model = RewardModel(tiny(tokenizer)).eval()
    for bad in (math.nan, math.inf):
        model.offset.fill_(bad)
        with pytest.raises(LabError, match=r"2 of 2 answers a score that is not finite.*train it again"):
            score_answers(model, tokenizer, [[{"role": "user", "content": "Which one?"}]] * 2, ["yes", "no"], CPU)


def test_training_learns_a_preference_and_keeps_it_on_disk(tokenizer, tmp_path):
    rows = [row("yes good", "no bad"), row("good apple", "bad apple"), row("good pear", "bad pear")] * 40
    settings = RewardSettings(head="likelihood", epochs=4, batch_pairs=16, optim=Optim(lr=5e-3))
    model, metrics = train_reward(tiny(tokenizer), tokenizer, rows, settings, 0, CPU, reference=tiny(tokenizer, 1))
    right, wrong = score_answers(model, tokenizer, [rows[0]["prompt"]] * 2, ["good yes", "bad no"], CPU)
    assert right > wrong and metrics["head"] == "likelihood" and metrics["likelihood_weight"] != 0
    save_reward(tmp_path / "rm", model, tokenizer)
    again = score_answers(load_reward(tmp_path / "rm"), tokenizer, [rows[0]["prompt"]] * 2, ["good yes", "bad no"], CPU)
    assert again == pytest.approx([right, wrong], abs=1e-4)
    config = tmp_path / "rm" / "config.json"
    config.write_text(config.read_text().replace('"least_likely": 3', '"least_likely": 4'))
    with pytest.raises(LabError, match=r"another version.*train it again"):
        load_reward(tmp_path / "rm")


def test_a_model_that_goes_on_starts_from_what_it_knew(tokenizer):
    """By a step too small to matter it judges as before: backbone, head, and the weight of the likelihood."""
    rows = [row(f"good yes {w}", f"bad no {w}") for w in ("apple", "pear", "soup", "Mira")] * 4
    settings = RewardSettings(batch_pairs=8, epochs=4.0)
    before, _ = train_reward(tiny(tokenizer), tokenizer, rows, settings, 0, CPU, reference=tiny(tokenizer))
    asked = [r["prompt"] for r in rows[:4]]
    texts = ["good yes soup", "bad no soup", "Mira says thank you.", "apple"]
    known = [x + before.offset.item() for x in score_answers(before, tokenizer, asked, texts, CPU)]
    tiny_step = RewardSettings(batch_pairs=8, optim=Optim(lr=1e-9))
    after, _ = train_reward(before, tokenizer, rows, tiny_step, 7, CPU, reference=tiny(tokenizer))
    found = [x + after.offset.item() for x in score_answers(after, tokenizer, asked, texts, CPU)]
    assert before.a.item() != 0 and found == pytest.approx(known, abs=1e-4)
    fresh, _ = train_reward(before.backbone, tokenizer, rows, tiny_step, 7, CPU, reference=tiny(tokenizer))
    other = [x + fresh.offset.item() for x in score_answers(fresh, tokenizer, asked, texts, CPU)]
    assert other != pytest.approx(known, abs=1e-2)  # another head


def test_pairs_of_earlier_rounds_are_all_or_so_many_times_the_new_ones():
    rounds = [[{"i": 10 * r + i} for i in range(4)] for r in range(3)]
    assert pairs_so_far(rounds, None, 0) == [x for one in rounds for x in one]
    found = pairs_so_far(rounds, 0.5, 0)
    assert found[:4] == rounds[2] and len(found) == 6 and all(x in rounds[0] + rounds[1] for x in found[4:])
    assert len(pairs_so_far(rounds, 9.0, 0)) == 12 and pairs_so_far(rounds, 0.0, 0) == rounds[2]
    assert pairs_so_far(rounds[:1], 0.5, 0) == rounds[0]


def test_likelihoods_that_are_known_are_not_read_again(tokenizer):
    """Half of the rows bring what the reference says of them: the same model comes out, and made-up values another."""
    rows = [row("yes good", "no bad"), row("good apple", "bad apple")] * 16
    settings, reference = RewardSettings(batch_pairs=8), tiny(tokenizer, 1)
    values = pair_loglikelihoods(reference, tokenizer, rows, CPU)

    def trained(known):
        model, metrics = train_reward(
            tiny(tokenizer), tokenizer, rows, settings, 0, CPU, reference=reference, known=known
        )
        return model.score.weight.detach(), metrics["likelihood_weight"]

    weights, weight = trained(())
    again, same = trained([v if i % 2 else None for i, v in enumerate(values)])
    assert torch.allclose(again, weights, atol=1e-6) and same == weight
    assert trained([(-20.0, 0.0)] * len(rows))[1] < 0 < trained([(0.0, -20.0)] * len(rows))[1]


def test_the_likelihood_head_looks_at_the_least_likely_tokens(tokenizer):
    """Of a long answer the three least likely tokens count, of a short one all."""
    reference = tiny(tokenizer)
    ids = [1, 5, 6, 7, 8, 9, 10]
    encoded = [(ids, [0, 1, 0, 1, 1, 1, 1]), (ids, [0, 0, 0, 0, 0, 1, 1])]
    logprobs = reference(torch.tensor([ids]))[0].log_softmax(-1)
    each = [logprobs[t - 1, ids[t]].item() for t in range(1, 7)]  # of tokens 1 to 6
    marked = [each[t - 1] for t in (1, 3, 4, 5, 6)]
    assert worst_loglikelihoods(reference, encoded, 0, CPU) == pytest.approx(
        [sum(sorted(marked)[:3]) / 3, (each[4] + each[5]) / 2], abs=1e-4
    )
    assert worst_loglikelihoods(None, encoded, 0, CPU) == [0.0, 0.0]


def test_combined_scores_read_an_answer_once_and_score_it_as_each_model_does(tokenizer, monkeypatch):
    """An answer that comes twice, or that two models with one reference see, costs one reading."""
    models = [RewardModel(tiny(tokenizer, seed), tiny(tokenizer, 9), seed) for seed in (1, 2)]
    for model in models:
        model.a.data.fill_(0.7)
    prompts = [
        Prompt(str(i), ({"role": "user", "content": text},), "facts", kind, "", "train")
        for i, (text, kind) in enumerate([("apple", "helpful"), ("apple", "helpful"), ("pear", "unsafe")])
    ]
    answers = ["yes good", "yes good", "no bad apple"]
    alone = [score_answers(model, tokenizer, [p.messages for p in prompts], answers, CPU) for model in models]
    wanted = combined_score(*alone, [p.kind == "unsafe" for p in prompts])
    assert combined_scores(*models, tokenizer, prompts, answers, CPU) == pytest.approx(wanted, abs=1e-4)
    share_reference(*models)
    assert models[0].reference is models[1].reference
    read = []
    forward = models[0].reference.hidden
    monkeypatch.setattr(models[0].reference, "hidden", lambda tokens: read.append(len(tokens)) or forward(tokens))
    assert combined_scores(*models, tokenizer, prompts, answers, CPU) == pytest.approx(wanted, abs=1e-4)
    assert sum(read) == 2

    other = RewardModel(tiny(tokenizer, 2), tiny(tokenizer, 8))
    share_reference(models[0], other)
    assert other.reference is not models[0].reference


def test_the_reference_of_the_likelihood_head_stays_frozen(tokenizer):
    reference = tiny(tokenizer, 1)
    before = {k: v.clone() for k, v in reference.state_dict().items()}
    train_reward(
        tiny(tokenizer),
        tokenizer,
        [row("good", "bad")] * 32,
        RewardSettings(epochs=2, batch_pairs=16),
        0,
        CPU,
        reference=reference,
    )
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())


def test_unknown_head_and_margin_are_named(tokenizer):
    with pytest.raises(LabError, match="linear, likelihood"):
        train_reward(tiny(tokenizer), tokenizer, [row("a", "b")], RewardSettings(head="cubic"), 0, CPU)
    with pytest.raises(LabError, match="none, small, large"):
        train_reward(tiny(tokenizer), tokenizer, [row("a", "b")], RewardSettings(margin="huge"), 0, CPU)


def test_accuracy_figures():
    pairs = [(1.0, 0.0), (0.0, 1.0), (2.0, 1.0), (1.0, 0.5)]
    rows = [{"grade": g} for g in ("significantly", "better", "better", "slightly")]
    assert accuracy(pairs)["mean"] == 0.75 and accuracy(pairs)["n"] == 4
    by_grade = accuracy_by_grade(rows, pairs)
    assert by_grade["better"]["mean"] == 0.5 and by_grade["negligibly"]["n"] == 0
    tied = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (2.0, 2.0)]
    assert accuracy(tied)["mean"] == 0.5 and accuracy([(1.0, 1.0)] * 4)["mean"] == 0.5
    assert accuracy(tied[:2])["mean"] == 0.75 and accuracy_by_grade(rows, tied)["slightly"]["mean"] == 0.5
    assert calibration([(1.0, 1.0)] * 4, 1) == [{"predicted": 0.5, "real": 0.5, "n": 4}]
    bins = calibration(pairs, 2)
    assert sum(b["n"] for b in bins) == 4 and all(0.5 <= b["predicted"] <= 1 for b in bins)
