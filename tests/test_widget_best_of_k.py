"""The best-of-K explorer, and the one that compares choosing with scoring."""

import numpy as np
import pytest

from llama2lab.lab.shown import oracle_words
from llama2lab.lessons.n05_preferences.widget_annotation_time import AnnotationTime
from llama2lab.lessons.n07_rejection import widget_best_of_k as best_of_k
from llama2lab.lessons.n07_rejection.widget_best_of_k import BestOfK, Drawn, curves, known_prompts, sample_k
from llama2lab.stages.rejection import best_of_curve
from llama2lab.town.truth import REFUSAL


def test_curves_rise_as_they_must():
    scores, truths = [0.1, 2.0, -1.0, 0.5], [1.0, -3.0, 2.0, 0.0]
    rows = curves(scores, truths)
    assert [row["k"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["max"] == rows[0]["median"] == rows[0]["mean"]
    for name in ("max", "ceiling"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
    last = rows[-1]
    assert (last["max"], last["pick"], last["ceiling"]) == (2.0, -3.0, 2.0)
    assert last["mean"] == pytest.approx(0.4) and last["median"] == pytest.approx(0.3)
    whole = best_of_curve([scores], [4])[0]
    assert (last["max"], last["median"]) == pytest.approx((whole["max"], whole["median"]))
    assert curves([], []) == [] and rows == curves(scores, truths)


def test_draws_are_scored_and_judged(lab):
    prompt = known_prompts(lab)[0][1]
    drawn = sample_k(lab, prompt, "sft", 4, 1.0, 0)
    assert len(drawn) == 4 and all(np.isfinite([d.score, d.truth]).all() for d in drawn)
    assert [d.truth for d in drawn] == [lab.oracle.judge(prompt, d.text).helpfulness for d in drawn]
    assert oracle_words(lab.oracle.judge(prompt, REFUSAL)) == "refuses without need"
    assert {p.split for _, p in known_prompts(lab)} == {"test"}


def test_the_picture_follows_the_controls(lab):
    explorer = BestOfK(lab, k=2, most=4)
    first = explorer.static()
    assert "Error" not in first and "true worth" not in first and first.count("<tr>") == 3
    explorer.k.value = 4
    assert explorer.static().count("<tr>") == 5 and len(explorer.kept) == 1  # no new draws
    explorer.reveal.value = True
    assert "true worth" in explorer.static() and "truly worth" in explorer.static()
    explorer.again.click()
    assert len(explorer.kept) == 2
    explorer.prompt.value = next(name for name in explorer.prompts if name.startswith("unsafe"))
    assert "Error" not in explorer.static()


def test_hostile_answers_are_escaped(lab, monkeypatch):
    evil = Drawn("<script>alert(1)</script>\u202e", 1.0, 0.0, "wrong")
    monkeypatch.setattr(best_of_k, "sample_k", lambda *a: [evil] * 3)
    explorer = BestOfK(lab, most=3)
    assert "<script>" not in explorer.static() and "&lt;script&gt;" in explorer.static()


def test_choosing_against_scoring_follows_its_sliders():
    rng = np.random.default_rng(0)
    parts = {}
    for name, n in (("train", 120), ("test", 60)):
        x = rng.normal(size=(2 * n, 3))
        parts[name] = {"x": x.tolist(), "worth": (x @ [1.0, 0.5, 0.0]).tolist()}
    explorer = AnnotationTime(parts, seconds=7.0, repeats=1)
    before = explorer.static()
    assert explorer.choice.value == 7.0 and "Error" not in before and "choice and grade" in before
    explorer.strictness.value = 3.0
    assert explorer.effort.strictness == 3.0 and explorer.static() != before
