"""The PPO panel: a short run that is watched, paused, stopped and steered while it goes."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import ipywidgets as w

from llama2lab.engine.identity import alone
from llama2lab.lab.explorer import Explorer, button, dropdown, steps
from llama2lab.lab.finished import Finished
from llama2lab.lab.job import Job
from llama2lab.lab.pictures import lines, table
from llama2lab.lab.shown import columns
from llama2lab.lessons.n08_ppo.experiments import Play, rows_of, run, value
from llama2lab.report.summary import figure_text, short_name

Row = dict[str, Any]
BETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# key of a row, and what the panel calls it
PANELS = (
    ("score", "reward (proxy)"),
    ("truth", "true helpfulness, held out"),
    ("kl", "KL to the start, nats"),
    ("clipfrac", "share of clipped ratios"),
    ("entropy", "entropy, nats a token"),
    ("length", "tokens an answer"),
)


def curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """What each small picture shows: points (iteration, value). None of them for a key that a row lacks."""
    return {key: [(row["iteration"] + 1, value(row, key)) for row in rows if key in row] for key, _ in PANELS}


def small_multiples(rows: Sequence[Row]) -> str:
    """Six small pictures of a run."""
    parts = []
    for key, name in PANELS:
        points = curves(rows)[key]
        last = f"; now {points[-1][1]:.3g}" if points else ""
        picture = lines([("", points)], f"{name} by iteration{last}", "iteration", height=130)
        head = f"<div>{html.escape(name + last)}</div>"
        parts.append(f'<div style="flex: 1 1 300px; max-width: 380px">{head}{picture}</div>')
    return f'<div style="display: flex; flex-flow: row wrap; gap: 4px 12px">{"".join(parts)}</div>'


def table_of(rows: Sequence[Row], betas: dict[int, float]) -> str:
    """The last iterations in numbers: also where no picture can be seen."""
    cells: dict[str, Callable[[Row], object]] = {
        "iteration": lambda row: row["iteration"] + 1,
        "beta": lambda row: f"{betas[row['iteration']]:g}" if row["iteration"] in betas else "",
        "first ratio": lambda row: f"{row['first_ratio']:.6f}",
        "sampling gap": lambda row: f"{row['sampling_gap']:.2g}" if "sampling_gap" in row else "",
        "reward": lambda row: f"{row['score']:.2f}",
        "KL": lambda row: f"{row['kl']:.2f}",
        "clipped": lambda row: f"{row['clipfrac']:.1%}",
        "entropy": lambda row: f"{row['entropy']:.3f}",
        "length": lambda row: f"{row['length']:.1f}",
        "true helpfulness": lambda row: figure_text(row.get("truth")),
    }
    return f'<div style="overflow-x: auto">{table(*columns(rows[-4:], cells))}</div>'


class PpoPanel(Explorer):
    """Start, pause, stop; beta acts from the next iteration on. `shown` are rows to show before the first start. The
    work is kept in the folder of live measurements: a stop, or a closed browser, loses nothing."""

    def __init__(self, lab: Finished, play: Play | None = None, shown: Sequence[Row] = (), shown_beta: float = 0.02):
        self.lab, self.play = lab, play or Play()
        self.seen: dict[int, Row] = {}
        self.betas: dict[int, float] = {}
        self.shown, self.shown_beta = list(shown), shown_beta
        self.beta = steps("beta, the price of a nat", [(f"{b:g}", b) for b in BETAS], 0.02)
        self.start_from = dropdown("start from", [("SFT", "sft"), ("V4", "rlhf-v4")], self.play.start, "170px")
        self.buttons = {
            press.__name__: button(words, tip, press, icon=icon, layout=w.Layout(width="auto"))
            for press, words, tip, icon in (
                (self.start, "Start", "Start, or go on after a pause or a stop", "play"),
                (self.pause, "Pause", "Wait after the iteration under way", "pause"),
                (self.stop, "Stop", "End after the iteration under way; Start goes on from there", "stop"),
                (self.fresh, "New run", "Forget this run and begin at iteration 1", "refresh"),
            )
        }
        self.job = Job(self.work, self.changed)
        controls = [*self.buttons.values(), self.beta, self.start_from]
        super().__init__("PPO, iteration by iteration", controls, watch=False)

    @property
    def folder(self) -> Any:
        return self.lab.work_folder("ppo-panel", run, asdict(self.play))

    def work(self) -> list[Row]:
        with alone(self.folder, wait=False):
            rows = run(self.lab, self.play, self.folder, self.beta_now, self.seen)
            shutil.rmtree(self.folder, ignore_errors=True)  # done: the next start is a new run
        return rows

    def beta_now(self, iteration: int) -> float:
        """The slider, read once an iteration."""
        self.betas[iteration] = float(self.beta.value)
        return self.betas[iteration]

    def changed(self) -> None:
        if hasattr(self, "picture"):
            self.redraw()

    # ---- the buttons -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.job.state == "done":
            self.fresh()
        self.play = replace(self.play, start=self.start_from.value) if self.job.state == "not started" else self.play
        self.job.start()

    def pause(self) -> None:
        self.job.pause()

    def stop(self) -> None:
        self.job.stop()

    def fresh(self) -> None:
        """Back to iteration 1, with the start that is chosen now."""
        if self.job.running:
            self.job.stop()
            self.job.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.seen.clear()
        self.betas.clear()
        self.job = Job(self.work, self.changed)
        self.redraw()

    # ---- the picture -----------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """What the panel shows: the run under way, or the one it was given."""
        return self.shown if self.job.state == "not started" else rows_of(list(self.job.rows), dict(self.seen))

    def draw(self) -> str:
        rows = self.rows()
        ours = self.job.state != "not started"
        words = {
            "not started": f"Below is a run made before, with beta {self.shown_beta:g}. Start makes a new one: "
            f"{self.play.iterations} iterations of {self.play.batch} answers."
            if self.shown
            else f"Start: {self.play.iterations} iterations of {self.play.batch} answers.",
            "running": "running",
            "paused": "paused: Start goes on",
            "done": "done: Start makes a new run",
            "stopping": "stopping after this iteration",
            "stopped": "stopped: Start goes on from here",
            "failed": self.job.error,
        }[self.job.state]
        done = f"iteration {len(self.job.rows)} of {self.play.iterations}; "
        where = f"{short_name(self.play.start)}, {done}" if ours else ""
        betas = self.betas if ours else {row["iteration"]: self.shown_beta for row in rows}
        return f'<p role="status">{html.escape(where + words)}</p>' + small_multiples(rows) + table_of(rows, betas)
