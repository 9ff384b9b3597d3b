"""One's own labels are searched by words and by answer; nothing else is found, and a past attempt stays closed."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from test_annotation_widget import Page, filled, gold, judge, row, visitor

from llama2lab.annotation.form.finding import FOUND, around
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.engine.scale import KINDS


def labelled(path: Path, name: str = "Ada", n: int = 4) -> Page:
    """Ada has judged pairs, each with another grade; one has a comment, one a flag, the last was skipped."""
    page = Page(AnnotationForm(path, name))
    answer = page.begin()
    for i, grade in enumerate(("significantly", "better", "slightly", "negligibly")[: n - 1]):
        more = {1: {"comment": "Odd: Straße?"}, 2: {"flag": True}}.get(i, {})
        assert page.label(answer["task"]["item_id"], "left", grade, **more)["ok"]
        answer = page.ask(type="next")
    item = {"item_id": answer["task"]["item_id"], "label_id": uuid.uuid4().hex}
    assert page.ask(type="skip", reason="I cannot read it", **item)["ok"]
    return page


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return labelled(filled(tmp_path / "labels.db", [row(i) for i in range(6)]))


def found(page: Page, **wish: Any) -> list[int]:
    answer = page.ask(type="find", **wish)
    assert answer["ok"] and answer["fitting"] == len(answer["found"]) and answer["of"] == 4
    return [one["index"] for one in answer["found"]]


def test_all_marks_and_words_the_newest_first(page: Page) -> None:
    assert found(page) == [3, 2, 1, 0]
    assert found(page, mark="better") == [1] and found(page, mark="significantly") == [0]
    assert found(page, mark="skipped") == [3] and found(page, mark="flagged") == [2]
    assert found(page, mark="commented") == [1]
    assert found(page, text="STRASSE") == [1] and found(page, text="cannot READ") == [3]
    assert found(page, text="STRASSE", mark="better") == [1] and found(page, text="strasse", mark="slightly") == []
    question = page.ask(type="past", index=2)["task"]["prompt"][-1]["content"]
    assert found(page, text=question.upper()) == [2]
    assert found(page, text="no such words") == []


def test_a_line_says_what_was_answered_and_where_the_words_stand(page: Page) -> None:
    (one,) = page.ask(type="find", text="odd")["found"]
    assert one["said"] == "Answer A better, commented" and one["piece"] == "Odd: Straße?"
    assert one["question"].startswith("Question ")
    (skipped,) = page.ask(type="find", mark="skipped")["found"]
    assert skipped["said"] == "skipped" and skipped["piece"] == ""
    assert around("a" * 200 + "HERE" + "b" * 200, "here") == "…" + "a" * 60 + "HERE" + "b" * 60 + "…"


def test_what_is_found_can_be_changed(page: Page) -> None:
    (one,) = page.ask(type="find", mark="better")["found"]
    past = page.ask(type="past", index=one["index"])
    changed = {"replaces": past["label"]["label_id"]}
    assert page.label(past["task"]["item_id"], "left", "negligibly", **changed)["ok"]
    assert found(page, mark="better") == [] and found(page, mark="negligibly") == [1]


def test_nobody_finds_what_others_said(page: Page, tmp_path: Path) -> None:
    other = labelled(tmp_path / "labels.db", "Bob", 2)
    assert other.ask(type="find", text="straße")["fitting"] == 0 and other.ask(type="find")["of"] == 2


@pytest.mark.parametrize("wish", [{"mark": "wrong"}, {"text": "x" * 1001}, {"text": 5}, {"mark": None}, {"more": 1}])
def test_what_the_page_makes_up_is_refused(page: Page, wish: dict[str, Any]) -> None:
    answer = page.ask(type="find", **wish)
    assert not answer["ok"] and "'find'" in answer["error"]


def test_of_many_the_newest_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    page = Page(AnnotationForm(filled(tmp_path / "l.db", [row(i) for i in range(FOUND + 3)]), "Ada"))
    answer = page.begin()
    while answer["stage"] == "item":
        assert page.label(answer["task"]["item_id"])["ok"]
        answer = page.ask(type="next")
    answer = page.ask(type="find")
    assert answer["fitting"] == FOUND + 3 and [one["index"] for one in answer["found"]] == [*range(FOUND + 2, 2, -1)]


def test_an_attempt_that_is_over_is_not_searched(tmp_path: Path) -> None:
    rows = [row(i) for i in range(3)] + [gold(i) for i in range(4)]
    page = visitor(filled(tmp_path / "labels.db", rows), attempts=1)
    page.begin("Ada")
    answer = page.ask(type="begin")
    for found in (0, 1, 0):  # while the attempt goes on its pairs can be changed
        assert page.ask(type="find")["of"] == found
        answer = judge(page, answer, True)
    assert answer["first_index"] == 2
    listed = page.ask(type="find")
    assert [one["index"] for one in listed["found"]] == [2] and listed["of"] == 1


def test_practice_is_not_searched_even_where_it_did_not_come_first(tmp_path: Path) -> None:
    """Known answers could be found by changing what was explained. One pair was answered before there was practice."""
    path = filled(tmp_path / "labels.db", [row(0)])
    before = Page(AnnotationForm(path, "Ada"))
    judge(before, before.begin(), True)
    filled(path, [gold(1), gold(2), *(row(i) for i in (3, 4))])
    page = Page(AnnotationForm(path, "Ada", practice=2))
    answer, explained = page.begin(), []
    while "practice" in answer:
        explained.append(answer["task"]["item_id"])
        answer = judge(page, answer, True)
    assert len(explained) == 2
    judge(page, answer, True)
    listed = page.ask(type="find")
    assert [one["index"] for one in listed["found"]] == [3, 0] and listed["of"] == 2
    for one in listed["found"]:
        past = page.ask(type="past", index=one["index"])
        assert past["ok"] and past["task"]["item_id"] not in explained
    assert page.ask(type="find", text="question")["fitting"] == 2  # all four hold it


def test_each_of_two_tasks_is_searched_by_itself(tmp_path: Path) -> None:
    rows = [row(i, KINDS[i % 2]) for i in range(6)] + [gold(7), {**gold(8), "kind": "safety"}]
    page = Page(AnnotationForm(filled(tmp_path / "labels.db", rows), "Ada", practice=1))
    assert page.begin()["stage"] == "tasks"
    marks = {"helpfulness": {}, "safety": {"safe_left": True, "safe_right": True}}
    asked: dict[str, list[str]] = {}
    for kind in KINDS:
        answer = page.ask(type="task", kind=kind)
        while answer["stage"] == "item" and answer["count"] < 3:
            asked.setdefault(kind, []).append(answer["task"]["item_id"])
            assert page.label(answer["task"]["item_id"], **marks[kind])["ok"]
            answer = page.ask(type="next")
    for kind in KINDS:  # back and forth: the numbers are those of the task
        page.ask(type="task", kind=kind)
        listed = page.ask(type="find")
        assert [one["index"] for one in listed["found"]] == [2, 1] and listed["of"] == 2
        for one in listed["found"]:
            past = page.ask(type="past", index=one["index"])
            assert past["task"]["item_id"] == asked[kind][one["index"]] and past["task"]["kind"] == kind
            changed = {"replaces": past["label"]["label_id"], **marks[kind]}
            assert page.label(past["task"]["item_id"], "right", "slightly", **changed)["ok"]
        assert page.ask(type="find", mark="slightly")["fitting"] == 2
