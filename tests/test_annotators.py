"""Simulated annotators: noise, habits, grades, the rule of the safety bins, and the rows they make."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES
from llama2lab.town.annotators import (
    CUTS,
    VENDORS,
    Annotator,
    Biases,
    Judgement,
    annotators_of,
    grade_of,
    label_pairs,
    logistic,
    preference_row,
    true_worth,
)
from llama2lab.town.items import Prompt, Verdict

PROMPT = Prompt(
    "facts/mira.home/0", ({"role": "user", "content": "Where does Mira live?"},), "facts", "helpful", "", "train"
)


def verdict(helpfulness: float, safety: float = 1.0, safe: bool = True) -> Verdict:
    return Verdict(True, 1.0, 1.0, 1.0, safe, False, False, False, not safe, False, False, helpfulness, safety)


class StubOracle:
    """Knows the worth of an answer by its text: "2.5" is worth 2.5; "unsafe ..." is harmful."""

    def judge(self, prompt: Prompt, answer: str) -> Verdict:
        if answer.startswith("unsafe"):
            return verdict(1.0, -2.0, safe=False)
        return verdict(float(answer.split()[0]))


def agreement(annotator: Annotator, n: int = 6000) -> dict[str, float]:
    """Share of choices that agree with the truth, by grade, over true gaps of all sizes."""
    rng = random.Random(1)
    hits: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for i in range(n):
        a, b = rng.gauss(0.5, 1.3), rng.gauss(0.5, 1.3)
        label = annotator.label(PROMPT, f"one {i}", f"two {i}", "helpfulness", (verdict(a), verdict(b)))
        total[label.grade] += 1
        hits[label.grade] += (label.choice == "a") == (a > b)
    return {g: hits[g] / total[g] for g in GRADES} | {"all": hits.total() / n}


def test_agreement_with_the_truth_falls_with_the_grade():
    share = agreement(VENDORS["typical"])
    assert 0.90 <= share["significantly"] <= 0.99
    assert 0.78 <= share["better"] <= 0.92
    assert 0.62 <= share["slightly"] <= 0.78
    assert 0.50 <= share["negligibly"] <= 0.62


def test_vendors_differ_as_their_names_say():
    assert len(VENDORS) >= 4
    share = {name: agreement(a, 3000)["all"] for name, a in VENDORS.items()}
    assert share["careful"] > share["typical"] > share["hasty"]


@pytest.mark.parametrize(
    ("vendor", "winner", "loser"),
    [
        ("length_biased", "1.0 " + "and more words of no use " * 6, "1.0 short"),
        ("charmed", "1.0 of course. It is so. Ask me more any time.", "1.0 it is so."),
        ("formal", "1.0 considerable establishments notwithstanding", "1.0 a big old red inn"),
    ],
)
def test_habits_pull_the_choice(vendor: str, winner: str, loser: str):
    a, b = verdict(1.0), verdict(1.0)
    n = 400
    prompts = [replace(PROMPT, id=f"facts/mira.home/{i}") for i in range(n)]
    labels = [VENDORS[vendor].label(p, winner, loser, "helpfulness", (a, b)) for p in prompts]
    assert sum(label.choice == "a" for label in labels) / n > 0.6


def test_position_habit_favours_the_first_shown():
    hasty = Annotator("h", "h", noise=0.5, biases=Biases(position=0.6))
    first = sum(
        hasty.label(PROMPT, f"x{i}", f"y{i}", "helpfulness", (verdict(1), verdict(1))).choice == "a" for i in range(500)
    )
    assert first > 330


def test_labels_are_deterministic_and_depend_on_the_seed():
    pair = (PROMPT, "1.0 a", "1.1 b", "helpfulness", (verdict(1.0), verdict(1.1)))
    one = Annotator("x", "v", seed=1)
    assert one.label(*pair) == Annotator("x", "v", seed=1).label(*pair)
    gaps = {Annotator("x", "v", seed=s).label(*pair).perceived_gap for s in range(20)}
    assert len(gaps) == 20


def test_grades_follow_the_size_of_the_perceived_gap():
    assert [grade_of(g) for g in (3.0, -3.0, 1.5, -0.5, 0.1, 0.0)] == [
        "significantly",
        "significantly",
        "better",
        "slightly",
        "negligibly",
        "negligibly",
    ]
    assert list(CUTS) == sorted(CUTS, reverse=True)


def test_no_row_has_an_unsafe_answer_chosen_over_a_safe_one():
    label = Judgement("a", "better", safe_a=False, safe_b=True, perceived_gap=1.2)
    assert label.safety == ""
    assert preference_row(PROMPT, "a", "b", label, "safety") is None
    assert preference_row(PROMPT, "a", "b", label, "helpfulness") is not None
    pairs = [(PROMPT, f"unsafe {i}", f"{i % 3}.5 x{i}") for i in range(600)]
    hasty = Annotator("h", "h", noise=4.0, safety_error=0.2)
    rows = label_pairs([hasty], StubOracle(), pairs, "safety", 0)  # type: ignore[arg-type]
    assert 300 < len(rows) < 600
    assert {r["safety"] for r in rows} == {"chosen_safe", "both_safe", "both_unsafe"}


def test_safety_first_then_helpfulness():
    harmful, bare, kind = verdict(1.0, -2.0, False), verdict(-0.5, 0.8), verdict(0.7, 1.9)
    assert true_worth(harmful, "helpfulness") > true_worth(kind, "helpfulness")
    assert true_worth(kind, "safety") > true_worth(bare, "safety") > true_worth(harmful, "safety")
    assert true_worth(bare, "safety") - true_worth(harmful, "safety") > CUTS[0]


def test_rows_have_the_schema_and_drop_equal_answers():
    pairs = [(PROMPT, "2.0 good", "-1.0 bad"), (PROMPT, "1.0 same", " 1.0 same ")]
    rows = label_pairs(annotators_of(("careful",) * 3), StubOracle(), pairs, "helpfulness", 5)  # type: ignore[arg-type]
    assert len(rows) == 1
    (row,) = rows
    assert set(row) == {"prompt", "chosen", "rejected", "grade", "safety", "kind", "prompt_id", "annotator", "vendor"}
    assert row["prompt"] == [{"role": "user", "content": "Where does Mira live?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "2.0 good"}]
    assert (row["kind"], row["safety"], row["prompt_id"], row["vendor"]) == ("helpfulness", "", PROMPT.id, "careful")
    again = label_pairs(annotators_of(("careful",) * 3), StubOracle(), pairs, "helpfulness", 5)  # type: ignore[arg-type]
    assert again == rows


def test_which_answer_is_shown_first_is_drawn():
    pairs = [(PROMPT, f"1.0 a{i}", f"1.0 b{i}") for i in range(400)]
    always_first = Annotator("f", "f", noise=0.01, biases=Biases(position=3.0))
    rows = label_pairs([always_first], StubOracle(), pairs, "helpfulness", 0)  # type: ignore[arg-type]
    from_first = sum(" a" in r["chosen"][0]["content"] for r in rows)
    assert 150 < from_first < 250


def test_mistakes_are_told_in_one_line():
    with pytest.raises(LabError, match="careful"):
        annotators_of(("typical", "thorough"))
    with pytest.raises(LabError, match="nobody"):
        label_pairs([], StubOracle(), [], "helpfulness")  # type: ignore[arg-type]


def test_logistic_noise():
    rng = random.Random(0)
    draws = [logistic(rng, 1.0) for _ in range(20_000)]
    mean = sum(draws) / len(draws)
    variance = sum((d - mean) ** 2 for d in draws) / len(draws)
    assert abs(mean) < 0.05
    assert abs(variance - 3.29) < 0.15  # pi^2 / 3
    assert logistic(rng, 0.0) == 0.0
