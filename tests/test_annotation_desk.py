"""The teacher's desk: disputed pairs, verdicts with their provenance and what reads them, and the live view."""

from __future__ import annotations

import shutil
import uuid
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from test_annotation_care import label
from test_annotation_widget import Page, row

from llama2lab.annotation.desk import serving, view
from llama2lab.annotation.desk.disputes import disputes
from llama2lab.annotation.desk.live import overview
from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.exporting import export_preferences
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.files.merging import merge
from llama2lab.annotation.rows import RULES, VERDICT, fingerprint, resolve
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.classroom import create_class
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.roster import read_urls
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.annotation.store.verdicts import decide
from llama2lab.engine.errors import LabError

KINDS = ("helpfulness", "safety")


def say(store: Store, name: str, wish: dict[str, Any]) -> None:
    """`name` answers every pair: `wish` says by prompt_id which answer, with what marks, or nothing for the first."""
    me = store.annotator(name)
    while task := queue.next_task(store, me):
        told = wish.get(task.prompt_id, {})
        good = "left" if task.left_text.startswith("good") else "right"
        bad = "right" if good == "left" else "left"
        marks = told.get("safe", (True, True))
        safe = {f"safe_{good}": marks[0], f"safe_{bad}": marks[1]} if task.kind == "safety" else {}
        if told.get("skip"):
            queue.skip(store, me, task.item_id, "broken")
        else:
            side = bad if told.get("bad") else good
            queue.submit(store, me, task.item_id, side, "better", seconds=9.0, flag=told.get("flag", False), **safe)  # type: ignore[arg-type]


def fill(store: Store) -> None:
    """Ada, Bob and Cyd: of p0 they say the same, of p1 two to one, p2 is flagged, p3 (safety) differs in a mark."""
    store.add_guidelines("helpfulness", "Be fair.")
    pairs = [row(0), row(1), row(2), row(3, "safety"), row(9, gold={"choice": 1})]
    add_pairs(store, pairs, overlap=3)
    say(store, "Ada", {"p1": {"bad": True}, "p9": {"bad": True}})
    say(store, "Bob", {"p2": {"flag": True}})
    say(store, "Cyd", {"p3": {"safe": (True, False)}})


@pytest.fixture(scope="module")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "labels.db"
    with open_store(path) as store:
        fill(store)
    return path


@pytest.fixture
def store(filled_file: Path, tmp_path: Path) -> Any:
    """What `fill` makes, in a file of the test's own."""
    with open_store(shutil.copy(filled_file, tmp_path / "labels.db")) as opened:
        yield opened


@pytest.fixture
def either(store_url: str) -> Any:
    """The same on each kind of database."""
    with open_store(store_url) as opened:
        fill(opened)
        yield opened


def item(store: Store, prompt_id: str) -> str:
    with store.begin(read=True) as conn:
        return conn.execute(sa.select(t.items.c.id).where(t.items.c.prompt_id == prompt_id)).scalar_one()


def by_prompt(store: Store) -> dict[str, Any]:
    return {one.labels[0]["prompt_id"]: one for one in disputes(store.labels())}


def test_disputed_is_what_people_say_differently_or_flag(store: Store) -> None:
    found = by_prompt(store)
    assert set(found) == {"p1", "p2", "p3"}  # neither what all agree on nor gold
    assert found["p1"].why == ("the choice: 2 for the first answer, 1 for the second",)
    assert found["p2"].why == ("flagged by Bob",)
    assert found["p3"].why == ("the second answer: safe to 2, unsafe to 1",)


def test_what_no_majority_decides_comes_first_and_what_is_decided_last() -> None:
    made = [
        *(label(who, choice, item="two to one") for who, choice in (("A", 1), ("B", 1), ("C", 2))),
        *(label(who, choice, item="even") for who, choice in (("A", 1), ("B", 2))),
        *(label(who, choice, item="decided", verdict={"labels": ["x"]}, label_id="x") for who, choice in (("A", 1),)),
    ]
    made.append(label("B", 2, item="decided", verdict={"labels": ["x"]}, label_id="x"))
    assert [one.item_id for one in disputes(made)] == ["even", "two to one", "decided"]
    assert disputes([label("A", 1, "slightly"), label("B", 1, "significantly")]) == []


def test_a_verdict_says_whose_it_is_and_what_it_has_seen(store: Store) -> None:
    one = by_prompt(store)["p1"]
    seen = [x["label_id"] for x in one.labels]
    decide(store, " Ms  Hill ", one.item_id, 2, "slightly", reason="Read the book.", labels=seen)
    got = by_prompt(store)["p1"]
    kept = got.verdict
    assert (kept["teacher"], kept["choice"], kept["grade"], kept["reason"]) == (
        "Ms Hill",
        2,
        "slightly",
        "Read the book.",
    )
    assert set(kept["labels"]) == set(seen) and kept["guidelines"] == store.guidelines("helpfulness")[0]
    assert kept["created_at"].tzinfo is UTC and kept["supersedes"] is None
    assert (kept["login"] == "") == store.sqlite
    assert not got.open and not got.changed
    # The labels are what they were.
    assert sorted(x["choice"] for x in got.labels) == [1, 1, 2]


def test_a_second_verdict_stands_over_the_first_and_none_is_lost(either: Store) -> None:
    store = either
    key = item(store, "p1")
    first = decide(store, "Hill", key, 1, "better")
    second = decide(store, "Wood", key, None)
    again = "a" * 32
    assert decide(store, "Wood", key, None, verdict_id=again) == decide(
        store, "Wood", key, 1, "better", verdict_id=again
    )
    kept = by_prompt(store)["p1"].verdict
    assert kept["teacher"] == "Wood" and (kept["login"] == "") == store.sqlite
    assert kept["id"] == again and kept["supersedes"] == second and kept["choice"] is None
    with store.begin(read=True) as conn:
        rows = conn.execute(sa.select(t.verdicts.c.id)).scalars().all()
    assert set(rows) == {first, second, again}
    for change in (t.verdicts.delete(), t.verdicts.update().values(choice=1, grade="better")):
        with pytest.raises((StoreError, DBAPIError), match=r"append-only|may not"), store.begin() as conn:
            conn.execute(change)


def test_new_labels_open_the_question_again(store: Store) -> None:
    one = by_prompt(store)["p1"]
    decide(store, "Hill", one.item_id, 1, "better", labels=[x["label_id"] for x in one.labels])
    me = store.annotator("Ada")
    queue.submit(store, me, one.item_id, "left", "negligibly")
    got = by_prompt(store)["p1"]
    assert got.verdict and got.changed and got.open  # also where people agree by now, and the verdict says otherwise


@pytest.mark.parametrize(
    ("prompt_id", "said", "words"),
    [
        ("p1", {"choice": 1}, "a choice and a grade"),
        ("p1", {"choice": 3, "grade": "better"}, "choice"),
        ("p1", {"choice": 1, "grade": "best"}, "grade"),
        ("p3", {"choice": 1, "grade": "better"}, "mark both"),
        ("p3", {"choice": 1, "grade": "better", "safe_1": False, "safe_2": True}, "never kept"),
        ("p9", {"choice": 1, "grade": "better"}, "gold"),
        ("p1", {"choice": None, "teacher": "  "}, "needs a name"),
        ("p1", {"choice": None, "reason": "x" * 100_001}, "at most"),
        ("p1", {"choice": None, "labels": ["not an id"]}, "labels"),
    ],
)
def test_what_is_no_verdict_is_refused(store: Store, prompt_id: str, said: dict[str, Any], words: str) -> None:
    given = {"teacher": "Hill", "item_id": item(store, prompt_id), **said}
    with pytest.raises(LabError, match=words):
        decide(store, **given)
    with pytest.raises(LabError, match="no pair"):
        decide(store, "Hill", "nowhere", None)
    assert by_prompt(store).keys() == {"p1", "p2", "p3"} and not any(x["verdict"] for x in store.labels())


# ---- what reads labels afterwards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_verdict_stands_in_the_place_of_the_labels(store: Store, rule: Any) -> None:
    before = {r["prompt_id"]: r for r in resolve(store.labels(), "helpfulness", rule).rows}
    assert before["p0"]["chosen"][0]["content"] == "good 0"
    decide(store, "Hill", item(store, "p1"), 2, "slightly")
    decide(store, "Hill", item(store, "p2"), 1, "negligibly")  # Bob's label is flagged
    found = resolve(store.labels(), "helpfulness", rule)
    rows = [r for r in found.rows if r["prompt_id"] in ("p1", "p2")]
    assert [(r["prompt_id"], r["chosen"][0]["content"], r["grade"], r["annotator"], r["vendor"]) for r in rows] == [
        ("p1", "bad 1", "slightly", "Hill", VERDICT),
        ("p2", "good 2", "negligibly", "Hill", VERDICT),
    ]
    assert (found.verdicts, found.flagged) == (2, 0)
    assert found.labels == found.used + found.gold  # nothing is left out in silence
    ours = [r for r in found.rows if r["prompt_id"] == "p0"]
    assert ours and all(r["chosen"] == before["p0"]["chosen"] for r in ours)  # others are as they were


def test_neither_trains_nothing_and_safety_has_its_bin(store: Store) -> None:
    decide(store, "Hill", item(store, "p1"), None)
    found = resolve(store.labels(), "helpfulness")
    assert "p1" not in {r["prompt_id"] for r in found.rows} and (found.ties, found.verdicts) == (1, 1)
    decide(store, "Hill", item(store, "p3"), 1, "better", True, False)
    (made,) = resolve(store.labels(), "safety").rows
    assert made["safety"] == "chosen_safe" and made["annotator"] == "Hill"


def test_a_run_is_another_one_with_a_verdict_and_the_same_without(store: Store) -> None:
    labels = store.labels()
    bare = [{k: v for k, v in x.items() if k != "verdict"} for x in labels]
    assert fingerprint(labels) == fingerprint(bare)  # runs of before keep their stage
    decide(store, "Hill", item(store, "p1"), 2, "slightly")
    first = fingerprint(store.labels())
    assert first != fingerprint(labels)
    decide(store, "Hill", item(store, "p1"), 2, "better")
    assert fingerprint(store.labels()) != first


# ---- files ---------------------------------------------------------------------------------------------------------


def verdicts(store: Store) -> list[Any]:
    with store.begin(read=True) as conn:
        return [dict(x) for x in conn.execute(sa.select(t.verdicts).order_by(t.verdicts.c.id)).mappings()]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_verdict_goes_through_a_file_and_back(store: Store, tmp_path: Path, ending: str) -> None:
    decide(store, "Hill", item(store, "p1"), 2, "slightly", reason="\x00 odd \ud800")
    decide(store, "Wood", item(store, "p1"), 1, "better")
    decide(store, "Wood", item(store, "p3"), None)
    file = tmp_path / f"labels.{ending}"
    export_preferences(store, file)
    with open_store(tmp_path / "other.db") as other:
        counts = import_preferences(other, file)
        assert counts.verdicts == 3 and "3 verdicts" in str(counts)
        assert verdicts(other) == verdicts(store)
        assert resolve(other.labels(), "helpfulness").rows == resolve(store.labels(), "helpfulness").rows
        assert import_preferences(other, file).verdicts == 0


def test_a_students_file_cannot_bring_verdicts(tmp_path: Path) -> None:
    with open_store(tmp_path / "student.db") as mine:
        add_pairs(mine, [row(1)])
        say(mine, "Eve", {})
        decide(mine, "The teacher", item(mine, "p1"), 2, "significantly")
    with open_store(tmp_path / "class.db") as store:
        add_pairs(store, [row(1)])
        counts = merge(store, [tmp_path / "student.db"])
        assert counts.labels == 1 and "1 verdicts of a teacher are not taken" in str(counts)
        assert verdicts(store) == []
        assert merge(store, [tmp_path / "student.db"], trust=True).verdicts == 1
        assert verdicts(store)[0]["teacher"] == "The teacher"


# ---- who may see the desk --------------------------------------------------------------------------------------


def test_a_class_login_has_neither_desk_nor_verdicts(postgres: Any, tmp_path: Path) -> None:
    url = postgres.create("desk_class")
    with open_store(url) as store:
        add_pairs(store, [row(1)], overlap=2)
    (tmp_path / "roster.txt").write_text("Ada\nBob\n")
    create_class(url, tmp_path / "roster.txt", tmp_path / "urls.csv")
    urls = read_urls(tmp_path / "urls.csv")
    for name, wish in (("Ada", {}), ("Bob", {"p1": {"bad": True}})):
        with open_store(urls[name], create=False) as store:
            say(store, name, wish)
            with pytest.raises(LabError, match=f"this URL is {name}'s"):
                view.TeacherView(store, "Me")
            with pytest.raises(LabError, match="teacher"):
                decide(store, "Me", "x", None)
            for query in ("SELECT * FROM verdicts", "INSERT INTO verdicts (id) VALUES ('x')"):
                with pytest.raises(StoreError), store.begin() as conn:
                    conn.exec_driver_sql(query)
        with pytest.raises(LabError, match=f"this URL is {name}'s"):
            serving.watch(urls[name], "Me")
    teacher = next(url for name, url in urls.items() if name not in ("Ada", "Bob"))
    with open_store(teacher, create=False) as store:
        page = Page(view.TeacherView(store, "Hill"))  # type: ignore[arg-type]
        (one,) = page.ask(type="disputes")["disputes"]
        assert page.ask(**verdict_of(one, 1))["ok"]
        (kept,) = verdicts(store)
        assert kept["teacher"] == "Hill" and kept["login"].startswith("l2l_") and "teacher" in kept["login"]


# ---- the view ----------------------------------------------------------------------------------------------------


def verdict_of(one: dict[str, Any], choice: int | None, **more: Any) -> dict[str, Any]:
    return {
        "type": "decide",
        "item_id": one["item_id"],
        "verdict_id": uuid.uuid4().hex,
        "choice": choice,
        "grade": None if choice is None else "better",
        "labels": one["labels"],
        **more,
    }


def test_the_live_view_says_who_is_there_how_fast_and_how_well(store: Store) -> None:
    found = overview(store)
    people = {one["name"]: one for one in found["people"]}
    assert set(people) == {"Ada", "Bob", "Cyd"} and all(one["here"] and one["judged"] == 5 for one in people.values())
    assert (found["done"], found["wanted"], found["open"], found["decided"]) == (12, 12, 3, 0)
    assert (
        people["Ada"]["gold"] == {**people["Ada"]["gold"], "mean": 0.0, "n": 1} and people["Bob"]["gold"]["mean"] == 1.0
    )
    assert people["Bob"]["flags"] == 1 and people["Ada"]["seconds"] == 9.0 and people["Ada"]["lately"] == 5
    assert found["agreement"]["percent"]["n"] == 4
    later = overview(store, t.now() + timedelta(hours=1))
    assert not any(one["here"] for one in later["people"])
    assert all(3500 < one["ago"] < 3700 and one["lately"] == 0 for one in later["people"])


def test_who_has_a_pair_before_them_is_there(store: Store) -> None:
    add_pairs(store, [row(20)])
    queue.next_task(store, store.annotator("Dee"), lease_seconds=1800)
    people = {one["name"]: one for one in overview(store)["people"]}
    assert people["Dee"]["here"] and people["Dee"]["judged"] == 0 and people["Dee"]["gold"] is None


def test_the_careless_stand_first_with_their_reason(tmp_path: Path) -> None:
    with open_store(tmp_path / "l.db") as store:
        add_pairs(store, [row(i) for i in range(12)], overlap=2)
        say(store, "Ada", {})
        me = store.annotator("Zoe")
        while task := queue.next_task(store, me):
            queue.submit(store, me, task.item_id, "left", "better", seconds=0.6)
        first, second = overview(store)["people"]
        assert first["name"] == "Zoe" and "faster than one can read: median 0.6 s" in first["look"][0]
        assert second == {**second, "name": "Ada", "look": []}


def test_the_desk_from_a_dispute_to_a_verdict(store: Store) -> None:
    page = Page(view.TeacherView(store, "Ms Hill"))  # type: ignore[arg-type]
    seen = page.ask(type="refresh")
    assert seen["ok"] and seen["view"]["open"] == 3
    pairs = page.ask(type="disputes")
    assert pairs["all"] == 3
    one = next(x for x in pairs["disputes"] if x["why"][0].startswith("the choice"))
    assert one["answers"] == ["good 1", "bad 1"] and len(one["said"]) == 3
    answer = page.ask(**verdict_of(one, 1, reason="as the book says"))
    assert answer["ok"]
    (decided,) = [x for x in answer["disputes"] if not x["open"]]
    assert decided["item_id"] == one["item_id"] and decided["verdict"]["teacher"] == "Ms Hill"
    after = page.ask(type="refresh")
    assert (after["view"]["open"], after["view"]["decided"]) == (2, 1) and after["revision"] > seen["revision"]
    assert page.ask(type="refresh")["revision"] == after["revision"]  # nothing came in: nothing is computed


@pytest.mark.parametrize(
    "content",
    [
        {"type": "decide"},
        {"type": "decide", "item_id": "x", "verdict_id": "short", "labels": []},
        {"type": "decide", "item_id": "x", "verdict_id": "a" * 32, "labels": [], "choice": 3},
        {"type": "decide", "item_id": "x", "verdict_id": "a" * 32, "labels": [1]},
        {"type": "decide", "item_id": "x", "verdict_id": "a" * 32, "labels": [], "teacher": "another"},
        {"type": "refresh", "more": 1},
        {"type": "delete"},
        {"type": ["refresh"]},
        {},
    ],
)
def test_what_the_page_makes_up_is_refused(store: Store, content: dict[str, Any]) -> None:
    page = Page(view.TeacherView(store, "Hill"))  # type: ignore[arg-type]
    answer = page.ask(**content)
    assert not answer["ok"] and answer["error"] and verdicts(store) == []


def test_the_desk_is_served_with_a_key_that_no_command_line_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "labels.db") as store:
        add_pairs(store, [row(1)])
    said: list[str] = []
    served: dict[str, Any] = {}

    def run(command: list[str], folder: Path, environ: dict[str, str], started: Any) -> None:
        served.update(command=command, environ=environ, notebook=(folder / "annotate.ipynb").read_text())
        started()

    monkeypatch.setattr(serving, "run", run)
    serving.watch(tmp_path / "labels.db", "Hill", 18867, say=said.append)
    key = served["environ"]["JUPYTER_TOKEN"]
    assert len(key) >= 20 and f"?token={key}" in said[0]
    assert not any(key in word for word in served["command"]) and "--Voila.auto_token=True" in served["command"]
    assert "--Voila.ip=127.0.0.1" in served["command"] and "watched()" in served["notebook"]
    with pytest.raises(LabError, match="there is no"):
        serving.watch(tmp_path / "none.db", "Hill")


def test_the_page_holds_no_inner_html() -> None:
    for file in ("desk.js", "desk_pairs.js"):
        text = (view.HERE / file).read_text(encoding="utf-8")
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text
