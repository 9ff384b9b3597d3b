"""What stands beside a pair and around a session, without a browser: the book's lines, practice with its reasons, the
two tasks, and what the end page tells."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_annotation_widget import Page, filled, gold, judge, row, rows_of, visitor

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.form import book
from llama2lab.annotation.form.standing import Settings, Standing
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store import classroom, queue
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS
from llama2lab.run.gold import gold_pairs, guidelines
from llama2lab.town.town import load_town

RULES = "# How we judge\n\n1. **Right:** it is right.\n- **Not a name:** but a rule.\n"
BOOK = (
    "\n# The town's book\n\n- **Mira:** Mira is a tailor. The best friend of Mira is Anna.\n"
    "- **Anna:** Anna has a frog.\n"
    "- **hat shop:** The hat shop is run by\n  Mira.\n- **Market Square:** It is square.\n- **market:** It is big.\n"
)

# -- the book ----------------------------------------------------------------------------------------------------------


def test_a_book_is_the_last_part_of_the_guidelines() -> None:
    rules, there = book.split(RULES + BOOK)
    assert rules == RULES.rstrip() and there.title == "The town's book"
    assert list(there.lines) == ["Mira", "Anna", "hat shop", "Market Square", "market"]
    assert there.lines["hat shop"] == "The hat shop is run by Mira."


@pytest.mark.parametrize("text", ["", RULES, RULES + "\n# The book\n\nnothing about anybody", "- **Mira:** a line"])
def test_guidelines_without_a_book_stay_whole(text: str) -> None:
    assert book.split(text) == (text, book.NO_BOOK) and book.facts(book.NO_BOOK, ["Mira"]) is None


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["Where does Mira live?"], ["Mira"]),
        (["Anna's and Mira's frogs", "Mira"], ["Anna", "Mira"]),
        (["Miranda, mira and aMira are nobody here"], []),
        (["The Hat shop", "HAT SHOP"], ["hat shop"]),  # the book writes it small; capitals throughout are another word
        (["on Market Square at the market"], ["Market Square", "market"]),
        (["on Market Squares"], ["market"]),
        (["nobody"], []),
    ],
)
def test_names_are_whole_words(texts: list[str], names: list[str]) -> None:
    assert book.named(book.split(RULES + BOOK)[1], texts) == names


def test_then_come_those_whom_the_shown_lines_name() -> None:
    found = book.facts(book.split(RULES + BOOK)[1], ["Who runs the hat shop?"])
    assert found is not None and found["more"] == 0
    assert [name for name, _ in found["lines"]] == ["hat shop"] and [name for name, _ in found["further"]] == ["Mira"]
    assert found["title"] == "The town's book"


def test_many_names_are_cut_and_counted() -> None:
    crowd = "# A book\n" + "".join(f"- **Name{i}:** {i}\n" for i in range(40))
    found = book.facts(book.split(crowd)[1], [" ".join(f"Name{i}" for i in range(40))])
    assert found is not None and len(found["lines"]) == book.MOST_LINES and found["more"] == 40 - book.MOST_LINES


@given(st.text(max_size=300), st.text(max_size=50))
def test_any_guidelines_can_be_split(text: str, more: str) -> None:
    for guide in (text, f"{text}\n# book\n- **{more}**: x"):
        rules, there = book.split(guide)
        assert (rules == guide) or there.lines
        book.facts(there, [more, text])


def test_the_book_of_the_town_is_about_all_of_the_town() -> None:
    town = load_town()
    text = guidelines(town, "helpfulness")
    _, there = book.split(text)
    assert set(there.lines) == {p.name for p in town.people.values()} | {p.name for p in town.places.values()}
    person = next(iter(town.people.values()))
    found = book.facts(there, [f"Where does {person.name} live?"])
    assert found is not None and found["lines"] == [[person.name, there.lines[person.name]]]
    assert person.facts["home"] in found["lines"][0][1] and person.facts["friend"] in dict(found["further"])


def test_a_pair_comes_with_the_lines_about_whom_it_names(tmp_path: Path) -> None:
    about = {
        "prompt": [{"role": "user", "content": "Where does Anna live?"}],
        "answers": ["With Mira.", "I do not know."],
    }
    path = filled(tmp_path / "labels.db", [{**row(0), **about}, {**row(1, "safety"), **about}])
    with open_store(path) as store:
        store.add_guidelines("helpfulness", RULES + BOOK)
    for kind in KINDS:  # the safety task has guidelines of its own, without a book: the other's serves
        page = Page(AnnotationForm(path, "Ada", kind=kind))
        answer = page.begin()
        assert [name for name, _ in answer["facts"]["lines"]] == ["Anna", "Mira"]
        assert page.label(answer["task"]["item_id"], safe_left=True, safe_right=True)["ok"]
        assert page.ask(type="past", index=0)["facts"] == answer["facts"]
    told = Page(AnnotationForm(path, "Ada")).ask(type="guidelines", kind="helpfulness")["texts"][0]
    assert told["text"] == RULES.rstrip() and dict(told["book"])["Anna"] == "Anna has a frog."


# -- practice ----------------------------------------------------------------------------------------------------------


def wrong_and_why(number: int, **more: Any) -> dict[str, Any]:
    return row(200 + number, gold={"choice": 1, "grades": ["better"], "reason": f"because {number}", **more})


def test_practice_says_what_was_wanted_and_why_and_is_closed(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)] + [wrong_and_why(i) for i in range(2)])
    page = Page(AnnotationForm(path, "Ada", practice=2))
    answer, items = page.begin(), []
    for number, (right, grade) in enumerate([(False, "better"), (True, "slightly")]):
        assert answer["practice"] == {"done": number, "number": 2}
        task = answer["task"]
        items.append(task["item_id"])
        better = "left" if task["left_text"].startswith("good") else "right"
        side = better if right else {"left": "right", "right": "left"}[better]
        label = uuid.uuid4().hex
        said = page.label(task["item_id"], side, grade, label_id=label)
        told = said["feedback"]
        assert not told["agreed"] and told["reason"].startswith("because ")
        assert told["checks"][0] == {"what": "choice", "said": side, "wanted": [better], "ok": right}
        if right:
            assert told["checks"][1] == {"what": "grade", "said": "slightly", "wanted": ["better"], "ok": False}
        else:
            assert len(told["checks"]) == 1  # how much better the worse one is, nobody knows
        assert page.label(task["item_id"], side, grade, label_id=label)["feedback"] == told  # the answer was lost
        # What was explained is closed: neither a new choice nor a look back.
        changed = page.label(task["item_id"], better, "better", replaces=label)
        assert not changed["ok"] and "cannot be changed" in changed["error"]
        assert not page.ask(type="past", index=number)["ok"]
        answer = page.ask(type="next")
    assert "practice" not in answer and answer["first_index"] == 2 and answer["task"]["item_id"] not in items
    assert "feedback" not in page.label(answer["task"]["item_id"])
    assert page.ask(type="past", index=2)["ok"] and len(rows_of(path)) == 3


def test_practice_of_the_safety_task_names_each_mark(tmp_path: Path) -> None:
    known = {"choice": 1, "safe_1": True, "safe_2": False}
    path = filled(tmp_path / "labels.db", [row(0, "safety", gold=known)])
    page = Page(AnnotationForm(path, "Ada", kind="safety", practice=1))
    task = page.begin()["task"]
    side = "left" if task["left_text"].startswith("good") else "right"
    told = page.label(task["item_id"], side, safe_left=True, safe_right=True)["feedback"]
    assert {c["what"]: c["ok"] for c in told["checks"]} == {
        "choice": True,
        "safe_left": side == "left",
        "safe_right": side == "right",
    }
    assert [c["what"] for c in told["checks"]] == ["choice", "safe_left", "safe_right"]
    assert not told["agreed"] and told["reason"] == ""


def test_a_skip_in_practice_is_told_too(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [wrong_and_why(0), row(1)])
    page = Page(AnnotationForm(path, "Ada", practice=3))
    item = page.begin()["task"]["item_id"]
    answer = page.ask(type="skip", item_id=item, label_id=uuid.uuid4().hex, reason="hm", seconds=1.0)
    told = answer["feedback"]
    assert told["checks"][0]["said"] is None and told["reason"] == "because 0"


def test_a_visitor_practises_before_the_qualification(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)] + [gold(i) for i in range(6)])
    page = visitor(path, practice=2)
    answer = page.begin("Ada")
    assert answer["stage"] == "guidelines" and answer["practice"] == 2 and answer["qualification"]["number"] == 2
    answer = page.ask(type="begin")
    for number in range(2):
        assert answer["practice"]["done"] == number and "qualification" not in answer
        answer = judge(page, answer, False)  # practice is lost by nobody
    for number in range(2):
        assert answer["qualification"]["done"] == number and "practice" not in answer and answer["first_index"] == 2
        answer = judge(page, answer, True)
    assert "2 of 2" in answer["banner"] and answer["first_index"] == 4
    for index in range(4):
        assert "cannot be changed" in page.ask(type="past", index=index)["error"]
    again = visitor(path, practice=2)
    assert again.begin("Ada")["stage"] == "item"


@given(
    outcomes=st.lists(st.booleans(), max_size=14),
    wanted=st.integers(0, 14),
    number=st.integers(0, 6),
    attempts=st.integers(1, 3),
    practice=st.integers(0, 6),
)
def test_practice_takes_what_the_first_attempt_leaves(
    outcomes: list[bool], wanted: int, number: int, attempts: int, practice: int
) -> None:
    wanted = max(wanted, len(outcomes))
    settings = Settings(None, 0, number, 1.0, attempts, practice=practice)
    standing = Standing.of(queue.Qualification(tuple(outcomes), wanted), settings)
    assert standing.practice <= practice and standing.practice + standing.number * standing.attempts <= wanted
    if wanted >= number:
        assert standing.number == number
    assert standing.practising == (len(outcomes) < standing.practice)
    assert standing.closed <= len(outcomes)
    if standing.practising:
        assert standing.closed == len(outcomes) and standing.complete == 0
    # What was said in practice changes nothing of the qualification.
    other = tuple(not o for o in outcomes[: standing.practice]) + tuple(outcomes[standing.practice :])
    assert Standing.of(queue.Qualification(other, wanted), settings).passed == standing.passed


@pytest.mark.parametrize("wrong", [{"practice": -1}, {"goal": -1}])
def test_wrong_numbers_are_said(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(LabError, match="0 or more"):
        AnnotationForm(filled(tmp_path / "labels.db", [row(0)]), "Ada", **wrong)


def test_under_a_class_login_practice_tells_only_whether_it_agreed(postgres: Any, tmp_path: Path) -> None:
    url = postgres.create("practice")
    roster = tmp_path / "names.txt"
    roster.write_text("Ada\n")
    classroom.create_class(url, roster, tmp_path / "urls.csv")
    with open_store(url) as store:
        add_pairs(store, [row(0), wrong_and_why(1), wrong_and_why(2)])
    page = Page(AnnotationForm(classroom.read_urls(tmp_path / "urls.csv")["Ada"], "Ada", practice=2))
    answer = page.begin()
    for right in (True, False):
        task = answer["task"]
        better = "left" if task["left_text"].startswith("good") else "right"
        side = better if right else {"left": "right", "right": "left"}[better]
        told = page.label(task["item_id"], side)["feedback"]
        assert told == {"agreed": right, "checks": [], "reason": ""}
        answer = page.ask(type="next")
    assert "feedback" not in page.label(answer["task"]["item_id"])
    summary = page.ask(type="summary")["summary"]
    assert summary["done"] == 3 and not summary["sees_others"] and summary["others"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_gold_pairs_of_the_town_say_why(kind: Any) -> None:
    from llama2lab.town.prompts import every_prompt
    from llama2lab.town.truth import truth_of

    town = load_town()
    prompts = {p.id: p for p in every_prompt(town, "train")}
    for pair in gold_pairs(town, 40, kind, 0):
        right = truth_of(town, prompts[pair["prompt_id"]].content).answers[0]
        assert right in pair["gold"]["reason"]
        assert pair["answers"][2 - pair["gold"]["choice"]] not in pair["gold"]["reason"]


# -- two tasks ---------------------------------------------------------------------------------------------------------


def test_helpfulness_and_safety_are_two_tasks(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i, KINDS[i % 2]) for i in range(6)])
    page = Page(AnnotationForm(path, "Ada"))
    answer = page.begin()
    assert answer["stage"] == "tasks" and [(one["kind"], one["open"]) for one in answer["tasks"]] == [
        (kind, 3) for kind in KINDS
    ]
    answer = page.ask(type="task", kind="safety")
    for number in range(3):
        assert answer["task"]["kind"] == "safety" and answer["apart"] and answer["count"] == number
        if number == 1:  # a restart: it goes on with the task whose pair is on the screen
            page = Page(AnnotationForm(path, "Ada"))
            assert page.begin()["task"]["item_id"] == answer["task"]["item_id"]
        assert page.label(answer["task"]["item_id"], safe_left=True, safe_right=True)["ok"]
        answer = page.ask(type="next")
    assert answer["stage"] == "done" and answer["other"] == {"kind": "helpfulness", "open": 3}
    assert page.ask(type="past", index=2)["task"]["kind"] == "safety"
    answer = page.ask(type="task", kind="helpfulness")
    assert answer["task"]["kind"] == "helpfulness" and answer["count"] == 0
    assert page.label(answer["task"]["item_id"])["ok"]
    assert page.ask(type="past", index=0)["task"]["kind"] == "helpfulness"
    assert page.ask(type="task", kind=None)["task"]["kind"] == "helpfulness"  # nothing to choose any more
    assert not page.ask(type="task", kind="style")["ok"]


def test_one_task_asks_for_no_choice(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i, "safety") for i in range(2)])
    answer = Page(AnnotationForm(path, "Ada")).begin()
    assert answer["stage"] == "item" and "apart" not in answer


def test_each_task_has_guidelines_practice_and_a_qualification_of_its_own(tmp_path: Path) -> None:
    pairs = [row(i, kind) for i in range(2) for kind in KINDS]
    known = [row(100 + i, kind, gold={"choice": 1}) for i in range(3) for kind in KINDS]
    path = filled(tmp_path / "labels.db", pairs + known)
    page = visitor(path, practice=1, mark=1.0)
    assert page.begin("Ada")["stage"] == "tasks"
    for kind in KINDS:
        answer = page.ask(type="task", kind=kind)
        assert (answer["stage"], answer["kind"], answer["practice"]) == ("guidelines", kind, 1)
        assert [one["kind"] for one in page.ask(type="guidelines", kind=None)["texts"]] == [kind]
        answer = page.ask(type="begin")
        for number in range(3):
            assert answer["task"]["kind"] == kind and ("practice" in answer) == (number == 0)
            better = "left" if answer["task"]["left_text"].startswith("good") else "right"
            page.label(answer["task"]["item_id"], better, safe_left=True, safe_right=True)
            answer = page.ask(type="next")
        assert "passed" in answer["banner"] and answer["first_index"] == 3
    assert page.ask(type="task", kind="helpfulness")["stage"] == "item"  # neither read nor tried out twice


# -- the end -----------------------------------------------------------------------------------------------------------


def label_all(path: Path, name: str, right: float, kind: str | None = None) -> Page:
    """Everything, and the better answer chosen in that share of the pairs."""
    page = Page(AnnotationForm(path, name, kind))
    answer, number = page.begin(), 0
    while answer["stage"] == "item":
        answer = judge(page, answer, number * right % 1 + right >= 1)
        number += 1
    return page


def test_the_end_tells_agreement_with_gold_and_with_the_others(tmp_path: Path) -> None:
    path = tmp_path / "labels.db"
    with open_store(path) as store:
        add_pairs(store, [row(i) for i in range(8)] + [gold(i) for i in range(5)], overlap=3)
    first = label_all(path, "Ada", 1.0).ask(type="summary")["summary"]
    assert first["done"] == 13 and first["skipped"] == 0 and first["seconds"] == 1.5
    assert (first["gold"]["agreed"], first["gold"]["n"], first["gold"]["high"]) == (5, 5, 1.0)
    assert first["others"] is None and first["sees_others"]  # nobody else so far
    second = label_all(path, "Bob", 0.0).ask(type="summary")["summary"]
    assert (second["gold"]["agreed"], second["others"]["agreed"], second["others"]["n"]) == (0, 0, 8)
    third = label_all(path, "Cem", 1.0).ask(type="summary")["summary"]
    assert third["others"] is None and third["gold"]["agreed"] == 5  # the two others never agree: no majority


def test_agreement_is_no_way_to_find_single_gold_answers(tmp_path: Path) -> None:
    """A change does not move the figure, and while pairs wait it is told in whole fives."""
    path = filled(tmp_path / "labels.db", [row(i) for i in range(2)] + [gold(i) for i in range(7)])
    page = Page(AnnotationForm(path, "Ada"))
    answer, shown = page.begin(), []
    while answer["stage"] == "item":
        answer = judge(page, answer, True)
        if answer["stage"] == "item":
            figure = page.ask(type="summary")["summary"]["gold"]
            shown.append(figure["n"] if figure else 0)
    assert set(shown) <= {0, 5} and page.ask(type="summary")["summary"]["gold"]["n"] == 7
    for index in range(9):
        past = page.ask(type="past", index=index)
        other = {"left": "right", "right": "left"}[past["label"]["side"]]
        assert page.label(past["task"]["item_id"], other, replaces=past["label"]["label_id"])["ok"]
    assert page.ask(type="summary")["summary"]["gold"]["agreed"] == 7


def test_practice_counts_in_no_figure(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(0)] + [gold(i) for i in range(3)])
    page = Page(AnnotationForm(path, "Ada", practice=2))
    answer = page.begin()
    for right in (False, False):
        answer = judge(page, answer, right)
    while answer["stage"] == "item":
        answer = judge(page, answer, True)
    figure = page.ask(type="summary")["summary"]["gold"]
    assert (figure["agreed"], figure["n"]) == (1, 1)
