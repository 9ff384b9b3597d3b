"""The margin explorer: the ranking loss (Llama 2, section 3.2.2, equation 2) at one gap between two scores, under the
margins of Table 27, and where the run's own reward model puts its held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets as w
import torch

from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.lab.explorer import LABEL, Explorer, dropdown, slider
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import lines, number, table
from llama2lab.lessons.n05_preferences.pairs import draw
from llama2lab.lessons.n06_rewards.experiments import sigmoid
from llama2lab.stages.reward import pair_scores, ranking_loss

LOW, HIGH = -4.0, 8.0  # gaps shown


def loss_at(gap: float, margin: float) -> dict[str, float]:
    """The library's loss of one pair in nats at gap = r_chosen - r_rejected; its `gradient` by the gap (below 0: a step
    widens the gap); and the `probability` that the model gives to the annotator's choice, in which no margin is."""
    x = torch.tensor([float(gap)], dtype=torch.float64, requires_grad=True)
    loss = ranking_loss(x, torch.zeros_like(x), torch.full_like(x, margin))
    (gradient,) = torch.autograd.grad(loss, x)
    values = {"loss": loss.item(), "gradient": gradient.item(), "probability": sigmoid(gap)}
    return {"gap": float(gap), "margin": margin, **values}


def margin_curves(grade: str, gaps: Sequence[float] = ()) -> dict[str, list[dict[str, float]]]:
    """`loss_at` over the gaps, by margin table: "none", "small", "large"."""
    gaps = gaps or [LOW + (HIGH - LOW) * i / 60 for i in range(61)]
    return {name: [loss_at(gap, by_grade[grade]) for gap in gaps] for name, by_grade in MARGINS.items()}


def real_gaps(lab: Finished, n: int = 300, stage: str = "reward-helpfulness-v5") -> dict[str, list[float]]:
    """r_chosen - r_rejected of held-out pairs by the run's own reward model, by grade."""
    rows = draw(lab, "helpfulness", "test", n, 2)
    scores = pair_scores(lab.reward(stage), lab.tokenizer, rows, lab.machine)
    return {g: [c - r for row, (c, r) in zip(rows, scores, strict=True) if row["grade"] == g] for g in GRADES}


def mean_losses(gaps: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Mean loss of the pairs of each grade under each margin table: what is left to learn there."""
    return {
        name: {
            g: sum(loss_at(gap, by_grade[g])["loss"] for gap in gaps[g]) / len(gaps[g]) for g in GRADES if gaps.get(g)
        }
        for name, by_grade in MARGINS.items()
    }


class MarginExplorer(Explorer):
    """A gap, a grade, a margin table: loss and gradient with the point, and the run's own pairs of that grade."""

    def __init__(self, gaps: Mapping[str, Sequence[float]] | None = None):
        self.gaps = gaps or {}
        self.gap = slider("gap, chosen less rejected", 0.5, LOW, HIGH, 0.1, "420px")
        self.grade = dropdown("the annotator said", [(f"{g} better", g) for g in GRADES], width=None)
        style = LABEL | {"button_width": "70px"}
        self.margin = w.ToggleButtons(
            options=list(MARGINS), value="small", description="margins (table 27)", style=style
        )
        super().__init__("Margin explorer", [self.gap, self.grade, self.margin])

    def draw(self) -> str:
        grade, name = self.grade.value, self.margin.value
        here = loss_at(self.gap.value, MARGINS[name][grade])
        curves = margin_curves(grade)
        worst = max(row["loss"] for rows in curves.values() for row in rows)
        said = (
            f"margin {number(here['margin'])}: loss {here['loss']:.3f} nats, gradient {here['gradient']:.3f}; "
            f"the model gives the annotator's choice {here['probability']:.0%}"
        )
        pictures = ""
        for what, words, ends in (
            ("loss", "loss, nats", (0.0, worst)),
            ("gradient", "gradient of the loss by the gap", (-1.0, 0.0)),
        ):
            series = [(key, [(row["gap"], row[what]) for row in rows]) for key, rows in curves.items()]
            shown, mark = f"{words} against the gap, one curve for each margin table; {said}", (here["gap"], here[what])
            pictures += lines(series, shown, "gap, chosen less rejected", words, height=200, y_range=ends, marks=[mark])
        return f"<p>'{grade} better', {said}.</p>" + pictures + self._own_pairs(grade)

    def _own_pairs(self, grade: str) -> str:
        """What the run's own pairs of this grade cost under each table."""
        own = self.gaps.get(grade) or []
        if not own:
            return ""
        losses = mean_losses({grade: own})
        over = {name: sum(gap < by[grade] for gap in own) / len(own) for name, by in MARGINS.items()}
        rows = [[m, number(by[grade]), f"{losses[m][grade]:.3f}", f"{over[m]:.0%}"] for m, by in MARGINS.items()]
        return (
            f"<p>The run's own model on {len(own)} held-out pairs of this grade; their mean gap is "
            f"{number(sum(own) / len(own))}:</p>"
            + table(["margins", "margin", "mean loss, nats", "gap under the margin"], rows)
        )
