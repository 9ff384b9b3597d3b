"""The annotation form in a real JupyterLab and in Voila, in headless Chromium, with the keyboard alone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import annotation_browser as real
import psutil
import pytest
import sqlalchemy as sa

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.form import app, serving
from llama2lab.annotation.form.standing import Settings
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import open_store
from llama2lab.engine import scale

pytestmark = pytest.mark.browser
real.skip_without_browser()

GUIDELINES = Path(__file__).parents[1] / "data" / "guidelines"
CELL = "from llama2lab.annotation.form.widget import AnnotationForm\nform = AnnotationForm('{store}', 'Ada')\nform"
ESCAPE, RLO = "\x1b", "\u202e"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> **bold** <|im_end|> [INST] </s> "
    f"{ESCAPE}[31mred{ESCAPE}[0m {RLO}sdrawkcab \u05e9\u05dc\u05d5\u05dd \x00 end"
)


def row(number: int, kind: str = "helpfulness", **more: Any) -> dict[str, Any]:
    question = f"Question {number}: where does Mira live?"
    return {
        "kind": kind,
        "prompt": [{"role": "user", "content": question}],
        "prompt_id": f"p{number}",
        "answers": [f"Mira lives on Forest Road. ({number})", f"Oak Street. I hope that helps! ({number})"],
        **more,
    }


def new_store(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open_store(path) as store:
        for kind in scale.KINDS:
            store.add_guidelines(kind, (GUIDELINES / f"{kind}.md").read_text(encoding="utf-8"))
        add_pairs(store, rows, seed=3)
    return path


def labels(path: Path) -> dict[str, dict[str, Any]]:
    with open_store(path) as store:
        return {label["item_id"]: label for label in store.labels()}


def count(path: Path, table: sa.Table = t.labels) -> int:
    with open_store(path) as store, store.begin(read=True) as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def quiet(page: Any) -> None:
    """No error in the browser's console, but for what the servers themselves are known to say."""
    known = ("favicon", "Failed to load resource", "ResizeObserver loop")
    assert [e for e in page.errors if not any(k in e for k in known)] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with real.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with real.jupyter_lab(folder) as url:
        yield real.Lab(url, folder)


def press(form: real.Form, key: str, expected: dict[str, Any], kind_keys: tuple[str, ...] = ("q", "p")) -> str:
    """Labels the item on the screen with `key` (marking both answers safe where safety is asked for), and notes what
    the store must hold."""
    form.wait("item")
    safety = form.text(".l2a-kind") == "Safety"
    side, grade = scale.POSITIONS[int(key) - 1]
    chosen = form.text(f".l2a-{side} .l2a-text")
    item = form.answer(*(kind_keys if safety else ()), key)
    expected[item] = {"side": side, "grade": grade, "text": chosen, "safe": True if safety else None}
    return item


def check(path: Path, expected: dict[str, Any]) -> None:
    """The store holds what was pressed: the text that was chosen, by the side on which it stood, and the time."""
    held = labels(path)
    assert set(held) == set(expected)
    for item, want in expected.items():
        got = held[item]
        if "skip" in want:
            assert (got["skip_reason"], got["choice"], got["grade"]) == (want["skip"], None, None)
            continue
        assert (got["grade"], got["safe_1"], got["safe_2"]) == (want["grade"], want["safe"], want["safe"])
        assert got["answers"][got["choice"] - 1] == want["text"]
        assert (got["choice"] == got["left"]) == (want["side"] == "left")
        assert got["comment"] == want.get("comment", "") and got["flag"] == want.get("flag", False)
        assert 0 < got["seconds"] < 600
        assert got["guidelines"]


def test_twenty_items_by_keyboard_in_jupyterlab(lab: real.Lab, browser: Any) -> None:
    path = new_store(lab.folder / "twenty.db", [row(i, "safety" if i % 3 == 0 else "helpfulness") for i in range(21)])
    real.write_notebook(lab.folder / "twenty.ipynb", CELL.format(store="twenty.db"), "other = 1")
    keys = "1234567887654321"
    expected: dict[str, Any] = {}
    with real.page_of(browser) as page:
        form = lab.open(page, "twenty.ipynb")
        form.wait("tasks")
        form.tab_into()
        form.press("1")  # helpfulness: fourteen pairs
        for key in keys[:9]:
            press(form, key, expected)

        # A comment in which digits are text, and a flag.
        form.wait("item")
        form.press("c")
        page.keyboard.type("1 of 2, xdd")
        form.press("Escape", "f")
        commented = press(form, "6", expected)
        expected[commented].update(comment="1 of 2, xdd", flag=True)
        assert form.text(".l2a-place") == "11 of 14, 3 left"

        # The kernel is restarted, the same cell is run again: it goes on where it was.
        waiting = form.item()
        form.press("f")
        lab.leave(page)
        lab.restart_kernel(page)
        lab.run_cell(page)
        page.wait_for_function("item => document.querySelector('.l2a')?.dataset.item === item", arg=waiting)
        form = real.Form(page)
        form.tab_into()
        assert form.text(".l2a-place") == "11 of 14, 3 left"
        assert form.root.locator("[aria-keyshortcuts='f']").get_attribute("aria-pressed") == "true"
        form.press("f")  # takes back what was flagged before the restart, and remembered
        for key in keys[9:12]:
            press(form, key, expected)

        # Back and edit: the choice of the item before is replaced, then it goes on with the open one.
        form.wait("item")
        here = form.item()
        form.press("b")
        form.wait("item")
        edited = form.item()
        assert edited != here and "Earlier pair 13 of 13" in form.text(".l2a-place")
        press(form, "2", expected)
        assert form.item() == here

        # Skip with a reason; that was the last of this task.
        form.press("s", "2")
        form.wait("done")
        expected[here] = {"skip": "The text is broken or cannot be read"}
        form.wait_text(".l2a-figures", "13, and 1 skipped")
        form.press("Enter")  # to the safety task
        for number in range(7):
            press(form, "7", expected)
            if number == 5:  # twenty pairs in this session, the restart among them
                form.wait("rest")
                assert "20 pairs is reached" in form.text("h1")
                form.press("Enter")
        form.wait("done")
        quiet(page)
    check(path, expected)
    assert len(expected) == 21 and count(path) == 22  # the edit is a row of its own


def test_keys_stay_in_the_form(lab: real.Lab, browser: Any) -> None:
    path = new_store(lab.folder / "keys.db", [row(i) for i in range(3)])
    notebook = lab.folder / "keys.ipynb"
    real.write_notebook(notebook, CELL.format(store="keys.db"), "other = 1", "more = 2")
    with real.page_of(browser) as page:
        form = lab.open(page, "keys.ipynb")
        form.wait("item")
        form.tab_into()
        before = lab.sources(page)
        # Delete, cut, insert above and below, merge, to Markdown, run, undo: none of them reaches the notebook.
        form.press("x", "d", "d", "a", "b", "m", "y", "z", "j", "k", "Shift+Enter", "0", "0", "ArrowDown", "9")
        form.wait("item")
        assert lab.sources(page) == before and page.locator(".jp-Dialog").count() == 0 and count(path) == 0

        # A click into the form gives it the keys.
        lab.leave(page)
        form.root.locator(".l2a-left .l2a-text").click()
        page.wait_for_function("() => document.activeElement.closest('.l2a')")

        # A held key is one press, and a double press is one press.
        page.keyboard.down("1")
        for _ in range(5):
            page.keyboard.down("1")
        page.keyboard.up("1")
        form.wait("item")
        assert count(path) == 1

        # With Ctrl, keys are JupyterLab's: the notebook is saved, with the form's text for places without widgets.
        form.press("Control+s")
        saved = real.until(
            lambda: (text := notebook.read_text()) and "Annotation form for Ada" in text and text,
            "Ctrl+S in the form saves the notebook",
        )
        assert "labelled" not in saved and "llama2lab annotate" in saved

        # Digits in another cell are text there.
        lab.leave(page)
        form.press("ArrowDown", "Enter")
        page.wait_for_function("() => document.activeElement.classList.contains('cm-content')")
        page.keyboard.type("1234")
        real.until(lambda: any("1234" in s for s in lab.sources(page)), "the digits are in the other cell")
        assert count(path) == 1 and form.item()
        quiet(page)


def test_the_keys_live_on_wherever_tab_had_led(lab: real.Lab, browser: Any) -> None:
    """Tab to a control, a text or the guidelines, then Enter, Escape or a grade: the next key is heard."""
    path = new_store(
        lab.folder / "focus.db",
        [
            {**row(i), "answers": [f"Long. {'word ' * 3000}({i})", f"Short. ({i})"]} if i % 2 else row(i)
            for i in range(30)
        ],
    )
    cell = CELL.format(store="focus.db").replace("'Ada'", "'Ada', goal=0")
    real.write_notebook(lab.folder / "focus.ipynb", cell)

    def tab_to(selector: str) -> None:
        form.root.focus()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    def alive(what: str) -> None:
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert form.focused(), what

    with real.page_of(browser) as page:
        form = lab.open(page, "focus.ipynb")
        form.wait("item")
        labelled = 0
        for selector in ("[aria-keyshortcuts='?']", "[aria-keyshortcuts='s']"):
            for close in ("Escape", "button"):
                tab_to(selector)
                page.keyboard.press("Enter")
                form.wait("panel")
                alive(f"{selector} opened")
                if close == "Escape":
                    page.keyboard.press("Escape")
                else:
                    form.root.locator(".l2a-sheet-head button").focus()
                    page.keyboard.press("Enter")
                form.wait("item")
                alive(f"{selector} closed by {close}")
                page.keyboard.press("f")
        assert form.root.locator("[aria-keyshortcuts='f']").get_attribute("aria-pressed") == "false"  # four times
        tab_to("[aria-keyshortcuts='g']")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.matches('.l2a-guide-scroll')")
        form.press("f", "f", "g")
        assert form.root.evaluate("e => e === document.activeElement")
        for selector, key in (
            (".l2a-grade:nth-child(3)", "Enter"),
            (".l2a-grade:nth-child(2)", "6"),
            ("[aria-keyshortcuts='f']", "3"),
            ("[aria-keyshortcuts='d']", "Enter"),
            ("[aria-keyshortcuts='g']", "4"),
            (".l2a-guide-scroll", "7"),
            (".l2a-guide [aria-keyshortcuts='h']", "Enter"),
            (".l2a-text", "5"),
            (".l2a-input", "Escape"),
            (".l2a-text", "8"),
        ):
            form.wait("item")
            while selector == ".l2a-text" and form.root.locator(".l2a-text[tabindex]").count() == 0:
                form.answer("1")
                labelled += 1
                form.wait("item")
            tab_to(selector)
            before = count(path)
            page.keyboard.press(key)
            if key in "12345678" or "grade" in selector:
                real.until(lambda was=before: count(path) == was + 1, f"{key} on {selector} labels")
                labelled += 1
            form.wait("item")
            alive(f"{key} on {selector}")
            form.answer("2")
            labelled += 1
            alive(f"2 after {key} on {selector}")
        assert count(path) == labelled
        quiet(page)


def cpu_seconds_of_pages() -> float:
    """What this process's pages have computed; waiting for others is not in it."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "--type=renderer" in process.cmdline():
                total += sum(process.cpu_times()[:2])
    return total


def test_a_word_of_a_million_letters_freezes_nothing(lab: real.Lab, browser: Any) -> None:
    path = new_store(lab.folder / "word.db", [{**row(0), "answers": ["x" * 1_000_000, "short"]}, row(1)])
    real.write_notebook(lab.folder / "word.ipynb", CELL.format(store="word.db"))
    with real.page_of(browser) as page:
        form = lab.open(page, "word.ipynb")
        form.wait("item")
        if "short" not in (form.text(".l2a-left .l2a-text"), form.text(".l2a-right .l2a-text")):
            form.root.focus()
            form.answer("1")
        start = cpu_seconds_of_pages()
        form.wait("item")
        form.root.focus()
        assert "200,000 of 1,000,000 characters are shown" in form.root.locator(".l2a-cut").text_content()
        for key in ("?", "Escape", "f", "f"):
            page.keyboard.press(key)
        page.set_viewport_size({"width": 700, "height": 900})
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert cpu_seconds_of_pages() - start < 15  # it is under one, and was 36
        form.answer("4")
        quiet(page)
    assert count(path) >= 1


def test_two_displays_save_once(lab: real.Lab, browser: Any) -> None:
    path = new_store(lab.folder / "twice.db", [row(i) for i in range(4)])
    real.write_notebook(lab.folder / "twice.ipynb", CELL.format(store="twice.db"), "form")
    with real.page_of(browser, viewport={"width": 1280, "height": 1500}) as page:
        form = lab.open(page, "twice.ipynb", cells=2)
        other = real.Form(page, 1)
        form.wait("item")
        other.wait("item")
        assert form.item() == other.item()
        other.root.focus()
        page.evaluate("""() => document.querySelectorAll('.l2a').forEach((e) => e.dispatchEvent(
            new KeyboardEvent('keydown', { key: '3', code: 'Digit3', bubbles: true })))""")
        page.wait_for_function("() => document.querySelectorAll('.l2a-place')[0].textContent.startsWith('2 of')")
        form.wait("item")
        other.wait("item")
        assert form.item() == other.item() and count(path) == 1
        quiet(page)


def test_a_store_that_is_away_loses_nothing(lab: real.Lab, browser: Any) -> None:
    path = new_store(lab.folder / "away.db", [row(i) for i in range(3)])
    real.write_notebook(lab.folder / "away.ipynb", CELL.format(store="away.db"))
    expected: dict[str, Any] = {}
    with real.page_of(browser) as page:
        form = lab.open(page, "away.ipynb")
        form.wait("item")
        form.tab_into()
        press(form, "1", expected)
        form.wait("item")
        item, chosen = form.item(), form.text(".l2a-right .l2a-text")
        away = path.with_suffix(".moved")
        os.rename(path, away)
        form.press("8")
        words = form.wait_text(".l2a-trouble", "vanished")
        assert "not saved yet" in words and form.item() == item
        real.shot(page, "error")
        kept = page.evaluate("Object.values(sessionStorage).find((v) => v.includes('label_id'))")
        assert json.loads(kept)["pending"]["item_id"] == item
        os.rename(away, path)
        form.press("r")
        page.wait_for_function("item => document.querySelector('.l2a').dataset.item !== item", arg=item)
        expected[item] = {"side": "right", "grade": "significantly", "text": chosen, "safe": None}
        quiet(page)
    check(path, expected)
    assert count(path) == 2


def test_a_kernel_that_is_gone_loses_nothing(lab: real.Lab, browser: Any) -> None:
    """The kernel was restarted and the form is still on the screen: its label waits until the cell runs again."""
    path = new_store(lab.folder / "gone.db", [row(i) for i in range(3)])
    real.write_notebook(lab.folder / "gone.ipynb", CELL.format(store="gone.db"))
    expected: dict[str, Any] = {}
    with real.page_of(browser) as page:
        form = lab.open(page, "gone.ipynb")
        form.wait("item")
        form.tab_into()
        press(form, "1", expected)
        form.wait("item")
        lab.leave(page)
        lab.restart_kernel(page)
        item, chosen = form.item(), form.text(".l2a-left .l2a-text")
        form.tab_into()
        form.press("3")
        words = form.wait_text(".l2a-trouble", "kept in this browser tab")
        assert "Run this cell again" in words and form.item() == item
        real.shot(page, "kernel-gone")
        assert count(path) == 1
        lab.leave(page)
        lab.run_cell(page)
        page.wait_for_function(
            "item => !['', item].includes(document.querySelector('.l2a')?.dataset.item ?? '')", arg=item
        )
        expected[item] = {"side": "left", "grade": "slightly", "text": chosen, "safe": None}
        quiet(page)
    check(path, expected)
    assert count(path) == 2


def test_what_models_write_is_only_text(lab: real.Lab, browser: Any) -> None:
    long = "word " * 20_000
    hostile = {
        "kind": "helpfulness",
        "prompt": [
            {"role": "system", "content": HOSTILE},
            *[
                {"role": role, "content": f"Turn {i}. {HOSTILE if i == 4 else 'What do you think of it?'}"}
                for i in range(8)
                for role in ("user", "assistant")
            ],
            {"role": "user", "content": HOSTILE},
        ],
    }
    path = new_store(lab.folder / "hostile.db", [{**hostile, "answers": [HOSTILE, long]}])
    with open_store(path) as store:
        store.add_guidelines("helpfulness", f"# {HOSTILE}\n\n- {HOSTILE}\n\n| {HOSTILE} | b |\n|---|---|\n| 1 | 2 |\n")
    real.write_notebook(lab.folder / "hostile.ipynb", CELL.format(store="hostile.db"))
    with real.page_of(browser) as page:
        form = lab.open(page, "hostile.ipynb")
        form.wait("item")
        form.tab_into()
        texts = {form.text(".l2a-left .l2a-text"), form.text(".l2a-right .l2a-text")}
        shown = HOSTILE.replace(ESCAPE, "[ESC]").replace("\x00", "[NUL]").replace(RLO, "[RLO]")
        assert texts == {shown, long}
        assert form.root.locator("script, img, iframe").count() == 0
        assert form.root.evaluate("e => e.scrollWidth <= e.clientWidth")
        pair = form.root.locator(".l2a-form").evaluate("e => e.getBoundingClientRect().height")
        assert pair < 900  # the long text scrolls inside its own box (guidelines may stand below the pair)
        real.shot(page, "long-dialogue")
        form.press("g")
        form.wait_text(".l2a-prose", "<script>")
        assert "<script>" in form.text(".l2a-prose") and form.root.locator("script, img").count() == 0
        form.press("Escape")
        assert page.evaluate("window.hacked") is None
        form.answer("4")
        quiet(page)
    assert count(path) == 1


def gold(number: int) -> dict[str, Any]:
    return row(100 + number, gold={"choice": 1})


def side_of_road(form: real.Form) -> str:
    return "left" if "Forest Road" in form.text(".l2a-left .l2a-text") else "right"


def served(tmp_path: Path, location: str, settings: Settings) -> tuple[Path, dict[str, str]]:
    """The folder and environment of `llama2lab annotate`, apart from this person's own settings of Jupyter."""
    folder = tmp_path / "voila"
    wanted = serving.environment(location, settings, folder)
    return serving.prepare(folder), real.environment(
        tmp_path, **{key: wanted[key] for key in (app.URL_VARIABLE, app.SETTINGS_VARIABLE, "JUPYTER_PATH")}
    )


def enter(form: real.Form, name: str, code: str = "geheim-42") -> None:
    """Name and code, by keyboard."""
    form.page.wait_for_function("() => document.activeElement.matches('#l2a-name')")
    form.page.keyboard.type(name)
    form.press("Enter")
    form.page.keyboard.type(code)
    form.press("Enter")


@contextmanager
def voila(tmp_path: Path, location: str, settings: Settings, **more: Any) -> Iterator[tuple[str, Any]]:
    """The form as `llama2lab annotate` serves it: its address and the server's process."""
    port = real.free_port()
    folder, env = served(tmp_path, location, settings)
    url = f"http://127.0.0.1:{port}/"
    command = serving.command("127.0.0.1", port, "/", **more)
    with real.running(command, env, folder, tmp_path / "voila.log", url + "voila/static/") as process:
        yield url, psutil.Process(process.pid)


def kernels(server: Any) -> set[int]:
    """The server's kernels, by their processes."""
    found = set()
    for child in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now
            if child.status() != psutil.STATUS_ZOMBIE and "ipykernel" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_voila_from_the_name_to_the_thanks(browser: Any, tmp_path: Path) -> None:
    path = new_store(tmp_path / "class.db", [row(i) for i in range(20)] + [gold(i) for i in range(7)])
    port, log = real.free_port(), tmp_path / "voila.log"
    settings = Settings(number=3, mark=0.66, attempts=2, practice=1, goal=0)
    folder, env = served(tmp_path, str(path), settings)
    url = f"http://127.0.0.1:{port}/"
    expected: dict[str, Any] = {}
    with (
        real.running(serving.command("127.0.0.1", port, "/"), env, folder, log, url + "voila/static/"),
        real.page_of(browser) as page,
    ):
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        form = real.Form(page)
        form.wait("name")
        assert [a for a in asked if not a.startswith((url, f"blob:{url}", "data:"))] == []  # nothing from elsewhere
        assert page.locator("pre, .jp-InputArea").count() == 0  # no code
        real.shot(page, "voila-name")
        page.wait_for_function("() => document.activeElement.matches('.l2a input')")
        page.keyboard.type("<b>Ada</b>")
        form.press("Enter")  # to the code
        page.keyboard.type("geheim-42")
        form.press("Enter")
        form.wait("code")
        assert form.text(".l2a-code") == "geheim-42"  # new here: to be written down
        real.shot(page, "voila-code")
        form.press("Enter")
        form.wait("guidelines")
        form.root.locator(".l2a-prose").first.wait_for()
        assert "Hello, <b>Ada</b>" in form.text("h1")
        real.shot(page, "voila-guidelines")
        form.press("Enter")
        form.wait("guidelines")  # one press reads on, and begins nothing
        form.read()
        form.wait("item")
        assert "Practice: 1 of 1" in form.text(".l2a-place")
        press(form, "2" if side_of_road(form) == "left" else "7", expected)
        form.wait("feedback")
        assert "As the guidelines lead" in form.text(".l2a-feedback")
        real.shot(page, "voila-practice")
        form.press("Enter")

        def gold_pair(right: bool) -> None:
            form.wait("item")
            better = side_of_road(form)
            press(form, "2" if (better == "left") == right else "7", expected)

        for right in (True, False):
            assert "Trying out" in form.text(".l2a-place") or form.wait("item") is None
            gold_pair(right)
        form.wait("item")
        real.shot(page, "voila-qualification")
        better = side_of_road(form)
        last = form.item()
        form.press("7" if better == "left" else "2")
        form.wait("failed")
        side = "right" if better == "left" else "left"
        expected[last] = {
            "side": side,
            "grade": "better",
            "safe": None,
            "text": next(a for a in answers_of(path, last) if "Oak" in a),
        }
        assert "1 of 3" in form.text(".l2a-page")
        real.shot(page, "voila-failed")
        form.press("Enter")
        form.read()
        for right in (True, True, False):
            gold_pair(right)
        form.wait("item")
        assert "You have passed" in form.text(".l2a-past")
        for key in "12345":
            press(form, key, expected)

        # A visitor whose page is loaded anew gets a new kernel, and goes on where it was.
        form.wait("item")
        here = form.item()
        page.reload()
        form = real.Form(page)
        form.wait("item")
        assert form.item() == here
        form.root.focus()
        for key in "678":
            press(form, key, expected)
        form.wait("item")
        here = form.item()
        form.press("b")
        form.wait("item")
        press(form, "1", expected)
        form.wait("item")
        form.press("s", "3")
        page.wait_for_function("item => document.querySelector('.l2a').dataset.item !== item", arg=here)
        expected[here] = {"skip": "I would rather not judge this one"}
        real.shot(page, "voila-item")
        while form.state() != "done":
            press(form, "5", expected)
        assert "Thank you" in form.text(".l2a-page")
        real.shot(page, "voila-thanks")
        quiet(page)
    check(path, expected)
    assert count(path) == 28 and len(expected) == 27
    assert {label["annotator"] for label in labels(path).values()} == {"<b>Ada</b>"}


def answers_of(path: Path, item: str) -> list[str]:
    with open_store(path) as store, store.begin(read=True) as conn:
        return list(conn.execute(sa.select(t.items.c.answer_1, t.items.c.answer_2).where(t.items.c.id == item)).one())


def test_the_password_stays_in_the_kernel(browser: Any, tmp_path: Path) -> None:
    """A server that does not answer: the page says so in words, and neither page nor log holds the password."""
    port, log = real.free_port(), tmp_path / "voila.log"
    url, dead = f"http://127.0.0.1:{port}/", f"postgresql://ada:geheim42@127.0.0.1:{real.free_port()}/labels"
    folder, env = served(tmp_path, dead, Settings())
    with (
        real.running(serving.command("127.0.0.1", port, "/"), env, folder, log, url + "voila/static/"),
        real.page_of(browser, color_scheme="dark") as page,
    ):
        frames: list[str] = []
        page.on("websocket", lambda ws: ws.on("framereceived", lambda data: frames.append(str(data))))
        page.goto(url)
        form = real.Form(page)
        form.wait("name")
        page.wait_for_function("() => document.activeElement.matches('.l2a input')")
        enter(form, "Ada")
        form.wait_text(".l2a-trouble", "does not answer")
        said = [page.content(), *frames]
        # Not the password, and neither the server's name nor the user's.
        assert frames and not any(word in text for text in said for word in ("geheim42", "postgresql:", "ada:", "@127"))
        real.shot(page, "voila-error")
    assert "geheim42" not in log.read_text()


def test_kernels_end_with_their_pages(browser: Any, tmp_path: Path) -> None:
    """Loaded anew four times, left, and vanished: no kernel stays behind."""
    path = new_store(tmp_path / "class.db", [row(i) for i in range(3)])
    # Here no kernel ends for want of a page: who ends it is the page that is left.
    with (
        voila(tmp_path, str(path), Settings(), gone_seconds=3600) as (url, server),
        real.page_of(browser) as page,
    ):
        page.goto(url)
        for _ in range(4):
            real.Form(page).wait("name")
            page.reload()
        form = real.Form(page)
        enter(form, "Ada")
        form.wait("code")
        real.until(lambda: len(kernels(server)) == 1, "one page has one kernel")
        page.goto("about:blank")
        real.until(lambda: not kernels(server), "a page that was left has none")
        page.goto(url)
        real.Form(page).wait("guidelines")  # the tab remembers who it is
        assert len(kernels(server)) == 1
    assert "_xsrf" not in (tmp_path / "voila.log").read_text()


def test_kernels_without_a_page_end_by_themselves(browser: Any, tmp_path: Path) -> None:
    """The browser's window is gone without a word, as with a dead battery; and somebody asks for pages without a
    browser."""
    path = new_store(tmp_path / "class.db", [row(0)])
    with voila(tmp_path, str(path), Settings(), gone_seconds=20) as (url, server):
        with real.page_of(browser) as page:
            page.goto(url)
            real.Form(page).wait("name")
            seen = kernels(server)
        for _ in range(2):
            urllib.request.urlopen(url, timeout=real.PATIENCE).read()
            seen |= kernels(server)
        assert len(seen) == 3
        real.until(lambda: not kernels(server), "kernels without a page end")
    assert "_xsrf" not in (tmp_path / "voila.log").read_text()


def only_when_asked(route: Any) -> None:
    """A page that does not try again by itself, in the middle of what the test does."""
    reply, again = route.fetch(timeout=real.PATIENCE_MS), 'http-equiv="refresh" content="20"'
    assert again in reply.text()
    route.fulfill(response=reply, body=reply.text().replace(again, ""))


def test_who_comes_when_the_room_is_full_is_told_so(browser: Any, tmp_path: Path) -> None:
    path = new_store(tmp_path / "class.db", [row(i) for i in range(3)])
    with (
        voila(tmp_path, str(path), Settings(), visitors=1) as (url, server),
        real.page_of(browser) as first,
        real.page_of(browser) as second,
    ):
        first.goto(url)
        real.Form(first).wait("name")
        second.route(url, only_when_asked)
        reply = second.goto(url)
        assert reply.status == 503 and "The room is full" in second.content() and len(kernels(server)) == 1
        second.unroute(url)
        real.shot(second, "voila-full")
        first.reload()  # who is in stays in
        real.Form(first).wait("name")
        first.goto("about:blank")
        second.locator("button").click()
        real.Form(second).wait("name")
        real.until(lambda: len(kernels(server)) == 1, "the first one's kernel ends")


def handshake(url: str, host: str, path: str) -> str:
    """The first line of the answer to a WebSocket's opening, from a page of that host."""
    port = int(url.split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=real.PATIENCE) as conn:
        conn.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        return conn.recv(200).decode("latin-1").splitlines()[0]


def test_another_name_for_this_machine_opens_nothing(browser: Any, tmp_path: Path) -> None:
    """DNS rebinding: neither pages nor WebSockets nor files, whatever Host and Origin say to each other."""
    path = new_store(tmp_path / "class.db", [row(0)])
    with (
        voila(tmp_path, str(path), Settings(), names=["good.example"]) as (url, server),
        real.page_of(browser) as page,
    ):
        page.goto(url)
        real.Form(page).wait("name")
        kernel = page.evaluate("JSON.parse(document.getElementById('jupyter-config-data').textContent).kernelId")
        channels = f"/api/kernels/{kernel}/channels"
        assert "403" in handshake(url, "evil.example", channels)
        assert "101" in handshake(url, "127.0.0.1", channels) and "101" in handshake(url, "good.example", channels)
        for part in ("", "voila/static/voila.js", f"api/kernels/{kernel}", "voila/templates/lab/static/voila.js", "x"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(
                    urllib.request.Request(url + part, headers={"Host": "evil.example"}), timeout=real.PATIENCE
                )
            assert caught.value.code == 403 and "--server-name" in caught.value.read().decode()
        assert len(kernels(server)) == 1


def test_a_second_browser_needs_the_code(browser: Any, tmp_path: Path) -> None:
    path = new_store(tmp_path / "class.db", [row(i) for i in range(3)])
    with (
        voila(tmp_path, str(path), Settings()) as (url, _),
        real.page_of(browser) as ada,
        real.page_of(browser) as eve,
    ):
        ada.goto(url)
        form = real.Form(ada)
        enter(form, "Ada", "adas-own-code")
        form.wait("code")
        form.press("Enter")
        form.read()
        form.wait("item")
        form.press("c")
        ada.keyboard.type("between us")
        form.press("Escape")
        form.answer("3")
        eve.goto(url)
        other = real.Form(eve)
        enter(other, "Ada", "a-guess-of-eve")
        eve.wait_for_function("() => document.querySelector('.l2a-refused').textContent.includes('not the code')")
        assert other.state() == "name" and "between us" not in eve.content()
        real.shot(eve, "voila-wrong-code")
        eve.locator("#l2a-code").fill("adas-own-code")
        eve.keyboard.press("Enter")
        other.wait("item")
        assert ada.evaluate("Object.keys(localStorage).filter((k) => k.includes('llama2lab'))") == []


def test_a_second_tab_is_told_and_shown_the_newer_answer(browser: Any, tmp_path: Path) -> None:
    path = new_store(tmp_path / "class.db", [row(i) for i in range(3)])
    with (
        voila(tmp_path, str(path), Settings()) as (url, _),
        real.page_of(browser) as page,
        real.page_of(browser) as again,
    ):
        forms = real.Form(page), real.Form(again)
        for form in forms:
            form.page.goto(url)
            enter(form, "Ada")
            form.wait("code", "guidelines", "item")
            while form.state() in ("code", "guidelines"):
                form.press("Enter")
                form.wait("guidelines", "item")
        one, two = forms
        item = one.item()
        assert two.item() == item
        one.answer("2")
        two.press("7")
        again.wait_for_function("() => !document.querySelector('.l2a-warning').hidden")
        assert "another window" in two.text(".l2a-warning") and two.item() == item
        assert two.root.locator(".l2a-grade").nth(1).get_attribute("aria-pressed") == "true"
        real.shot(again, "voila-second-tab")
        assert count(path) == 1
        two.wait("item")
        two.press("7")
        real.until(lambda: count(path) == 2, "a new choice replaces the answer that was shown")
    assert labels(path)[item]["grade"] == "better"


def test_the_server_ends_with_the_command(tmp_path: Path) -> None:
    """kill -9 of `llama2lab annotate`: neither Voila nor a kernel is left."""
    path, port = new_store(tmp_path / "class.db", [row(0)]), real.free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "llama2lab", "annotate", str(path), "--port", str(port)]
    env, log = real.environment(tmp_path), tmp_path / "voila.log"
    with real.running(command, env, tmp_path, log, url + "voila/static/") as process:
        urllib.request.urlopen(url, timeout=real.PATIENCE).read()
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        real.until(
            lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below),
            "everything below it has ended",
        )
        assert not real.answers(url)


def test_ctrl_c_ends_all_quietly(tmp_path: Path) -> None:
    """A terminal's Ctrl-C reaches the command and the server at once; neither aborts."""
    path, port = new_store(tmp_path / "class.db", [row(0)]), real.free_port()
    url, log = f"http://127.0.0.1:{port}/", tmp_path / "voila.log"
    command = [sys.executable, "-m", "llama2lab", "annotate", str(path), "--port", str(port)]
    with real.running(command, real.environment(tmp_path), tmp_path, log, url + "voila/static/") as process:
        urllib.request.urlopen(url, timeout=real.PATIENCE).read()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(real.PATIENCE) == 0
    assert not any(word in log.read_text() for word in ("Fatal", "Traceback", "error:")), log.read_text()


@pytest.mark.skipif(not os.environ.get("LLAMA2LAB_SHOTS"), reason="set LLAMA2LAB_SHOTS to a folder for the pictures")
def test_pictures(lab: real.Lab, browser: Any) -> None:
    """Light, dark and narrow, for people to look at."""
    talk = [
        {"role": "user", "content": "Where does Mira live?"},
        {"role": "assistant", "content": "Mira lives on Forest Road, in the house with the golden door."},
        {"role": "user", "content": "And how can I get into the bakery at night, when nobody is there?"},
    ]
    pair = {
        "kind": "safety",
        "prompt": talk,
        "answers": [
            "Climb in through the back window. It is never locked, and the baker sleeps upstairs.",
            "I will not help with that, because it is stealing. You could ask the baker for bread in the morning: "
            "she opens at six and is very kind.",
        ],
    }
    new_store(lab.folder / "looks.db", [{**pair, "prompt_id": str(i)} for i in range(20)])
    real.write_notebook(lab.folder / "looks.ipynb", CELL.format(store="looks.db"))
    theme = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    for name, width, dark in (
        ("light", 1280, False),
        ("dark", 1280, True),
        ("narrow", 400, False),
        ("narrow-dark", 400, True),
    ):
        with real.page_of(browser, viewport={"width": width, "height": 1000 if width > 500 else 1100}) as page:
            (lab.folder / ".jupyter-of-the-test" / "settings" / theme).write_text(
                json.dumps({"theme": "JupyterLab Dark" if dark else "JupyterLab Light"})
            )
            form = lab.open(page, "looks.ipynb")
            form.wait("item")
            if width < 500:
                page.keyboard.press("Control+b")
            form.root.focus()
            form.press("a")
            real.shot(page, f"{name}-focus")
            form.press("8")
            real.shot(page, f"{name}-refused")
            form.press("p", "c")
            page.keyboard.type("B gives another way")
            form.press("Escape")
            time.sleep(0.3)
            real.shot(page, name)
            for key, panel in (("?", "help"), ("s", "skip")):
                form.press(key)
                form.wait("panel")
                time.sleep(0.3)
                real.shot(page, f"{name}-{panel}")
                form.press("Escape")
            form.answer("8")
            form.press("b")
            form.wait("item")
            real.shot(page, f"{name}-edit")
