"""Agreement equal to the libraries' published figures, who stands out, and the teacher's page."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from annotation_pairs import label_store, labels_of, oracle, people_of, town_items
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.annotation.agreement import charts, dashboard
from llama2lab.annotation.agreement import coefficients as a
from llama2lab.annotation.agreement.quality import Quality, alarms, holm, majorities, quality
from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, POSITIONS

NAN = float("nan")
# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), and the example in Gwet (2014), both as the
# documentation of the packages krippendorff and irrCAC shows them.
ALPHA_EXAMPLES: dict[str, list[list[float]]] = {
    "three": [
        [NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3],
        [1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN],
        [NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4],
    ],
    "four": [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ],
}
GWET_EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, NAN],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 3],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def counts(raters: list[list[float]], categories: int) -> np.ndarray:
    table = np.array(raters)
    return np.array([[(unit == v).sum() for v in range(1, categories + 1)] for unit in table.T], float)


def label(
    item: str = "i",
    who: str = "Ada",
    choice: int | None = 1,
    grade: str | None = "better",
    **more: Any,
) -> dict[str, Any]:
    """A label, written by hand."""
    return {
        "item_id": item,
        "kind": "helpfulness",
        "prompt": [{"role": "user", "content": "Which?"}],
        "answers": [f"first of {item}", f"second of {item}"],
        "prompt_id": item,
        "models": None,
        "gold": None,
        "annotator": who,
        "annotator_kind": "person",
        "vendor": "",
        "choice": choice,
        "grade": grade,
        "safe_1": True,
        "safe_2": True,
        "comment": "",
        "flag": False,
        "skip_reason": None,
        "seconds": 5.0,
        "left": 1,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "guidelines": "",
        **more,
    }


# ---- the published figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example, categories, level, value",
    [("three", 4, "nominal", 0.691), ("four", 5, "nominal", 0.743), ("four", 5, "ordinal", 0.815)],
)
def test_alpha_equals_the_published_figures(example: str, categories: int, level: Any, value: float) -> None:
    table = counts(ALPHA_EXAMPLES[example], categories)
    assert a.alpha_of(table, level) == pytest.approx(value, abs=5e-4)
    rated = table[table.sum(axis=1) > 0]
    figures = a.figures_of(a.counts_from(rated.tolist(), range(len(rated)), categories), level)
    assert figures["alpha"]["low"] < value < figures["alpha"]["high"]


def test_gwets_coefficients_equal_the_published_figures() -> None:
    table = counts(GWET_EXAMPLE, 5)
    assert a.gwet_of(table, np.eye(5)) == pytest.approx(0.77544, abs=5e-6)
    weights = a.ordinal_weights(5)
    assert weights[0].round(6).tolist() == [1, 0.9, 0.7, 0.4, 0]  # as irrCAC's documentation has them
    assert a.gwet_of(table, weights) == pytest.approx(0.89894, abs=5e-6)  # irrCAC 0.4.4
    figures = a.figures_of(a.counts_from(table.tolist(), range(12), 5), "nominal")
    assert figures["percent"]["mean"] == pytest.approx(0.81818, abs=5e-6)
    assert figures["ac"]["low"] == pytest.approx(0.46081, abs=0.15) and figures["ac"]["high"] <= 1  # irrCAC: t interval


def test_gwet_with_many_missing_labels_equals_irrcac() -> None:
    """irrCAC 0.4.4, CAC(frame, weights=..., categories=[0.0 .. 7.0]), on 12 units of which some have one rating."""
    rows = [
        [0, 1, None],
        [7, 7, 6],
        [3, None, None],
        [2, 2, 2],
        [None, 4, 5],
        [1, 6, None],
        [0, 0, 0],
        [5, 5, 4],
        [7, None, 7],
        [2, 3, 2],
        [6, 6, None],
        [None, None, 1],
    ]
    table = np.array([[sum(v == k for v in row) for k in range(8)] for row in rows], float)
    assert a.gwet_of(table, a.ordinal_weights(8)) == pytest.approx(0.71779, abs=5e-6)
    assert a.gwet_of(table, np.eye(8)) == pytest.approx(0.42922, abs=5e-6)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=30),
    st.sampled_from(["nominal", "ordinal"]),
)
def test_the_bootstraps_alpha_is_the_librarys(rows: list[list[int]], level: Any) -> None:
    table = np.array([row for row in rows if sum(row)], float)
    pairable = table[table.sum(axis=1) >= 2] if len(table) else table
    if len(table) == 0 or (pairable.sum(axis=0) > 0).sum() < 2:
        assert math.isnan(a.alpha_of(table.reshape(-1, 4), level))
        return
    parts = a._parts(a.counts_from(table.tolist(), range(len(table)), 4), np.eye(4))
    ours = a._alpha(parts, np.ones((1, len(table))), level)[0]
    assert ours == pytest.approx(krippendorff.alpha(value_counts=table.astype(int), level_of_measurement=level))
    twice = a._alpha(parts, np.full((1, len(table)), 2.0), level)[0]  # every item drawn twice
    assert twice == pytest.approx(
        krippendorff.alpha(value_counts=np.vstack([table, table]).astype(int), level_of_measurement=level)
    )


def test_intervals_cover_the_truth_about_95_times_in_100() -> None:
    """Three annotators who are right with probability 0.8 on pairs without a base rate: percent agreement is 0.68 and
    AC1 and alpha 0.36."""
    rng, hits = np.random.default_rng(3), {"percent": 0, "ac": 0, "alpha": 0}
    for _ in range(200):
        right = rng.random((60, 3)) < 0.8
        ones = (right == (rng.random((60, 1)) < 0.5)).sum(axis=1)
        found = a.figures_of(a.counts_from(np.c_[ones, 3 - ones].tolist(), range(60), 2), "nominal", resamples=300)
        for name, truth in (("percent", 0.68), ("ac", 0.36), ("alpha", 0.36)):
            hits[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert all(178 <= n <= 199 for n in hits.values()), hits


# ---- from labels ------------------------------------------------------------------------------------------------


def test_the_eight_places_of_the_scale_are_the_items_not_the_screens() -> None:
    one = label(choice=1, grade="significantly")
    first = a.first_answer(one)
    places = [
        a.values_of(label(choice=c, grade=g), "grade")[0][1]
        for c in (first, 3 - first)
        for g in (GRADES if c == first else GRADES[::-1])
    ]
    assert places == list(range(len(POSITIONS)))


CHOICES = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from("abcd"),
        st.sampled_from([1, 2]),
        st.sampled_from(GRADES),
        st.booleans(),
        st.booleans(),
    ),
    max_size=32,
    unique_by=lambda x: (x[0], x[1]),
)


@given(CHOICES, st.permutations("abcd"), st.randoms(use_true_random=False))
def test_names_sides_numbers_and_order_change_nothing(
    drawn: list[tuple[Any, ...]], names: list[str], rng: random.Random
) -> None:
    labels = [label(f"i{i}", who, choice, grade, safe_1=s1, safe_2=s2) for i, who, choice, grade, s1, s2 in drawn]
    turned = {f"i{i}": rng.random() < 0.5 for i in range(8)}

    def change(x: dict[str, Any]) -> dict[str, Any]:
        x = {**x, "annotator": names["abcd".index(x["annotator"])], "left": rng.choice((1, 2))}
        if turned[x["item_id"]]:  # the other answer is number 1
            x |= {
                "answers": x["answers"][::-1],
                "choice": 3 - x["choice"],
                "safe_1": x["safe_2"],
                "safe_2": x["safe_1"],
            }
        return x

    changed = [change(x) for x in labels]
    for what in a.WHATS:
        before, after = (a.agreement(x, what, resamples=50) for x in (labels, changed))
        for name, figure in before.items():
            assert after[name]["mean"] == pytest.approx(figure["mean"], nan_ok=True)
            assert after[name]["n"] == figure["n"]


@pytest.mark.parametrize(
    "labels, defined, n",
    [
        ([], (), 0),
        ([label("i", "Ada"), label("j", "Ada")], (), 0),  # one annotator
        ([label("i", "Ada"), label("j", "Ben")], (), 0),  # no overlap
        ([label("i", "Ada"), label("i", "Ben", None, None, skip_reason="no idea")], (), 0),
        ([label("i", "Ada", gold={"choice": 1}), label("i", "Ben", gold={"choice": 1})], (), 0),
        ([label("i", "Ada", 1), label("i", "Ben", 1)], ("percent", "ac"), 1),  # no variation: alpha is not defined
        ([label("i", "Ada", 1), label("i", "Ben", 2)], ("percent", "alpha", "ac"), 1),
    ],
)
def test_what_is_not_defined_is_nan_with_n(labels: list[dict[str, Any]], defined: tuple[str, ...], n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = a.agreement(labels, "choice")
        rows = quality(labels)
        alarms(rows)
        dashboard.summary_text(labels)
    for name, figure in found.items():
        assert figure["n"] == n and math.isfinite(figure["mean"]) == (name in defined), (name, figure)


def test_unanimous_labels_leave_room_for_doubt() -> None:
    labels = [label(f"i{i}", who, 1 + i % 2) for i in range(10) for who in ("Ada", "Ben")]
    ac = a.agreement(labels, "choice")["ac"]
    assert ac["mean"] == ac["high"] == 1 and 0.3 < ac["low"] < 0.9


# ---- annotators -------------------------------------------------------------------------------------------------


def test_figures_of_one_annotator() -> None:
    labels = [
        label("i", "Ada", 1, left=1),
        label("i", "Ben", 1, left=2),
        label("i", "Cy", 2, left=2),
        label("g", "Ada", 2, gold={"choice": 1}, seconds=9.0),
        label("g", "Ben", 1, gold={"choice": 1}),
        label("k", "Ada", None, None, skip_reason="unclear", flag=True, safe_1=None, safe_2=None),
    ]
    ada, ben, cy = quality(labels)
    assert (ada.labels, ada.skips, ada.flags, ada.seconds) == (2, 1, 1, 7.0)
    assert ada.gold["mean"] == 0 and ben.gold["mean"] == 1 and cy.gold["n"] == 0
    assert ada.others["n"] == 0  # Ben and Cy disagree: no majority
    assert cy.others["mean"] == 0 and cy.others["n"] == 1
    assert (ada.left["mean"], ben.left["mean"], cy.left["mean"]) == (0.5, 0.5, 1.0)
    assert majorities(labels, "annotator") == {("i", "Cy"): 1}


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # statsmodels' documentation
    assert holm([]) == []


def by_name(rows: list[Quality]) -> dict[str, Quality]:
    return {r.name: r for r in rows}


def raised(labels: list[dict[str, Any]], by: Any = "vendor") -> set[tuple[str, str]]:
    return {(x.name, x.what) for x in alarms(quality(labels, by)) if x.raised}


@pytest.fixture(scope="module")
def with_hasty() -> list[dict[str, Any]]:
    return labels_of([*people_of("careful", 3), *people_of("typical", 3), *people_of("hasty", 3)], 800, 1)


def test_a_hasty_vendor_who_likes_the_left_is_found(with_hasty: list[dict[str, Any]]) -> None:
    rows = by_name(quality(with_hasty, "vendor"))
    assert rows["hasty"].left["low"] > 0.5 and rows["hasty"].others["high"] < rows["typical"].others["low"]
    found = raised(with_hasty)
    assert {("hasty", "left"), ("hasty", "others")} <= found
    assert {name for name, _ in found} == {"hasty"}


def test_a_vendor_who_likes_long_answers_is_found() -> None:
    labels = labels_of([*people_of("careful", 3), *people_of("typical", 3), *people_of("length_biased", 3)], 400, 1)
    rows = by_name(quality(labels, "vendor"))
    assert rows["length_biased"].length["low"] > 0
    assert raised(labels) == {("length_biased", "length")}


def test_charm_shows_against_gold() -> None:
    """Whoever is charmed by politeness chooses polite mistakes; on pairs with a known answer that costs agreement."""
    labels = labels_of([*people_of("careful", 2), *people_of("typical", 2), *people_of("charmed", 2)], 400, 2)
    sure = [replace(people_of("careful")[0], noise=1e-6)]
    known = {x["item_id"]: x["choice"] for x in labels_of(sure, 400, 2)}
    golden = [{**x, "gold": {"choice": known[x["item_id"]]}} for x in labels]
    rows = by_name(quality(golden, "vendor"))
    assert rows["charmed"].gold["high"] < rows["careful"].gold["low"]
    assert rows["charmed"].gold["mean"] < rows["typical"].gold["mean"]


@pytest.mark.long
@pytest.mark.slow
def test_honest_annotators_raise_no_alarm_but_for_luck() -> None:
    """16 tables of six alike annotators: at most five in a hundred may raise an alarm, so four here would be odd (one
    chance in a hundred). Of 150 tables, counted once, six did."""
    alarmed = 0
    for seed in range(16):
        alike = [replace(p, seed=p.seed + 31 * seed) for p in people_of("typical", 6)]
        alarmed += bool(raised(labels_of(alike, 120, seed), "annotator"))
    assert alarmed <= 3


# ---- the page ---------------------------------------------------------------------------------------------------


@pytest.fixture()
def labelled(tmp_path: Path) -> Any:
    """A store in which three simulated vendors have labelled the same pairs of the town."""
    items = town_items(60, 4)
    with open_store(str(tmp_path / "labels.db")) as store:
        add_pairs(
            store,
            [
                {
                    "kind": "helpfulness",
                    "prompt": [dict(m) for m in prompt.messages],
                    "answers": list(answers),
                    "prompt_id": prompt.id,
                }
                for prompt, *answers in items.values()
            ],
            overlap=3,
        )
        made = label_store(
            store,
            [p for v in ("careful", "typical", "hasty") for p in people_of(v)],
            oracle(),
            [prompt for prompt, *_ in items.values()],
        )
        assert made == {"careful-1": 60, "typical-1": 60, "hasty-1": 60}
        yield store


def test_simulated_vendors_work_through_a_store_and_the_page_shows_them(labelled: Any, tmp_path: Path) -> None:
    labels = labelled.labels()
    assert {x["annotator_kind"] for x in labels} == {"simulated"} and len(labels) == 180
    assert 0.3 < sum(x["left"] == 1 for x in labels) / 180 < 0.7
    assert sum(s.figure is not None for s in dashboard.sections_of(labels)) >= 6
    page = dashboard.write_page(labels, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "hasty" in page[page.index("<main>") :]
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", page)  # opens offline


def test_what_people_call_themselves_is_text(tmp_path: Path) -> None:
    evil = ["<script>alert(1)</script>", "<b>Eve</b>", '<a href="javascript:alert(1)">x</a>', "\u202elive", "%{x} $y$"]
    labels = [
        label(
            f"i{i}",
            who,
            1 + (i + j) % 2,
            seconds=3.0 + i,
            vendor=who,
            left=1 + i % 2,
            created_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=i),
        )
        for i in range(30)
        for j, who in enumerate(evil)
    ]
    page = dashboard.write_page(labels, tmp_path / "p.html").read_text(encoding="utf-8")
    body = page[page.index("<main>") :]
    for text in ("<script>alert", "<b>Eve", '<a href="javascript', "\u202e"):
        assert text not in body, text
    for section in dashboard.sections_of(labels):
        shown = section.figure.to_json() if section.figure is not None else ""
        assert "<b>" not in shown and "<a " not in shown and "<script" not in shown
    assert "\u202e" not in dashboard.summary_text(labels)


def test_two_names_that_look_alike_stay_two_rows() -> None:
    names = ["a" * 40 + "1", "a" * 40 + "2", "b"]
    rows = quality([label(f"i{i}", who, 1 + i % 2) for i in range(8) for who in names])
    figure = charts.dots(rows, "left", [], "left")
    assert figure is not None and sorted(figure.data[0].y) == [0, 1, 2]


def test_an_empty_store_and_a_wrong_place(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "empty.db")) as store:
        assert not any(s.figure is not None for s in dashboard.sections_of(store.labels()))
        page = dashboard.write_page(store.labels(), tmp_path / "page.html").read_text(encoding="utf-8")
        assert "too few labels" in page
        (tmp_path / "file").write_text("x")
        with pytest.raises(LabError, match="cannot write"):
            dashboard.write_page(store.labels(), tmp_path / "file" / "page.html")


def test_agreement_needs_no_torch() -> None:
    code = (
        "import sys\nfrom llama2lab.annotation import rows\n"
        "from llama2lab.annotation.agreement import coefficients, dashboard, quality, simulate\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
