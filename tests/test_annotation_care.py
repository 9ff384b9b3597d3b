"""Too fast or careless work is named with its reason, by stated rules; careful work is not."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llama2lab.annotation.agreement import dashboard
from llama2lab.annotation.agreement.quality import CAREFUL, QUICKEST, careless, quality, skimming


def label(who: str, choice: int, grade: str = "better", item: str = "i", **more: Any) -> dict[str, Any]:
    """A person's label as `Store.labels` gives it."""
    return {
        **{"item_id": item, "kind": "helpfulness", "prompt": [{"role": "user", "content": "Which?"}]},
        **{"answers": ["one", "two"], "prompt_id": "p", "models": None, "gold": None, "verdict": None},
        **{"annotator": who, "annotator_kind": "person", "vendor": "", "choice": choice, "grade": grade},
        **{"safe_1": None, "safe_2": None, "comment": "", "flag": False, "skip_reason": None, "seconds": 9.0},
        **{"left": None, "created_at": "", "guidelines": "", **more},
    }


WORDS = "one two three four five six seven eight nine ten"  # ten words: two answers and a question make 30, 3 s


def work(who: str, n: int, seconds: float = 20.0, gold: int = 0, right: int = 0, **more: Any) -> list[dict[str, Any]]:
    """n labels of ordinary pairs and `gold` of gold pairs, of which `right` agree."""
    rng = random.Random(who)
    grades = ("significantly", "better", "slightly", "negligibly")
    made = []
    for i in range(n + gold):
        told = {"gold": {"choice": 1}} if i >= n else {}
        choice = (1 if i - n < right else 2) if told else rng.choice((1, 2))
        given = {"grade": rng.choice(grades), "seconds": seconds, **told, **more}
        one = label(who, choice, item=f"i{i}", **given)
        made.append({**one, "prompt": [{"role": "user", "content": WORDS}], "answers": [WORDS, WORDS + "!"]})
    return made


def named(labels: list[dict[str, Any]]) -> dict[str, str]:
    return {alarm.what: alarm.words for alarm in careless(quality(labels)) if alarm.raised}


def test_the_time_that_skimming_takes_is_that_of_the_words() -> None:
    assert skimming(work("Ada", 1)[0]) == pytest.approx(3.0)  # 30 words at 600 a minute
    assert skimming(label("Ada", 1)) == QUICKEST  # "Which?", "one", "two"


def test_the_annotator_of_the_report_is_named_with_the_reason() -> None:
    """A median of 0.6 s a pair and 14 of 20 gold pairs right."""
    found = named(work("Eve", 40, seconds=0.6, gold=20, right=14))
    assert set(found) == {"fast", "gold"}
    assert "median 0.6 s a pair" in found["fast"] and "takes 3.0 s" in found["fast"] and "60 of 60" in found["fast"]
    assert "14 of 20 gold pairs" in found["gold"]
    text = dashboard.summary_text(work("Eve", 40, seconds=0.6, gold=20, right=14))
    assert "Eve judges faster than one can read: median 0.6 s" in text


@pytest.mark.parametrize(("seconds", "fast"), [(2.9, True), (3.1, False)])
def test_faster_than_skimming_is_too_fast(seconds: float, fast: bool) -> None:
    assert ("fast" in named(work("Ada", 30, seconds=seconds))) == fast


def test_a_few_quick_judgements_are_no_habit() -> None:
    labels = work("Ada", 16, seconds=12.0) + [
        {**x, "item_id": x["item_id"] + "q"} for x in work("Ada", 14, seconds=0.5)
    ]
    assert named(labels) == {}
    assert named(work("Ada", 4, seconds=0.5)) == {}  # four say nothing yet: p is 1 in 16
    assert "fast" in named(work("Ada", 5, seconds=0.5))


def test_untimed_labels_are_not_fast() -> None:
    assert named(work("imported", 50, seconds=0.0)) == {}


@pytest.mark.parametrize(("right", "of", "low"), [(7, 10, False), (6, 10, True), (14, 20, True), (17, 20, False)])
def test_gold_is_held_to_nine_of_ten(right: int, of: int, low: bool) -> None:
    assert ("gold" in named(work("Ada", 0, gold=of, right=right))) == low


def test_one_grade_for_all_is_named_and_most_of_one_grade_is_not() -> None:
    assert "better in 20 of 20" in named(work("Ada", 20, grade="better"))["grade"]
    assert named(work("Ada", 19, grade="better")) == {}  # too few to tell
    mixed = work("Ada", 40)
    assert named([{**x, "grade": "better" if i % 5 else "slightly"} for i, x in enumerate(mixed)]) == {}


def test_of_careful_people_each_rule_names_at_most_one_in_twenty() -> None:
    """Who gets nine of ten gold pairs right, reads at the pace of skimming by a coin, and uses one grade in four of
    five judgements stands on the edge of each rule."""
    rng, counts, crowd = random.Random(7), {"fast": 0, "gold": 0, "grade": 0}, 200
    for _ in range(crowd):
        labels = []
        for x in work("Ada", 40, gold=20, right=sum(rng.random() < CAREFUL for _ in range(20))):
            grade = "better" if rng.random() < 0.8 else "slightly"
            labels.append({**x, "seconds": rng.choice((2.5, 3.5)), "grade": grade})
        for what in named(labels):
            counts[what] += 1
    # 5 % of 200 is 10; 18 or more come of 5 % once in a hundred such trials.
    assert all(count < 18 for count in counts.values()), counts


def test_the_page_names_the_careless_and_marks_their_figures(tmp_path: Any) -> None:
    labels = work("Eve", 40, seconds=0.6, gold=20, right=12) + work("Ada", 40, gold=20, right=19)
    page = dashboard.write_page(labels, tmp_path / "p.html").read_text(encoding="utf-8")
    listed = page[page.index('id="who-stands-out"') : page.index("Four habits")]
    assert "Eve" in listed and "faster than one can read" in listed and "Ada" not in listed
    header, rows = dashboard.quality_rows(*dashboard.tested(labels)[0][1:])
    marked = {header[i] for row in rows if row[0].text == "Eve" for i, cell in enumerate(row) if cell.odd}
    assert {"median s", "with gold"} <= marked
    assert not any(cell.odd for row in rows if row[0].text == "Ada" for cell in row)
