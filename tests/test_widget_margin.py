"""The margin explorer: its numbers are the library's loss, its picture follows the controls."""

import math
import re

import pytest

from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.lessons.n06_rewards.widget_margin import MarginExplorer, loss_at, margin_curves, mean_losses, real_gaps


def test_loss_gradient_and_probability():
    at = loss_at(2.0, 0.5)
    assert at["loss"] == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert at["gradient"] == pytest.approx(-1 / (1 + math.exp(1.5)))
    assert at["probability"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert loss_at(1.0, 1.0)["loss"] == pytest.approx(math.log(2))


def test_a_margin_moves_the_curve_to_the_right():
    curves = margin_curves("better", [0.0, 1.0])
    assert set(curves) == set(MARGINS)
    assert curves["none"][0]["loss"] < curves["small"][0]["loss"] < curves["large"][0]["loss"]
    negligible = margin_curves("negligibly", [0.7])
    assert len({rows[0]["loss"] for rows in negligible.values()}) == 1


def test_mean_losses_of_real_gaps():
    losses = mean_losses({"significantly": [0.0, 2.0], "negligibly": []})
    assert losses["none"] == {"significantly": pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)}


def test_gaps_are_those_of_the_runs_pairs(lab):
    gaps = real_gaps(lab, 40)
    assert set(gaps) == set(GRADES) and sum(map(len, gaps.values())) == 40


def test_the_picture_follows_each_control():
    explorer = MarginExplorer({"significantly": [0.5, 3.0]})
    seen = {explorer.static()}
    explorer.gap.value = 2.0
    seen.add(explorer.static())
    explorer.margin.value = "large"
    seen.add(explorer.static())
    assert "margin 3" in explorer.static() and "2 held-out pairs" in explorer.static()
    explorer.grade.value = "negligibly"
    seen.add(explorer.static())
    heights = [float(y) for y in re.findall(r'y="([0-9.]+)" width="9"', explorer.static())]
    assert len(heights) == 6 and max(heights) < 200 - 9  # the names of both pictures lie within them
    assert len(seen) == 4 and "held-out" not in explorer.static()
