"""PPO in view: what it shows, and that its buttons and its slider act on a run."""

import json
import threading
from pathlib import Path

import annotation_browser as real
import pytest
from patience import until
from picture_page import draw, sent

from llama2lab.engine.loop import resumable_loop
from llama2lab.lab.finished import live_folder
from llama2lab.lessons.n08_ppo import ppo_view
from llama2lab.lessons.n08_ppo.experiments import Play
from llama2lab.lessons.n08_ppo.ppo_view import CHARTS, PpoView, curves, table_of

FIGURE = {"mean": 1.25, "low": 1.0, "high": 1.5, "n": 10}
ANSWER = {"question": "<b>Who?</b>", "answer": "<b>Mira.</b>", "truth": 2.0, "reward": -0.5}


def log_row(i):
    return {
        "score": 1.0 + i,
        "kl": 0.5 * i,
        "clipfrac": 0.01,
        "entropy": 0.3,
        "length": 20.0,
        "first_ratio": 1.0,
        "sampling_gap": 0.0025,
    }


def full_row(i):
    return {"iteration": i, **log_row(i), "truth": FIGURE, "proxy": FIGURE, "answers": [ANSWER]}


class Run:
    """A finished run of which the view only asks its name."""

    def __init__(self):
        self.folder, self.figures = Path("nowhere"), {"stages": {}}

    def work_folder(self, name, code, settings):
        return live_folder() / name


def press(view, **message):
    """As the page does."""
    view._pressed(view, message, [])


def test_curves_hold_every_figure_of_the_issue():
    assert set(curves([full_row(0)])) == {"score", "truth", "kl", "clipfrac", "entropy", "length"}
    assert curves([full_row(0), full_row(1)])["kl"] == [[1, 0.0], [2, 0.5]]
    assert curves([full_row(0)])["truth"] == [[1, 1.25, 1.0, 1.5]]


def test_the_first_ratio_the_sampling_gap_and_beta_stand_in_the_table():
    header, (row,) = table_of([full_row(3)], {"3": 0.05})
    told = dict(zip(header, row, strict=True))
    assert (told["first ratio"], told["sampling gap"], told["beta"], told["iteration"]) == (
        "1.000000",
        "0.0025",
        "0.05",
        4,
    )
    before = {key: value for key, value in full_row(3).items() if key != "sampling_gap"}  # of an older run
    assert table_of([before], {})[1][0][1:4] == ["", "1.000000", ""]


def test_a_run_made_before_is_shown_first_with_its_beta_on_the_slider():
    view = PpoView(Run(), shown=[full_row(0), full_row(1)], shown_beta=0.1)
    own, before = view.shown["lines"]["kl"]
    assert own["points"] == [] and before["points"] == [[1, 0.0], [2, 0.5]] and "beta 0.1" in before["name"]
    assert view.values["beta"] == 0.1 and view.shown["state"] == "not started"
    assert [look["note"] for look in view.shown["looks"]] == ["reward -0.50, truth +2.00"] * 2
    page = view.static()
    assert page.count("<svg") == len(CHARTS) and "made before" in page and "<b>" not in page and "nan" not in page
    json.dumps([view.data, view.shown], allow_nan=False)


def stand_in(gates, used):
    """For PPO: it asks for beta once an iteration, as `ppo` does, and waits for a gate before."""

    def run(lab, play, folder, beta_for, seen):
        def step(i):
            assert gates[i].wait(120)
            used.append(beta_for(i))
            seen[i] = {"truth": FIGURE, "proxy": FIGURE, "answers": [ANSWER]}
            return log_row(i)

        return resumable_loop(play.iterations, step, dict, lambda saved: None, folder, "PPO", "iteration")

    return run


def test_buttons_and_slider_act_between_iterations(monkeypatch):
    used, gates = [], [threading.Event() for _ in range(4)]
    monkeypatch.setattr(ppo_view, "run", stand_in(gates, used))
    view = PpoView(Run(), Play(iterations=4))
    press(view, choose=["beta", ppo_view.BETAS.index(0.02)])
    press(view, press="start")
    gates[0].set()
    until(lambda: "iteration 1 of 4" in view.shown["said"], "the first is shown")
    press(view, choose=["beta", ppo_view.BETAS.index(0.5)])
    gates[1].set()
    until(lambda: "iteration 2 of 4" in view.shown["said"], "the second is shown")
    assert used == [0.02, 0.5] and view.record.more["betas"] == {"0": 0.02, "1": 0.5}
    assert [row[1] for row in view.shown["table"][1]] == ["0.02", "0.5"] and len(view.rows()) == 2
    press(view, press="pause")
    assert view.job.state == "paused" and "paused" in view.shown["said"]
    press(view, press="stop")
    gates[2].set()
    view.job.wait()
    assert view.shown["state"] == "stopped"

    again = PpoView(Run(), Play(iterations=4))  # as in another kernel
    assert again.shown["state"] == "stopped" and again.shown["looks"] == view.shown["looks"]
    gates[3].set()
    press(again, press="start")
    again.job.wait()
    assert again.shown["state"] == "done" and len(again.rows()) == 4 and len(used) == 4
    press(again, press="anew")
    assert again.rows() == [] and again.shown["state"] == "not started"


def test_what_fails_is_said_in_words(monkeypatch):
    def run(*_):
        raise ValueError("<script>no</script>")

    monkeypatch.setattr(ppo_view, "run", run)
    view = PpoView(Run())
    press(view, press="start")
    until(lambda: view.shown["state"] == "failed")
    assert "ValueError" in view.shown["said"] and "<script>" not in view.static()


@pytest.mark.browser
def test_the_page_shows_one_chart_at_a_time_and_moves_beta_by_keys():
    real.skip_without_browser()
    view = PpoView(Run(), shown=[full_row(i) for i in range(3)], shown_beta=0.1)
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        draw(page, view, view.data, shown=view.shown)
        board = page.locator("svg[role=img]")
        assert board.count() == 1 and "reward" in board.get_attribute("aria-label")
        assert page.locator(".l2w-now").inner_text() == "<b>Mira.</b>"
        page.get_by_role("button", name="KL", exact=True).focus()
        page.keyboard.press("Enter")
        assert "KL" in page.locator("svg[role=img]").get_attribute("aria-label")
        beta = page.get_by_role("slider", name="beta, the price of a nat")
        assert page.locator(".l2p-slider", has=beta).locator("output").inner_text() == "0.1"
        beta.focus()
        page.keyboard.press("End")
        assert sent(page) == [{"choose": ["beta", len(ppo_view.BETAS) - 1]}]
        assert "a run made before, with beta 0.1" in page.locator(".l2w-legend").inner_text()
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.errors == []
