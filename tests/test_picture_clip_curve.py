"""The clip: the curves at rest and on the page are the library's loss and its gradient."""

import json
import math
from types import SimpleNamespace

import annotation_browser as real
import pytest
import torch
from picture_page import mount

from llama2lab.lessons.n08_ppo import clip_curve as x
from llama2lab.stages import ppo

DATA = {"clip": 0.2, "step": x.STEP, "clipfrac": [0.01, 0.03]}


def test_objective_and_push_are_the_losss_and_its_gradients():
    worth, push = x.objective_and_push([0.5, 0.79, 1.0, 1.19, 1.5], 1.0, 0.2)
    assert worth == pytest.approx([0.5, 0.79, 1.0, 1.19, 1.2]) and push == pytest.approx([0.5, 0.79, 1.0, 1.19, 0.0])
    worth, push = x.objective_and_push([0.5, 0.81, 1.0, 1.5], -2.0, 0.2)
    assert worth == pytest.approx([-1.6, -1.62, -2.0, -3.0]) and push == pytest.approx([0.0, -1.62, -2.0, -3.0])
    new = torch.tensor([[math.log(1.1)]])
    loss, _ = ppo.policy_loss(new, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1).bool(), 0.2)
    assert x.objective_and_push([1.1], 1.0, 0.2)[0][0] == pytest.approx(-loss.item(), abs=1e-6)


def test_the_data_are_the_runs_and_leave_out_the_critics_warm_up():
    rows = [{"clipfrac": 0.5}, {"clipfrac": 0.5}, {"clipfrac": 0.5}, {"clipfrac": 0.02}, {"kl": 1.0}]
    data = x.clip_data(SimpleNamespace(metrics=lambda stage: {"log": rows}))
    assert data == {"clip": 0.2, "step": x.STEP, "clipfrac": [0.02]} and json.loads(json.dumps(data)) == data
    assert x.clip_data(SimpleNamespace(metrics=lambda stage: {}))["clipfrac"] == []


def test_the_shipped_run_tells_what_share_was_clipped(lab):
    shares = x.clip_data(lab)["clipfrac"]
    assert shares and all(0 <= share < 1 for share in shares)


def test_the_picture_at_rest_has_both_curves_for_both_signs():
    page = x.ClipCurve(DATA).static()
    assert page.count("<polyline") == 4 and "ratio is 1.2" in page and "0.8" in page


@pytest.mark.browser
def test_the_page_agrees_with_the_loss_and_steps_stop_at_the_clip():
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        mount(page, x.ClipCurve(DATA))
        point = page.get_by_role("slider", name="ratio")

        def agrees(sign, clip):
            at = float(point.get_attribute("aria-valuenow"))
            (worth,), (push,) = x.objective_and_push([at], sign, clip)
            assert float(point.get_attribute("data-objective")) == pytest.approx(worth, abs=2e-3)
            assert float(point.get_attribute("data-push")) == pytest.approx(push, abs=2e-3)
            return at, push

        for name, sign in (("Good token", 1.0), ("Bad token", -1.0)):
            page.get_by_role("button", name=name).focus()
            page.keyboard.press("Enter")
            point.focus()
            assert agrees(sign, 0.2)[0] == 1.0
            for key in ("PageUp", "ArrowRight", "PageUp", "PageUp", "ArrowLeft", "End", "Home"):
                page.keyboard.press(key)
                agrees(sign, 0.2)

            page.get_by_role("button", name="back to ratio 1").focus()
            page.keyboard.press("Enter")
            point.focus()
            ratios = [1.0]
            for _ in range(12):
                page.keyboard.press("Enter")
                ratios.append(agrees(sign, 0.2)[0])
            assert ratios[1] == pytest.approx(math.exp(x.STEP * sign), abs=1e-3)  # along the gradient
            assert ratios[-1] == ratios[-2] and agrees(sign, 0.2)[1] == 0  # and no further
            assert abs(ratios[-1] - 1) > 0.2 and page.get_by_role("button", name="one gradient step").is_disabled()

        page.get_by_role("slider", name="clip").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")  # 0.30: the push is back
        assert agrees(-1.0, 0.3)[1] < 0
        assert page.errors == []
