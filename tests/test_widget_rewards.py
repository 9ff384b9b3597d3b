"""The reward explorer: what it shows is what the models, the gate and the oracle say."""

import math

import pytest
import torch

from llama2lab.lessons.n06_rewards import widget_rewards as rewards
from llama2lab.lessons.n06_rewards.widget_rewards import (
    RewardExplorer,
    gate,
    growth_strip,
    judge_answers,
    preference,
    rewards_as_it_grows,
)
from llama2lab.stages.gate import gated_reward, logit
from llama2lab.stages.reward import score_answers
from llama2lab.town.truth import REFUSAL

ASKED = [{"role": "user", "content": "What is the opposite of new?"}]


def test_the_gate_is_the_librarys():
    for h, s, unsafe in ((2.0, 1.0, False), (2.0, -3.0, False), (2.0, 1.0, True), (-1.0, -3.0, True)):
        got = gate(h, s, unsafe)
        right = gated_reward(torch.tensor([h]), torch.tensor([s]), torch.tensor([unsafe]))
        assert got["r_c"] == pytest.approx(right.item(), rel=1e-5)
        assert got["logit"] == pytest.approx(logit(right).item(), rel=1e-3)
    assert gate(2.0, 1.0, False)["model"] == "helpfulness"
    assert gate(2.0, -3.0, False)["model"] == "safety" and "under 0.15" in gate(2.0, -3.0, False)["why"]
    assert "tagged" in gate(2.0, 1.0, True)["why"]


def test_a_growing_answer_ends_at_its_own_score(lab):
    answer = "The opposite of new is old."
    rows = rewards_as_it_grows(lab, ASKED, answer)
    assert [row["tokens"] for row in rows] == list(range(len(rows))) and rows[0]["text"] == ""
    assert "".join(row["text"] for row in rows) == answer
    for kind in ("helpfulness", "safety"):
        (score,) = score_answers(lab.reward(f"reward-{kind}-v5"), lab.tokenizer, [ASKED], [answer], lab.machine)
        assert rows[-1][kind] == pytest.approx(score, abs=0.05)  # in bfloat16 a batch of another width rounds otherwise


def test_long_and_empty_answers(lab):
    assert len(rewards_as_it_grows(lab, ASKED, "")) == 1
    rows = rewards_as_it_grows(lab, ASKED, "very " * 100_000)
    assert len(rows) <= rewards.PIECES + 1 and all(math.isfinite(row["logit"]) for row in rows)


def test_judged_answers_and_preference(lab):
    a, b = judge_answers(lab, ASKED, ["The opposite of new is old.", REFUSAL], False)
    mean, std = rewards.ppo_scale(lab)[False]
    assert a["ppo"] == pytest.approx((a["logit"] - mean) / std) and a["truth"] is None
    one, other = preference(a, b), preference(b, a)
    assert all(one[key] + other[key] == pytest.approx(1) for key in one)


def test_hostile_text_is_escaped(lab):
    strip = growth_strip([{"text": "", "helpfulness": 0.0}, {"text": "<script>", "helpfulness": 1.0}])
    assert "<script>" not in strip and "&lt;script&gt;" in strip
    explorer = RewardExplorer(lab, prompts=4)
    explorer.first.value = "<img src=x onerror=alert(1)> [INST] <<SYS>> </s>"
    explorer.prompt.value = "<b>bold</b> </s><s>"
    assert "<img" not in explorer.static() and "Error" not in explorer.static()


def test_the_picture_follows_the_controls(lab):
    explorer = RewardExplorer(lab, prompts=4)
    first = explorer.static()
    assert "<sub>h</sub>" in first and first.count("<polyline") == 2
    explorer.truth.value = True
    assert "truly" in explorer.static()
    explorer.second.value = "No."
    assert "A is better than B" in explorer.static() and explorer.static().count("<polyline") == 4
    explorer.tag.value = True
    assert "tagged as a safety prompt" in explorer.static() and explorer.static() != first
    explorer.prompt.value = "Who are you?"
    assert "only the town" in explorer.static()
    explorer.question.value = list(explorer.rows)[-1]  # an unsafe prompt: its tag comes with it
    assert explorer.tag.value and explorer.prompt.value == list(explorer.rows)[-1]
    assert explorer.first.value == explorer.written[explorer.prompt.value]["V5 wrote"]
    explorer.fill.value = "a refusal"
    assert explorer.first.value == REFUSAL
