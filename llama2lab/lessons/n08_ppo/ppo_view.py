"""PPO in view: a short run that is watched, paused, stopped and steered while it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llama2lab.engine.identity import alone
from llama2lab.lab.finished import Finished
from llama2lab.lab.live_view import Chart, Choice, LiveView
from llama2lab.lab.shown import columns
from llama2lab.lessons.n08_ppo.experiments import Play, rows_of, run
from llama2lab.report.summary import figure_text, short_name

Row = dict[str, Any]
BETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CHARTS = (
    Chart("score", "reward", "reward of the training answers (proxy)"),
    Chart("truth", "truth", "true helpfulness on held-out prompts, -3 to 3, with its 95 % interval"),
    Chart("kl", "KL", "KL to the start, nats an answer", from_zero=True),
    Chart("clipfrac", "clipped", "share of ratios that are clipped", from_zero=True),
    Chart("entropy", "entropy", "entropy, nats a token", from_zero=True),
    Chart("length", "length", "tokens an answer", from_zero=True),
)
# of the table; what is not here has a chart
CELLS: dict[str, Callable[[Row], object]] = {
    "first ratio": lambda row: f"{row['first_ratio']:.6f}",
    "sampling gap": lambda row: f"{row['sampling_gap']:.2g}" if "sampling_gap" in row else "",
    "reward": lambda row: f"{row['score']:.2f}",
    "KL": lambda row: f"{row['kl']:.2f}",
    "true helpfulness": lambda row: figure_text(row.get("truth")),
}


def curves(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """What each chart shows: points (iteration, value), with the interval's ends where the row has a figure."""

    def point(row: Row, key: str) -> list[float]:
        value = row[key]
        ends = [value["mean"], value["low"], value["high"]] if isinstance(value, dict) else [value]
        return [row["iteration"] + 1, *ends]

    return {chart.key: [point(row, chart.key) for row in rows if chart.key in row] for chart in CHARTS}


def table_of(rows: Sequence[Row], betas: Mapping[str, float]) -> tuple[list[str], list[list[object]]]:
    """The last iterations in numbers."""
    cells: dict[str, Callable[[Row], object]] = {
        "iteration": lambda row: row["iteration"] + 1,
        "beta": lambda row: f"{betas[str(row['iteration'])]:g}" if str(row["iteration"]) in betas else "",
    }
    return columns(rows[-4:], cells | CELLS)


class PpoView(LiveView):
    """A short run of PPO with beta as a slider that acts from the next iteration on. `shown` are the rows of a run made
    before with `shown_beta`, to be set beside it: the slider begins at that beta."""

    def __init__(self, lab: Finished, play: Play | None = None, shown: Sequence[Row] = (), shown_beta: float = 0.02):
        self.lab, self.play = lab, play or Play()
        self.others, self.others_beta = list(shown), shown_beta
        self.looked: dict[int, Row] = {}  # filled by the run, iteration by iteration
        nearest = min(range(len(BETAS)), key=lambda i: abs(BETAS[i] - shown_beta))
        starts = ("sft", "rlhf-v4")
        question = next((row["answers"][0]["question"] for row in shown if row.get("answers")), "a held-out prompt")
        super().__init__(
            CHARTS,
            {
                "beta": Choice("beta, the price of a nat", [(f"{b:g}", b) for b in BETAS], nearest, live=True),
                "start": Choice("start from", [(short_name(s), s) for s in starts], starts.index(self.play.start)),
            },
            title="PPO, iteration by iteration",
            does="Press Start, and move beta while it goes: it acts from the next iteration on.",
            sees=f"See what the KL does. {self.play.iterations} iterations of {self.play.batch} answers.",
            unit="iteration",
            x="iteration",
            asked="The policy answers a held-out prompt:",
            prompt=question,
        )

    @property
    def folder(self) -> Path:
        play = replace(self.play, start=self.values["start"])
        return self.lab.work_folder("ppo-view", run, asdict(play))

    def work(self) -> list[Row]:
        self.looked.clear()
        with alone(self.folder, wait=False):
            return run(
                self.lab, replace(self.play, start=self.values["start"]), self.folder, self.beta_now, self.looked
            )

    def beta_now(self, iteration: int) -> float:
        """The slider, read once an iteration."""
        beta = float(self.values["beta"])
        self.record.more.setdefault("betas", {})[str(iteration)] = beta
        return beta

    def look(self, done: int) -> None:
        have = {one["step"] for one in self.record.looks}
        found = [{"step": i + 1, **seen} for i, seen in sorted(self.looked.items()) if i < done and i + 1 not in have]
        self.record.looks = sorted([*self.record.looks, *found], key=lambda one: one["step"])

    def rows(self) -> list[Row]:
        """The rows of this view's own run so far."""
        return rows_of(self.record.rows, {one["step"] - 1: one for one in self.record.looks})

    def seen(self) -> dict[str, Any]:
        own = self.rows()
        rows, betas = own or self.others, self.record.more.get("betas", {})
        told = f"{short_name(self.values['start'])}, iteration {len(self.record.rows)} of {self.play.iterations}"
        words = {
            "not started": "nothing is run yet" + (": what you see was made before" if self.others else ""),
            "failed": self.job.error,
            "stopping": "stopping after this iteration",
        }.get(self.state, self.state)
        mine, other = curves(own), curves(self.others)
        before = {"name": f"a run made before, with beta {self.others_beta:g} throughout", "kind": "before"}
        return {
            "said": f"{told}; {words}" if self.record.rows else words[:1].upper() + words[1:],
            "lines": {
                chart.key: [
                    {"name": "this run", "kind": "now", "points": mine[chart.key]},
                    {**before, "points": other[chart.key]},
                ]
                for chart in CHARTS
            },
            "ends": [1, max(self.play.iterations, len(self.others))],
            "looks": [
                {
                    "step": row["iteration"] + 1,
                    "x": row["iteration"] + 1,
                    "text": row["answers"][0]["answer"],
                    "note": f"reward {row['answers'][0]['reward']:+.2f}, truth {row['answers'][0]['truth']:+.2f}",
                }
                for row in rows
                if row.get("answers")
            ],
            "table": table_of(rows, betas if own else {str(row["iteration"]): self.others_beta for row in rows}),
        }
