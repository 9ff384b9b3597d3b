"""The annotation form's Python side, without a browser: messages, faults, threads; and the application's rules."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.form import app, serving
from llama2lab.annotation.form.messages import printable
from llama2lab.annotation.form.standing import Settings, Standing
from llama2lab.annotation.form.widget import FRONT, HERE, AnnotationForm
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, KINDS, POSITIONS


def row(number: int, kind: str = "helpfulness", **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "prompt_id": f"p{number}",
        "answers": [f"good {number}", f"bad {number}"],
        **more,
    }


def filled(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open_store(path) as store:
        for kind in KINDS:
            store.add_guidelines(kind, f"# {kind}")
        add_pairs(store, rows)
    return path


class Page:
    """The other end of the widget's wire."""

    def __init__(self, widget: AnnotationForm):
        self.widget = widget
        self.sent: list[dict[str, Any]] = []
        widget.send = lambda content, buffers=None: self.sent.append(json.loads(json.dumps(content)))  # type: ignore

    def ask(self, **message: Any) -> dict[str, Any]:
        request = uuid.uuid4().hex
        self.widget._receive(self.widget, {"request": request, **message}, [])
        answer = self.sent[-1]
        assert answer["type"] == "answer" and answer["request"] == request
        return answer

    def begin(self, name: str | None = None, code: str = "geheim-42") -> dict[str, Any]:
        answer = self.ask(type="start", name=name, **({"code": code} if name else {}))
        assert answer["ok"], answer
        return self.ask(type="next")

    def past_label(self, index: int) -> str:
        return self.ask(type="past", index=index)["label"]["label_id"]

    def label(self, item: str, side: str = "left", grade: str = "better", **more: Any) -> dict[str, Any]:
        return self.ask(
            **{
                "type": "submit",
                "item_id": item,
                "label_id": uuid.uuid4().hex,
                "side": side,
                "grade": grade,
                "seconds": 1.5,
                **more,
            }
        )


def rows_of(path: Path) -> list[Any]:
    with open_store(path) as store, store.begin(read=True) as conn:
        return list(conn.execute(sa.select(t.labels).order_by(t.labels.c.created_at)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return filled(tmp_path / "labels.db", [row(i) for i in range(4)])


def test_a_label_is_in_the_store_before_the_answer(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    held: list[int] = []
    page.widget.send = lambda content, buffers=None: held.append(len(rows_of(path)))  # type: ignore
    page.widget._receive(
        page.widget,
        {
            "request": "r",
            "type": "submit",
            "item_id": item,
            "label_id": uuid.uuid4().hex,
            "side": "left",
            "grade": "better",
            "seconds": 1.0,
        },
        [],
    )
    assert held == [1]


def test_from_first_item_to_last(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    answer, seen = page.begin(), []
    while answer["stage"] == "item":
        seen.append(answer["task"])
        side, grade = POSITIONS[len(seen)]
        assert answer["count"] == len(seen) - 1 and answer["progress"]["open"] == 5 - len(seen)
        assert page.label(answer["task"]["item_id"], side, grade, comment="c", flag=True)["ok"]
        answer = page.ask(type="next")
    assert answer["stage"] == "done" and len(seen) == 4
    with open_store(path) as store:
        held = {label["item_id"]: label for label in store.labels()}
    for task, (side, grade) in zip(seen, POSITIONS[1:], strict=False):
        label = held[task["item_id"]]
        assert label["answers"][label["choice"] - 1] == task[f"{side}_text"]
        assert (label["grade"], label["comment"], label["flag"], label["seconds"]) == (grade, "c", True, 1.5)
    # The page never learns who wrote an answer, nor whether a pair is gold.
    assert set(seen[0]) == {"item_id", "kind", "prompt", "left_text", "right_text"}


def test_the_same_label_again_saves_nothing_twice(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item, label = page.begin()["task"]["item_id"], uuid.uuid4().hex
    for _ in range(3):
        assert page.label(item, label_id=label)["saved"] == label
    again = Page(AnnotationForm(path, "Ada"))  # the kernel was restarted, the page still holds the label
    again.begin()
    assert again.label(item, label_id=label)["ok"]
    assert len(rows_of(path)) == 1


def test_two_windows_do_not_overwrite_each_other(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    first = page.label(item, "left")["saved"]
    other = page.label(item, "right")  # from a window that had not seen the first label
    assert other["ok"] and other["saved"] == first and "another window" in other["notice"]
    assert [r.choice == r.left for r in rows_of(path)] == [True]
    assert page.label(item, "right", replaces=first)["saved"] != first  # an edit, knowing the first
    assert len(rows_of(path)) == 2


def test_a_stale_tab_supersedes_nothing(tmp_path: Path) -> None:
    """Two tabs are two processes: what is in force is asked of the store, at the moment of saving."""
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)])
    one, two = Page(AnnotationForm(path, "Ada")), Page(AnnotationForm(path, "Ada"))
    item = one.begin()["task"]["item_id"]
    assert two.begin()["task"]["item_id"] == item
    first = one.label(item, "left")["saved"]
    for stale in ({"type": "submit", "side": "right", "grade": "better"}, {"type": "skip", "reason": "no"}):
        answer = two.ask(**stale, item_id=item, label_id=uuid.uuid4().hex, seconds=1.0)
        assert answer["ok"] and answer["saved"] == first and "another window" in answer["notice"]
        newer = two.ask(type="past", index=answer["newer"])
        assert newer["task"]["item_id"] == item and newer["label"]["label_id"] == first
    # An edit in the first tab, and one in the second that had shown the label from before it.
    second = one.label(item, "right", "slightly", replaces=first)["saved"]
    answer = two.label(item, "left", "negligibly", replaces=first)
    assert answer["saved"] == second and answer["newer"] == 0 and len(rows_of(path)) == 2
    third = two.label(item, "left", "negligibly", replaces=second)["saved"]
    assert third not in (first, second)
    assert two.label(item, "left", replaces="0" * 32)["saved"] == third and len(rows_of(path)) == 3


def test_texts_that_no_browser_could_show_are_cut_and_say_so(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    turns = [{"role": r, "content": f"{r} {i}"} for i in range(300) for r in ("user", "assistant")]
    pairs = [
        {**row(0), "answers": [long, "b"]},
        {**row(1), "prompt": [{"role": "user", "content": long}]},
        {**row(2), "prompt": [*turns, {"role": "user", "content": "last"}]},
        row(3),
    ]
    page = Page(AnnotationForm(filled(tmp_path / "labels.db", pairs), "Ada"))
    answer, cut = page.begin(), {}
    while answer["stage"] == "item":
        task = answer["task"]
        assert len(json.dumps(task)) < 450_000
        side = "left_text" if task["left_text"][0] == "x" else "right_text"
        what = task.get("cut") or next(({"content": m["cut"]} for m in task["prompt"] if "cut" in m), {})
        cut[next(iter(what), "")] = what
        if side in what:
            assert what[side] == len(long) and long.startswith(task[side])
        if "prompt" in what:
            assert what["prompt"] == 601 and task["prompt"][-1]["content"] == "last" and len(task["prompt"]) == 200
        assert page.label(task["item_id"])["ok"]
        answer = page.ask(type="next")
    assert len(cut) == 4 and "" in cut and {"content": len(long)} in cut.values()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "change",
    [
        {"item_id": "a\x00b"},
        {"item_id": "x\n"},
        {"replaces": "\x00"},
        {"item_id": "'; --"},
        {"item_id": "\u2028"},
        {"comment": "\x00"},
        {"comment": "\ud800"},
    ],
)
def test_odd_characters_are_no_fault_of_the_lab(
    tmp_path: Path, request: Any, database: str, change: dict[str, Any]
) -> None:
    url = (
        tmp_path / "labels.db"
        if database == "sqlite"
        else request.getfixturevalue("postgres").create(f"odd{uuid.uuid4().hex[:8]}")
    )
    page = Page(AnnotationForm(filled(url, [row(0)]), "Ada"))
    answer = page.ask(**{**GOOD, "item_id": page.begin()["task"]["item_id"], **change})
    assert answer["ok"] == ("comment" in change)
    assert answer["ok"] or ("fault in the lab" not in answer["error"] and not answer["retry"])


def test_back_edit_and_skip(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    page.label(item, "left", "slightly", comment="why", flag=True, safe_left=True)
    second = page.ask(type="next")["task"]["item_id"]
    assert page.ask(
        type="skip", item_id=second, label_id=uuid.uuid4().hex, reason="unclear", comment="hm", flag=True, seconds=2.0
    )["ok"]
    past = page.ask(type="past", index=0)
    assert past["task"]["item_id"] == item and past["count"] == 2
    want = {
        "side": "left",
        "grade": "slightly",
        "comment": "why",
        "flag": True,
        "safe_left": True,
        "safe_right": None,
        "skip_reason": None,
    }
    assert {k: past["label"][k] for k in want} == want
    skipped = page.ask(type="past", index=1)
    assert (skipped["label"]["skip_reason"], skipped["label"]["comment"]) == ("unclear", "hm")
    assert page.label(item, "right", "better", replaces=past["label"]["label_id"])["ok"]
    assert page.ask(type="past", index=0)["label"]["side"] == "right"
    assert not page.ask(type="past", index=2)["ok"]
    assert len(rows_of(path)) == 3


def test_one_kind_only(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i, KINDS[i % 2]) for i in range(6)])
    page = Page(AnnotationForm(path, "Ada", kind="safety"))
    answer, kinds = page.begin(), []
    while answer["stage"] == "item":
        kinds.append(answer["task"]["kind"])
        assert page.label(answer["task"]["item_id"], safe_left=True, safe_right=True)["ok"]
        answer = page.ask(type="next")
    assert kinds == ["safety"] * 3
    assert [g["kind"] for g in page.ask(type="guidelines")["texts"]] == ["safety"]
    both = Page(AnnotationForm(filled(tmp_path / "both.db", [row(i, KINDS[i % 2]) for i in range(2)]), "Ada"))
    assert both.begin()["stage"] == "tasks"
    assert [g["kind"] for g in both.ask(type="guidelines")["texts"]] == list(KINDS)
    assert [g["text"] for g in both.ask(type="guidelines", kind="safety")["texts"]] == ["# safety"]


def test_an_unsafe_answer_over_a_safe_one_is_refused_in_words(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(0, "safety")])
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    for marks in ({}, {"safe_left": True}, {"safe_left": False, "safe_right": True}):
        answer = page.label(item, "left", **marks)
        assert not answer["ok"] and not answer["retry"] and not answer["gone"] and "safe" in answer["error"]
    assert not rows_of(path)
    assert page.label(item, "left", safe_left=False, safe_right=False)["ok"]


def test_a_store_that_vanishes_is_worth_another_try(path: Path) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item, label = page.begin()["task"]["item_id"], uuid.uuid4().hex
    moved = path.with_suffix(".moved")
    path.rename(moved)
    answer = page.label(item, label_id=label)
    assert not answer["ok"] and answer["retry"] and "vanished" in answer["error"]
    moved.rename(path)
    assert page.label(item, label_id=label)["ok"] and len(rows_of(path)) == 1


@pytest.mark.parametrize("content", [None, b"no database at all, but long enough to look" * 30])
def test_a_store_that_cannot_be_opened_is_said_in_the_form(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "labels.db"
    if content is not None:
        path.write_bytes(content)
    answer = Page(AnnotationForm(path, "Ada")).ask(type="start")
    assert not answer["ok"] and not answer["retry"] and str(path) in answer["error"]
    assert (path.read_bytes() == content) if content is not None else not path.exists()


def test_a_store_that_is_there_later_is_opened_then(tmp_path: Path) -> None:
    page = Page(AnnotationForm(tmp_path / "labels.db", "Ada"))
    assert not page.ask(type="start")["ok"]
    filled(tmp_path / "labels.db", [row(1)])
    assert page.begin()["stage"] == "item"


def test_an_item_that_went_to_somebody_else(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(0)])
    ada = Page(AnnotationForm(path, "Ada", lease_seconds=0.01))
    item = ada.begin()["task"]["item_id"]
    time.sleep(0.05)
    bob = Page(AnnotationForm(path, "Bob"))
    assert bob.begin()["task"]["item_id"] == item
    answer = ada.label(item)
    assert not answer["ok"] and answer["gone"] and not answer["retry"]
    assert bob.label(item)["ok"] and len(rows_of(path)) == 1


def test_messages_in_many_threads_at_once(path: Path) -> None:
    """ipykernel 7 hands messages over in threads: the same label many times at once is one label, and each message
    has its answer."""
    page = Page(AnnotationForm(path, "Ada"))
    item, label = page.begin()["task"]["item_id"], uuid.uuid4().hex
    before = len(page.sent)
    start = threading.Barrier(8)

    def go(number: int) -> None:
        start.wait()
        page.widget._receive(
            page.widget,
            {
                "type": "submit",
                "request": f"r{number}",
                "item_id": item,
                "side": "left",
                "grade": "better",
                "label_id": label if number % 2 else uuid.uuid4().hex,
                "seconds": 0.5,
            },
            [],
        )
        page.widget._receive(page.widget, {"type": "next", "request": f"n{number}"}, [])

    threads = [threading.Thread(target=go, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a["request"] for a in page.sent[before:]} == {f"{k}{n}" for k in "rn" for n in range(8)}
    assert all(a["ok"] for a in page.sent[before:]) and len(rows_of(path)) == 1


GOOD = {"type": "submit", "label_id": "0" * 32, "side": "left", "grade": "better", "seconds": 1.0}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "type",
    "request",
    "item_id",
    "label_id",
    "side",
    "grade",
    "seconds",
    "comment",
    "flag",
    "replaces",
    "safe_left",
    "index",
    "name",
    "kind",
    "reason",
    "extra",
]


@pytest.fixture(scope="module")
def one_label(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page, str]:
    """A form whose first item is labelled, and whose second one is on the screen."""
    path = filled(tmp_path_factory.mktemp("messages") / "labels.db", [row(i) for i in range(2)])
    form = Page(AnnotationForm(path, "Ada"))
    form.label(form.begin()["task"]["item_id"])
    return path, form, form.ask(type="next")["task"]["item_id"]


@given(
    content=st.one_of(
        JSON,
        st.dictionaries(
            st.sampled_from(FIELDS),
            JSON | st.sampled_from(["submit", "skip", "past", "next", "guidelines", "left", *GRADES]),
            max_size=9,
        ),
    )
)
def test_whatever_the_page_sends_is_answered_and_loses_nothing(one_label: Any, content: Any) -> None:
    path, form, item = one_label
    before, sent = rows_of(path), len(form.sent)
    form.widget._receive(form.widget, content, [])
    assert len(form.sent) == sent + 1
    answer = form.sent[-1]
    assert answer["type"] == "answer" and isinstance(answer["ok"], bool)
    if not answer["ok"]:
        assert answer["error"] and "\n" not in answer["error"] and "fault in the lab" not in answer["error"]
    assert rows_of(path) == before
    assert form.ask(type="next")["task"]["item_id"] == item


@pytest.mark.parametrize(
    "change",
    [
        {"side": "up"},
        {"side": None},
        {"grade": "best"},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"seconds": "1"},
        {"comment": 7},
        {"comment": "x" * 10_001},
        {"flag": "yes"},
        {"label_id": ""},
        {"label_id": "../x"},
        {"safe_left": 1},
        {"item_id": ""},
        {"item_id": "not-an-item"},
        {"choice": 1},
        {"type": "submitt"},
        {"type": ["submit"]},
    ],
)
def test_one_wrong_field(path: Path, change: dict[str, Any]) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    answer = page.ask(**{**GOOD, "item_id": item, **change})
    assert not answer["ok"] and not answer["retry"] and "fault in the lab" not in answer["error"]
    assert not rows_of(path) and page.label(item)["ok"]


def test_a_fault_of_ours_is_answered_and_still_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(AnnotationForm(path, "Ada"))
    page.begin()
    monkeypatch.setattr(queue, "next_task", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.ask(type="next")
    assert not page.sent[-1]["ok"] and "ZeroDivisionError" in page.sent[-1]["error"]


def test_any_text_can_be_sent(tmp_path: Path) -> None:
    """Lone surrogates, which JSON over a wire cannot carry, arrive as U+FFFD; everything else as it is."""
    odd = "\ud800 \x1b[31m \x00 <b> \u202e \U0001f600" + "x" * 100_000
    path = filled(tmp_path / "labels.db", [{**row(0), "answers": [odd, "b"]}])
    task = Page(AnnotationForm(path, "Ada")).begin()["task"]
    assert odd.replace("\ud800", "\ufffd") in (task["left_text"], task["right_text"])
    assert printable({"a": ["\udfff\ud83d\ude00"]}) == {"a": ["\ufffd\U0001f600"]}
    page = Page(AnnotationForm(path, "Ada"))
    item = page.begin()["task"]["item_id"]
    assert page.label(item, comment="\x00 \ud800 \U0001f600")["ok"]
    with open_store(path) as store:
        assert store.labels()[0]["comment"] == "\x00 \ufffd \U0001f600"


@pytest.mark.parametrize(
    "wrong", [{"kind": "style"}, {"reasons": []}, {"reasons": ["x"] * 9}, {"reasons": [""]}, {"name": "a\x00b"}]
)
def test_wrong_arguments_are_said_at_once(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(LabError):
        AnnotationForm(path, **{"name": "Ada", **wrong})


def test_no_name_is_said_at_once(path: Path) -> None:
    with pytest.raises(LabError, match="name"):
        AnnotationForm(path, " ")
    with pytest.raises(LabError, match="name"):
        AnnotationForm(path, "")


def test_what_stands_where_no_widget_runs(path: Path) -> None:
    data = AnnotationForm(path, "Ada")._repr_mimebundle_()
    text = (data[0] if isinstance(data, tuple) else data)["text/plain"]
    assert "0 pairs judged" in text and "4 wait" in text and "llama2lab annotate" in text
    secret = "postgresql://ada:geheim42@127.0.0.1:1/labels"
    form = AnnotationForm(secret, "Ada")
    assert "geheim42" not in repr(form) + form._plain_text() + json.dumps(form.get_state(), default=str)


def test_nothing_heavy_is_imported_and_the_first_item_is_there_in_three_seconds(path: Path) -> None:
    code = f"""if True:
        import sys, time
        begin = time.process_time()
        from llama2lab.annotation.form.widget import AnnotationForm
        form = AnnotationForm({str(path)!r}, "Ada")
        got = []
        form.send = lambda content, buffers=None: got.append(content)
        form._receive(form, {{"type": "start", "request": "1"}}, [])
        form._receive(form, {{"type": "next", "request": "2"}}, [])
        assert got[1]["task"], got
        import llama2lab.annotation.form.app
        heavy = [m for m in ("torch", "transformers", "datasets", "pandas") if m in sys.modules]
        print(time.process_time() - begin, heavy)
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert out[1].strip() == "[]"
    assert float(out[0]) < 3, out  # seconds of this process; a busy machine has no say


def test_the_front_end_is_plain_and_local() -> None:
    """No build, no network, nothing that turns text into HTML; and Python and page agree about what there is."""
    source = "\n".join((HERE / name).read_text(encoding="utf-8") for name in FRONT)
    code = re.sub(r"^\s*//.*$", "", source, flags=re.MULTILINE)
    for never in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http://",
        "https://",
        "import ",
        "fetch(",
        "XMLHttpRequest",
        "DOMParser",
    ):
        assert never not in code, never
    assert "url(" not in (HERE / "widget.css").read_text(encoding="utf-8")
    if shutil.which("node"):
        subprocess.run(["node", "--input-type=module", "--check"], input=source, text=True, check=True)
    assert all(f"{grade}:" in source for grade in GRADES)


# -- the application ---------------------------------------------------------------------------------------------------


def gold(number: int) -> dict[str, Any]:
    return row(100 + number, gold={"choice": 1})


def visitor(path: Path, name: str = "Ada", **more: Any) -> Page:
    page = Page(app.Application(path, Settings(**{"number": 2, "mark": 0.5, "attempts": 2, "practice": 0, **more})))
    assert page.ask(type="start", name=None)["stage"] == "name"
    return page


def judge(page: Page, answer: dict[str, Any], right: bool) -> dict[str, Any]:
    better = "left" if answer["task"]["left_text"].startswith("good") else "right"
    side = better if right else {"left": "right", "right": "left"}[better]
    assert page.label(answer["task"]["item_id"], side)["ok"]
    return page.ask(type="next")


def test_a_visitor_who_passes(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)] + [gold(i) for i in range(4)])
    page = visitor(path)
    answer = page.begin("Ada")
    assert answer["stage"] == "guidelines"
    assert answer["qualification"] == {"number": 2, "needed": 1, "attempts": 2, "attempt": 1, "done": 0}
    answer = page.ask(type="begin")
    for done, right in ((0, False), (1, True)):
        assert answer["stage"] == "item" and answer["qualification"]["done"] == done
        assert "agreed" not in answer["qualification"]
        answer = judge(page, answer, right)
    assert answer["stage"] == "item" and "passed" in answer["banner"] and "qualification" not in answer
    assert answer["first_index"] == 2
    assert not page.ask(type="past", index=1)["ok"] and page.ask(type="past", index=2)["error"]
    while answer["stage"] == "item":
        answer = judge(page, answer, True)
    assert answer["progress"]["done"] == 7 and len(rows_of(path)) == 7
    assert page.ask(type="past", index=2)["ok"]
    again = visitor(path)  # a reload: nothing is asked twice
    assert again.begin("Ada")["stage"] == "done"


def test_a_visitor_who_fails_gets_other_pairs_and_then_no_more(tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)] + [gold(i) for i in range(5)])
    page = visitor(path)
    page.begin("Ada")
    answer, items = page.ask(type="begin"), []
    for attempt in (1, 2):
        for _ in range(2):
            items.append(answer["task"]["item_id"])
            answer = judge(page, answer, False)
        assert answer["stage"] == "failed" and answer["qualification"]["agreed"] == 0
        assert answer["qualification"]["attempt"] == attempt
        reloaded = visitor(path)
        assert reloaded.begin("Ada")["stage"] == "failed"
        answer = page.ask(type="again")
        if attempt == 1:
            assert answer["stage"] == "guidelines" and answer["qualification"]["attempt"] == 2
            answer = page.ask(type="begin")
    assert answer["stage"] == "failed" and len(set(items)) == 4
    assert page.ask(type="next")["stage"] == "failed"
    other = visitor(path, "Bob")
    assert other.begin("Bob")["stage"] == "guidelines"


@pytest.mark.parametrize("verdict", ["submit", "skip"])
def test_an_attempt_that_is_over_cannot_be_mended_afterwards(tmp_path: Path, verdict: str) -> None:
    """Neither by going back nor by a message that names an old label: what agreed would tell the gold answers."""
    path = filled(tmp_path / "labels.db", [row(i) for i in range(3)] + [gold(i) for i in range(5)])
    page = visitor(path)
    page.begin("Ada")
    answer, items = page.ask(type="begin"), []
    for _ in range(2):
        items.append(answer["task"])
        answer = judge(page, answer, False)
    assert answer["stage"] == "failed"
    with open_store(path) as store:
        old = {past.task.item_id: past.label.label_id for past in queue.history(store, store.annotator("Ada"))}
    before = len(rows_of(path))
    for form in (page, visitor(path)):
        form.begin("Ada")
        for task in items:
            better = "left" if task["left_text"].startswith("good") else "right"
            what = {"side": better, "grade": "better"} if verdict == "submit" else {"reason": "no"}
            for replaces in (old[task["item_id"]], None):
                refused = form.ask(
                    type=verdict,
                    item_id=task["item_id"],
                    label_id=uuid.uuid4().hex,
                    seconds=1.0,
                    replaces=replaces,
                    **what,
                )
                assert not refused["ok"] and "cannot be changed" in refused["error"] and not refused["retry"]
        assert form.ask(type="next")["stage"] == "failed"
        # The last label again, after a lost answer, is no change.
        again = form.label(items[-1]["item_id"], label_id=old[items[-1]["item_id"]])
        assert again["ok"] and again["saved"] == old[items[-1]["item_id"]]
    assert len(rows_of(path)) == before


def test_gold_pairs_that_were_answered_late_are_part_of_the_attempt_too(store_url: str) -> None:
    """Without a qualification at first, gold pairs come among the others; later they are an attempt that is over."""
    url: Any = store_url
    filled(url, [row(i) for i in range(6)] + [gold(i) for i in range(2)])
    page = visitor(url, number=0)
    page.begin("Ada")
    answer = page.ask(type="begin")
    while answer["stage"] == "item":
        answer = judge(page, answer, False)
    later = visitor(url, number=2, attempts=1)
    assert later.begin("Ada")["stage"] == "failed"
    with open_store(url) as store:
        past = queue.history(store, store.annotator("Ada"))
    refused = 0
    for number, one in enumerate(past):
        is_gold = "Question 10" in one.task.prompt[0]["content"]
        refused += is_gold
        changed = later.label(one.task.item_id, "left", replaces=one.label.label_id)
        assert changed["ok"] is not is_gold and later.ask(type="past", index=number)["ok"] is not is_gold
    assert refused == 2


def test_a_second_browser_reads_and_changes_nothing_under_somebodys_name(path: Path) -> None:
    ada = visitor(path)
    item = ada.begin("Ada", "adas-code")
    assert item["stage"] == "guidelines"
    task = ada.ask(type="begin")["task"]
    first = ada.label(task["item_id"], comment="private")["saved"]
    other = visitor(path)
    for code in (None, "", "wrong-code", "adas-cod", "ADAS-CODE"):
        assert not other.ask(type="start", name="Ada", code=code)["ok"]
        for message in (
            {"type": "past", "index": 0},
            {"type": "next"},
            {"type": "begin"},
            {**GOOD, "item_id": task["item_id"], "replaces": first},
        ):
            answer = other.ask(**message)
            assert not answer["ok"] and "private" not in json.dumps(answer)
    assert len(rows_of(path)) == 1
    # Somebody else in the same tab: Ada's page is hers no more.
    assert ada.ask(type="start", name=None)["stage"] == "name"
    assert not ada.ask(type="past", index=0)["ok"]
    assert not ada.ask(type="start", name="Ada", code="wrong-code")["ok"] and not ada.ask(type="past", index=0)["ok"]
    back = visitor(path)
    assert back.begin("Ada", "adas-code")["stage"] == "item"
    assert back.ask(type="past", index=0)["label"]["comment"] == "private"


def test_a_form_that_is_one_persons_asks_for_no_name(
    path: Path, postgres: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On JupyterHub the hub says who it is; on PostgreSQL a class's login does."""
    page = Page(app.Application(path, Settings(name="hub-ada")))
    assert page.ask(type="start", name="Bert", code="x")["annotator"] == "hub-ada"
    assert page.widget._config["named"] and page.ask(type="next")["stage"] == "guidelines"
    with open_store(path) as store:
        assert serving.whose(store, {"JUPYTERHUB_USER": "hub-ada"}) == "hub-ada"
        assert serving.whose(store, {}) is None
    from llama2lab.annotation.store import classroom

    url = postgres.create("whose")
    roster = tmp_path / "names.txt"
    roster.write_text("Ada\n")
    classroom.create_class(url, roster, tmp_path / "urls.csv")
    with open_store(url) as store:
        add_pairs(store, [row(0), row(1)])
    with open_store(classroom.read_urls(tmp_path / "urls.csv")["Ada"]) as store:
        assert serving.whose(store, {"JUPYTERHUB_USER": "somebody"}) == "Ada"
        assert serving._pairs(store) == (2, ["helpfulness"])  # she was given none so far, and sees none
    with open_store(url) as store:
        assert serving.whose(store, {}) is None


def test_visitors_see_neither_path_nor_url(path: Path) -> None:
    page = visitor(path)
    page.begin("Ada")
    moved = path.with_suffix(".moved")
    path.rename(moved)
    told = [
        page.ask(type="next"),
        page.ask(type="begin"),
        visitor(path).ask(type="start", name="Ada", code="geheim-42"),
    ]
    data = page.widget._repr_mimebundle_()
    told += [(data[0] if isinstance(data, tuple) else data)["text/plain"], repr(page.widget)]
    assert not told[0]["ok"] and "vanished" in told[0]["error"]
    assert str(path.parent) not in json.dumps(told) and path.name not in json.dumps(told)


@pytest.mark.parametrize(("pairs", "more"), [(0, {}), (4, {"number": 0})])
def test_no_qualification_without_gold(tmp_path: Path, pairs: int, more: dict[str, Any]) -> None:
    path = filled(tmp_path / "labels.db", [row(0)] + [gold(i) for i in range(pairs)])
    page = visitor(path, **more)
    answer = page.begin("Ada")
    assert answer["stage"] == "guidelines" and answer["qualification"] is None
    assert page.ask(type="begin")["stage"] == "item"


@pytest.mark.parametrize("name", ["", "  ", "x" * 300, "a\x00b", "\u202eAda", 5])
def test_a_name_that_is_none(path: Path, name: Any) -> None:
    page = visitor(path)
    answer = page.ask(type="start", name=name)
    assert not answer["ok"] and answer["error"]
    assert not page.ask(type="next")["ok"]
    assert page.begin("<script>alert(1)</script>")["stage"] == "guidelines"


@given(
    outcomes=st.lists(st.booleans(), max_size=12),
    wanted=st.integers(0, 12),
    number=st.integers(0, 6),
    mark=st.floats(0, 1),
    attempts=st.integers(1, 4),
)
def test_standing(outcomes: list[bool], wanted: int, number: int, mark: float, attempts: int) -> None:
    wanted = max(wanted, len(outcomes))
    standing = Standing.of(
        queue.Qualification(tuple(outcomes), wanted), Settings(None, 0, number, mark, attempts, practice=0)
    )
    assert not (standing.passed and standing.over)
    if standing.number:
        assert standing.number * standing.attempts <= wanted  # nobody is asked for gold that is not there
        assert 0 <= standing.needed <= standing.number
        if len(outcomes) < standing.number:
            assert not standing.passed and "agreed" not in standing.words(1)
        if outcomes and all(outcomes) and len(outcomes) >= standing.number:
            assert standing.passed
    else:
        assert standing.passed


@pytest.mark.parametrize("wrong", [{"number": -1}, {"mark": 1.5}, {"attempts": 0}])
def test_settings_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(LabError):
        Settings(**wrong)


def test_annotate_says_what_is_wrong_before_it_serves(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no annotation store"):
        serving.annotate(tmp_path / "none.db")
    with open_store(tmp_path / "empty.db"):
        pass
    with pytest.raises(LabError, match="no pairs"):
        serving.annotate(tmp_path / "empty.db")
    path = filled(tmp_path / "labels.db", [row(0)])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LabError, match="--port"):
            serving.annotate(path, port=taken.getsockname()[1])


def test_the_url_goes_to_the_kernel_and_nowhere_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql://ada:geheim42@db/labels"
    assert not any("geheim42" in word for word in serving.command("127.0.0.1", 1, "/"))
    with pytest.raises(LabError, match="llama2lab annotate"):
        app.application()
    for key, value in serving.environment(str(path), Settings(seed=7), path.parent).items():
        if key.startswith("LLAMA2LAB"):
            monkeypatch.setenv(key, value)
    form = app.application()
    assert form._settings.seed == 7 and app.URL_VARIABLE not in serving.os.environ
    assert "geheim42" not in json.dumps(app.Application(secret).get_state(), default=str)


def test_the_packaged_notebook_holds_no_output_and_one_line() -> None:
    notebook = json.loads(serving.NOTEBOOK.read_text(encoding="utf-8"))
    assert [c["outputs"] for c in notebook["cells"]] == [[]]
    assert "application()" in "".join(notebook["cells"][0]["source"])
