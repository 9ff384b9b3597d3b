"""The PPO panel: what it shows, and that its buttons and its slider act on a run."""

import threading
from pathlib import Path

from patience import until

from llama2lab.lab.finished import live_folder
from llama2lab.lessons.n08_ppo import widget_ppo_panel as ppo_panel
from llama2lab.lessons.n08_ppo.experiments import Play
from llama2lab.lessons.n08_ppo.widget_ppo_panel import PANELS, PpoPanel, curves, small_multiples, table_of

FIGURE = {"mean": 1.25, "low": 1.0, "high": 1.5, "n": 10}


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
    return {"iteration": i, **log_row(i), "truth": FIGURE, "proxy": FIGURE, "answers": []}


class Run:
    """A finished run of which the panel only asks its name."""

    def __init__(self):
        self.folder, self.figures = Path("nowhere"), {"stages": {}}

    def work_folder(self, name, code, settings):
        return live_folder() / name


def test_curves_hold_every_figure_of_the_issue():
    assert set(curves([full_row(0)])) == {"score", "truth", "kl", "clipfrac", "entropy", "length"}
    assert curves([full_row(0), full_row(1)])["kl"] == [(1, 0.0), (2, 0.5)]
    assert curves([full_row(0)])["truth"] == [(1, 1.25)]
    page = small_multiples([full_row(0), full_row(1)])
    assert page.count("<svg") == len(PANELS) and "nan" not in page


def test_the_first_ratio_the_sampling_gap_and_beta_stand_in_the_table():
    page = table_of([full_row(3)], {3: 0.05})
    assert "1.000000" in page and "0.05" in page and ">4<" in page and ">0.0025<" in page
    before = {key: value for key, value in full_row(3).items() if key != "sampling_gap"}  # of an older run
    assert "1.000000" in table_of([before], {})


def test_a_run_made_before_is_shown_first():
    panel = PpoPanel(Run(), shown=[full_row(0), full_row(1)], shown_beta=0.1)
    assert "made before" in panel.static() and "0.1" in panel.static()
    assert panel.static().count("<svg") == len(PANELS)


def test_buttons_and_slider_act_between_iterations(monkeypatch):
    """With a stand-in for PPO that asks for beta once an iteration, as `ppo` does."""
    from llama2lab.engine.loop import resumable_loop

    used, gates = [], [threading.Event() for _ in range(4)]

    def run(lab, play, folder, beta_for, seen):
        def step(i):
            assert gates[i].wait(120)
            used.append(beta_for(i))
            seen[i] = {"truth": FIGURE, "proxy": FIGURE, "answers": []}
            return log_row(i)

        return resumable_loop(play.iterations, step, dict, lambda saved: None, None, "PPO", "iteration")

    monkeypatch.setattr(ppo_panel, "run", run)
    panel = PpoPanel(Run(), Play(iterations=4))
    panel.beta.value = 0.02
    panel.buttons["start"].click()
    gates[0].set()
    until(lambda: "iteration 1 of 4" in panel.static(), "the first is shown")
    panel.beta.value = 0.5
    gates[1].set()
    until(lambda: "iteration 2 of 4" in panel.static(), "the second is shown")
    assert used == [0.02, 0.5] and panel.betas == {0: 0.02, 1: 0.5}
    assert len(panel.job.rows) == len(panel.rows()) == 2
    panel.buttons["pause"].click()
    assert panel.job.state == "paused" and "paused" in panel.static()
    panel.buttons["stop"].click()
    gates[2].set()
    panel.job.wait()
    assert panel.job.state == "stopped" and "stopped" in panel.static()
    panel.buttons["fresh"].click()
    assert panel.rows() == [] and not panel.seen and panel.job.state == "not started"


def test_what_fails_is_said_in_words(monkeypatch):
    def run(*_):
        raise ValueError("<script>no</script>")

    monkeypatch.setattr(ppo_panel, "run", run)
    panel = PpoPanel(Run())
    panel.start()
    until(lambda: panel.job.state == "failed")
    panel.redraw()
    assert "ValueError" in panel.static() and "<script>" not in panel.static()
