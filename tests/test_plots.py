"""Every figure that notebooks and reports show can be read: fonts, axes, legends, no line between kinds of things; and
no style sheet, script or picture of the library writes smaller than 12 px."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plot_rules import SMALLEST, contrast, faults
from test_report import FIGURES as OF_RESULTS
from test_report import make_run

import llama2lab
from llama2lab.annotation.agreement import charts, quality
from llama2lab.annotation.agreement.coefficients import WHATS
from llama2lab.engine import stats
from llama2lab.engine.scale import GRADES
from llama2lab.lab import pictures, shown
from llama2lab.lab.ask import mark_guess
from llama2lab.lab.source import source
from llama2lab.lessons.n00_start import figures as n00
from llama2lab.lessons.n01_tokenizer import figures as n01
from llama2lab.lessons.n02_transformer import experiments as e02
from llama2lab.lessons.n02_transformer import figures as n02
from llama2lab.lessons.n03_pretraining import experiments as e03
from llama2lab.lessons.n03_pretraining import figures as n03
from llama2lab.lessons.n04_sft import experiments as e04
from llama2lab.lessons.n04_sft import figures as n04
from llama2lab.lessons.n05_preferences import experiments as e05
from llama2lab.lessons.n06_rewards import experiments as e06
from llama2lab.lessons.n06_rewards import figures as n06
from llama2lab.lessons.n07_rejection import experiments as e07
from llama2lab.lessons.n07_rejection import figures as n07
from llama2lab.lessons.n08_ppo import experiments as e08
from llama2lab.lessons.n08_ppo import figures as n08
from llama2lab.lessons.n08_ppo.three_tokens import play
from llama2lab.lessons.n09_gatt import figures as n09
from llama2lab.lessons.n10_rounds import experiments as e10
from llama2lab.lessons.n10_rounds import figures as n10
from llama2lab.lessons.n11_evaluation import figures as n11
from llama2lab.lessons.n12_safety import experiments as e12
from llama2lab.lessons.n12_safety import figures as n12
from llama2lab.report import plots, summary
from llama2lab.report.look import style

PACKAGE = Path(llama2lab.__file__).parent
DRAW = random.Random(0)


def figure(mean: float, wide: float = 0.05) -> dict[str, Any]:
    return {"mean": mean, "low": mean - wide, "high": mean + wide, "n": 200}


def labels(names: tuple[str, ...] = ("ann", "bob", "cem")) -> list[dict[str, Any]]:
    """Made-up labels of several people, from one vendor each."""
    return [
        {
            "id": f"{i}{name}",
            "item_id": f"i{i}",
            "item_key": f"i{i}",
            "kind": "helpfulness",
            "annotator": name,
            "vendor": f"vendor of {name}",
            "choice": DRAW.choice((1, 2)),
            "left": 1,
            "grade": DRAW.choice(GRADES),
            "safe_1": None,
            "safe_2": None,
            "skip_reason": None,
            "seconds": 4.0 + i % 5,
            "created_at": f"2026-01-0{1 + i % 7}T10:00:00+00:00",
            "status": "judged",
            "gold": None,
            "prompt": [{"role": "user", "content": "Where does Mira live?"}],
            "answers": ["a short one", "a long answer of some more words"],
            "flag": None,
        }
        for i in range(30)
        for name in names
    ]  # fmt: skip


CONFLICT = ("right answer", "wrong answer", "refuses a harmless prompt")
GATE = [{"threshold": t, "precision": figure(0.6), "recall": figure(t)} for t in (0.05, 0.15, 0.5)]
KINDS = [("MHA", 4), ("GQA", 2), ("MQA", 1)]
ATTENTION = {
    "even": [1 / t for t in range(2, 22)],
    **{stage: {how: [figure(0.5)] * 20 for how in ("max", "mean")} for stage in ("rlhf-v3", "gatt")},
}
SPEED = [
    {"kind": kind, "context": context, "batch": batch, "tokens_per_second": figure(1000 / kv, 20)}
    for kind, kv in KINDS
    for context in (128, 512)
    for batch in (1, 8, 64)
]
GQA = {
    "rows": [{"kind": k, "n_kv_heads": n, "tokens": 9000, "curve": [3.0] * 40} for k, n in KINDS],
    "gaps": {"GQA": figure(0.01), "MQA": figure(0.03)},
}
ANSWER = {
    "tokens": ["Mira", " lives", " on", " Forest", " Road", "."],
    "rewards": [0.0, 0.1, 0.0, 0.0, 0.0, 1.0],
    "values": [0.2] * 6,
    "advantages": {lam: [0.1] * 6 for lam in ("0", "0.5", "0.95", "1")},
}
KL = {"exact": 0.2, "by_n": [{"n": n, **{k: {"mean": 0.2, "std": 0.1} for k in ("k1", "k2", "k3")}} for n in (8, 64)]}
RUNS = {
    f"beta {b}": [{"iteration": i, "kl": 0.1 * i, "score": 0.2 * i, "truth": figure(0.1 * i)} for i in range(12)]
    for b in (0, 0.02, 0.1)
}
WHITE, BLACK = "#ffffff", "#111111"  # JupyterLab's two backgrounds

# Every function of the library that draws a figure, each as notebooks call it: with the finished run, or with a result
# that is made up where its experiment is not stored.
FIGURES: dict[str, Callable[[Any], Any]] = {
    "shown.show": lambda lab: shown.show(lab.measured(e02.context_length)["by_place"], "place", "loss, nats a token"),
    "show, settings": lambda lab: shown.show(e04.by_examples(lab.measured(e04.quality_budgets)), "examples", "truth"),
    "show, log": lambda lab: shown.show(
        {"own": {"1": figure(0.5), "8": figure(0.9)}}, "K answers a prompt", "score", log=True, chance=0.5
    ),
    "show, vendors": lambda lab: shown.show(
        {"labels": lab.measured(e05.vendors)["labels"], "models": lab.measured(e05.vendors)["models"]},
        "vendor", "agreement with the truth", chance=0.5,
    ),
    "show, grades": lambda lab: shown.show(
        lab.measured(e06.margins)["accuracy"], "grade", "accuracy", chance=0.5,
        report={f"the report, {name}": values for name, values in e06.TABLE_28.items()},
    ),
    "show, starts": lambda lab: shown.show(lab.measured(e06.reward_start)["accuracy"], "start", "accuracy", chance=0.5),
    "show, two models": lambda lab: shown.show(lab.measured(e06.one_or_two_models)["accuracy"], "pairs of", "accuracy"),
    "show, skills": lambda lab: shown.show(n10.forgetting_series(lab.measured(e10.last_round_only)), "skill", "truth"),
    "show, who": lambda lab: shown.show(n10.ceiling_series(lab.measured(e10.ceiling)), "who answers", "truth"),
    "n00_start.figures.recipe_seconds": n00.recipe_seconds,
    "n01_tokenizer.figures.vocabulary_figure": lambda lab: n01.vocabulary_figure(
        {str(n): {"reached": n, "tokens_per_text": figure(9000 / n)} for n in (264, 600, 3000)}
    ),
    "n02_transformer.figures.spread_figure": lambda lab: n02.spread_figure(draws=20),
    "n02_transformer.figures.loss_curves": lambda lab: n02.loss_curves(GQA),
    "n02_transformer.figures.gap_figure": lambda lab: n02.gap_figure(GQA),
    "n02_transformer.figures.speed_figure": lambda lab: n02.speed_figure(SPEED),
    "n03_pretraining.figures.schedules_figure": lambda lab: n03.schedules_figure(),
    "n03_pretraining.figures.first_losses": lambda lab: n03.first_losses(
        {name: [{"step": i, "loss": 7 - i} for i in range(5)] for name in ("with warm-up", "without")}, 1024
    ),
    "n03_pretraining.figures.bits_figure": lambda lab: n03.bits_figure(
        {"untrained": figure(4), "zlib": figure(1.2, 0), "base": figure(0.9)}
    ),
    "n03_pretraining.figures.forms_figure": lambda lab: n03.forms_figure(lab.measured(e03.prompt_forms)),
    "n04_sft.figures.lengths_figure": lambda lab: n04.lengths_figure(lab.measured(e04.eos_length)),
    "n06_rewards.figures.training_curve": lambda lab: n06.training_curve(
        [{"step": i, "loss": 0.7, "accuracy": 0.6} for i in range(9)]
    ),
    "n06_rewards.figures.conflict_plane": lambda lab: n06.conflict_plane(
        [{"verdict": w, "helpfulness": DRAW.gauss(0, 2), "safety": DRAW.gauss(0, 2), "answer": "<b>"} for w in CONFLICT]
    ),
    "n06_rewards.figures.gate_curve": lambda lab: n06.gate_curve({"curve": GATE}),
    "n07_rejection.figures.models_figure": lambda lab: n07.models_figure(lab.measured(e07.accuracy_predicts)),
    "n08_ppo.figures.kl_figure": lambda lab: n08.kl_figure({"closer: V5 and V4": KL, "far: V5 and SFT": KL}),
    "n08_ppo.figures.gae_figure": lambda lab: n08.gae_figure(ANSWER),
    "n08_ppo.figures.runs_figure": lambda lab: n08.runs_figure(RUNS, {"kl": "KL, nats", "truth": "true helpfulness"}),
    "n08_ppo.figures.three_tokens_figure": lambda lab: n08.three_tokens_figure(
        {"clip 0.2": play(0.2), "no clip": play(math.inf)}, ["A, reward 0", "B, reward 1", "C, reward 2"]
    ),
    "n08_ppo.figures.over_optimisation_figure": lambda lab: n08.over_optimisation_figure(
        lab.measured(e08.over_optimisation)
    ),
    "n09_gatt.figures.attention_figure": lambda lab: n09.attention_figure(ATTENTION),
    "n11_evaluation.figures.win_chart": n11.win_chart,
    "n11_evaluation.figures.diversity_chart": lambda lab: n11.diversity_chart(
        {"temperatures": [0.5, 0.9, 1.3]}
        | {s: {k: [figure(0.5)] * 3 for k in ("factual", "creative")} for s in ("sft", "rlhf-v5")}
    ),
    "n12_safety.figures.share_chart": lambda lab: n12.share_chart(lab.measured(e12.safety_share)),
    "n12_safety.figures.attacks_chart": lambda lab: n12.attacks_chart(
        {s: {w: figure(0.3) for w in ("nothing", "Please be quick.")} for s in ("sft", "rlhf-v5")}
    ),
    "n12_safety.figures.safety_chart": lambda lab: n12.safety_chart(
        {"safe": [DRAW.random() for _ in range(240)], "harm": [i % 17 == 0 for i in range(240)]}
    ),
    "charts.agreement_figure": lambda lab: charts.agreement_figure(
        {what: {key: figure(0.5) for key, *_ in charts.COEFFICIENTS} for what in WHATS}
    ),
    "charts.dots": lambda lab: charts.dots(quality.quality(labels()), "others", [], "agrees with the others", 0.5),
    "charts.grades_figure": lambda lab: charts.grades_figure(quality.quality(labels())),
    "charts.time_figure": lambda lab: charts.time_figure(labels()),
    "charts.progress_figure": lambda lab: charts.progress_figure(labels()),
    "charts.vendors_figure": lambda lab: charts.vendors_figure(quality.quality(labels(), by="vendor"), []),
}  # fmt: skip
PARTS = {"look.style", "shown._show_rows", "charts._named"}  # what draws for others


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> summary.Results:
    return summary.load_run(make_run(tmp_path_factory.mktemp("run") / "r"))


def drawing() -> set[str]:
    """Every function of the library that gives a figure, by module and name."""
    found = set()
    for module in pkgutil.walk_packages([str(PACKAGE)], "llama2lab."):
        if re.search(r"\.(figures|charts|plots|shown|look|page|dashboard)$", module.name):
            loaded = importlib.import_module(module.name)
            for name, one in inspect.getmembers(loaded, inspect.isfunction):
                if one.__module__ == module.name and "go.Figure" in str(one.__annotations__.get("return")):
                    short = (
                        module.name.rsplit(".", 2)[-2:]
                        if module.name.endswith(".figures")
                        else [module.name.rsplit(".")[-1]]
                    )
                    found.add(".".join([*short, name]))
    return found


def test_every_function_that_draws_is_looked_at() -> None:
    of_results = {f"plots.{f.__name__}" for f in OF_RESULTS}
    assert drawing() - set(FIGURES) - of_results - PARTS == set()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_a_lesson_can_be_read(name: str, lab) -> None:
    drawn = FIGURES[name](lab)
    assert drawn is not None and faults(drawn) == []


@pytest.mark.parametrize("draw", OF_RESULTS, ids=lambda f: f.__name__)
def test_a_figure_of_a_run_can_be_read(draw, results, lab) -> None:
    assert faults(draw(results)) == [] == faults(draw(lab.figures))


def test_names_of_points_keep_off_each_other() -> None:
    def sides(**points: tuple[float, float]) -> list[str]:
        return plots._sides({name: [figure(x), figure(y)] for name, (x, y) in points.items()})

    apart = sides(sft=(0, 0), v1=(1, 1))
    assert apart == ["top left", "top left"]
    near = sides(far=(0, 0), sft=(0.98, 1), v1=(1, 1), v2=(1.02, 0.99))
    assert len(set(near[1:])) == 3


def test_a_guess_on_a_figure_can_be_read(lab) -> None:
    fig = plots.gatt_by_turn(lab.figures)
    mark_guess(fig, 0.5, "y")
    assert faults(fig) == []


def test_no_notebook_draws_by_itself() -> None:
    """What a notebook draws in its own cells, no test sees."""
    for path in (PACKAGE.parent / "notebooks").glob("*.ipynb"):
        code = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert not [line for line in "\n".join(code).splitlines() if re.search(r"go\.|add_scatter|style\(", line)], path


# ---- the rules themselves ------------------------------------------------------------------------------------------


def drawn(**changed: Any) -> go.Figure:
    line = {"x": [1, 2], "y": [3, 4], "name": "a", "mode": "lines", **changed.pop("trace", {})}
    return style(go.Figure(go.Scatter(line)), changed.pop("x", "x"), changed.pop("y", "y"), **changed)


def test_each_fault_is_found() -> None:
    assert faults(drawn()) == []
    assert "has no title" in faults(drawn(y=""))[0]
    assert "joins kinds" in faults(drawn(trace={"x": ["chat", "base"]}))[0]
    named = drawn().update_xaxes(tickvals=[1, 2], ticktext=["chat", "base"])
    assert "joins kinds" in faults(named)[0] and faults(named.update_traces(mode="markers")) == []
    assert faults(drawn().update_xaxes(tickvals=[1, 2], ticktext=["1 Mira", "2 lives"])) == []
    two = drawn(legend=False).add_scatter(x=[1], y=[2], name="b")
    assert "no legend" in faults(two)[0]
    two.update_layout(showlegend=True, yaxis2={"overlaying": "y", "title": "other"})
    two.data[1].yaxis = "y2"
    assert "two scales" in faults(two)[0]
    assert "11 px" in faults(drawn().update_xaxes(tickfont_size=11))[0]
    assert "of its own" in faults(drawn().add_annotation(text="here", font_color="#eeeeee"))[0]
    assert "on white" in faults(drawn().update_layout(font_color="#999999"))[0]
    grey = style(go.Figure(go.Bar(x=[1], y=[1], textposition="inside", marker_color="#888888")), "x", "y", legend=False)
    assert "text in None on #888888" in faults(grey)[0]


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast(WHITE, "#000000") == pytest.approx(21) and contrast(WHITE, WHITE) == 1
    assert contrast("#777777", WHITE) == pytest.approx(4.48, abs=0.01)


# ---- what is written elsewhere -------------------------------------------------------------------------------------

SIZES = re.compile(
    r"""font[-_]?[sS]ize["']?\s*[:=]\s*["']?([\d.]+)(px|em|rem|%)?|\bfont["']?\s*:\s*["']?[^;{}"'<>]*?([\d.]+)(px|em|rem|%)"""
)


def sizes(text: str) -> list[tuple[float, str]]:
    """The sizes of fonts that a style sheet, a script or a page of Python names."""
    return [(float(a or b), unit or other) for a, unit, b, other in SIZES.findall(text)]


def too_small(size: float, unit: str) -> bool:
    """Of what is relative, 0.8 of the 15 px and more that it stands in."""
    return size < {"px": SMALLEST, "": SMALLEST, "em": 0.8, "rem": 0.75, "%": 80}[unit]


def test_sizes_are_found() -> None:
    found = sizes("a {font: 600 11px/1.2 x} b {font-size: .7em} c {font-size:12px} d {font: 15px/1.5 y}")
    assert found == [(11, "px"), (0.7, "em"), (12, "px"), (15, "px")]
    assert sizes('{"font-size": 11}') == [(11, "")] == sizes('<text font-size="11">')
    assert [too_small(*one) for one in found] == [True, True, False, False]


@pytest.mark.parametrize("kind", ["css", "js", "html", "j2", "py"])
def test_nothing_is_written_small(kind: str) -> None:
    small = {
        f"{path.relative_to(PACKAGE)}: {size:g}{unit}"
        for path in PACKAGE.rglob(f"*.{kind}")
        for size, unit in sizes(path.read_text(encoding="utf-8"))
        if too_small(size, unit)
    }
    assert small == set()


def test_tables_and_pictures_escape_and_say_what_they_are() -> None:
    table = shown.Table(("<b>", "mean"), [["<i>", 1]])
    assert "<b>" not in table._repr_html_() and "<i>" not in table._repr_html_() and repr(table) == "<b>; mean\n<i>; 1"
    told = shown.verdicts({"a less b": stats.mean([1.0, 1.1, 1.2])})
    assert told.rows[0][2] == "as the report says"
    assert 'scope="col"' in pictures.table(("a",), [["b"]])


def test_code_that_is_shown_breaks_no_word() -> None:
    shown = source(style)._repr_html_()
    assert "white-space: pre;" in shown and "paper_bgcolor" in shown
