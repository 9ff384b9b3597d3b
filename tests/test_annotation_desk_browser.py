"""The teacher's desk and the search of one's own labels in headless Chromium, with the keyboard alone; and the desk as
`llama2lab labels watch` serves it, behind its key."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotation_browser as real
import pytest
from patience import free_port, until
from test_annotation_browser import HOSTILE, new_store, quiet, row
from widget_page import mount

from llama2lab.annotation.desk import view
from llama2lab.annotation.desk.disputes import disputes
from llama2lab.annotation.form import serving
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.store import Store, open_store

pytestmark = pytest.mark.browser
real.skip_without_browser()
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with real.chromium() as running:
        yield running


def judge(store: Store, name: str, wish: Any, seconds: float = 14.0) -> None:
    """`name` answers every pair that waits: `wish` gives the number of the answer (1, 2), and the comment."""
    me = store.annotator(name)
    while task := queue.next_task(store, me):
        choice, comment = wish(task)
        with store.begin(read=True) as conn:
            first = conn.exec_driver_sql("SELECT answer_1 FROM items WHERE id = '" + task.item_id + "'").scalar_one()
        left = 1 if task.left_text == first else 2
        safe = (choice == 1, name != "Bob")
        marks = dict(zip(("safe_left", "safe_right"), safe[:: 1 if left == 1 else -1], strict=True))
        side: Any = "left" if choice == left else "right"
        if task.kind == "helpfulness":
            marks = {}
        queue.submit(store, me, task.item_id, side, "better", comment=comment, seconds=seconds, **marks)


@pytest.fixture(name="path")
def judged(tmp_path: Path) -> Path:
    """Pairs that three people have judged: two are disputed, one of them of safety, and Zoe was careless."""
    pairs = [row(i) for i in range(6)] + [row(7, "safety"), row(8, gold={"choice": 1}), row(9, gold={"choice": 1})]
    path = new_store(tmp_path / "labels.db", pairs)
    with open_store(path) as store:
        with store.begin() as conn:  # three people for each pair
            for number in (2, 3):
                conn.exec_driver_sql(
                    "INSERT INTO slots (item_id, number, position, state) SELECT item_id, "
                    f"{number}, position, 'free' FROM slots WHERE number = 1"
                )
        judge(store, "Ada", lambda task: (1, HOSTILE if task.prompt_id == "p3" else ""))
        judge(store, "Bob", lambda task: (1, ""))
        judge(store, "Zoe", lambda task: (2 if task.prompt_id in ("p3", "p8", "p9") else 1, ""), seconds=0.6)
    return path


def tab_to(page: Any, selector: str) -> None:
    """Tab until what the selector names has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")


def no_sideways_scrolling(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def open_desk(page: Any, path: Path, every: float = 0.3) -> None:
    mount(page, view.TeacherView(path, "Ms Hill", every))
    page.locator(".l2d-table tbody tr").first.wait_for()
    page.locator(".l2d-votes li").first.wait_for()


def test_a_dispute_is_decided_with_the_keyboard_alone(browser: Any, path: Path) -> None:
    with real.page_of(browser) as page:
        open_desk(page, path)
        assert page.locator(".l2d-pairs .l2a-place").text_content() == "1 of 2"
        tab_to(page, ".l2d")
        while "for the first answer" not in page.locator(".l2d-why").text_content():
            page.keyboard.press("n")
        assert "2 for the first answer, 1 for the second" in page.locator(".l2d-why").text_content()
        page.keyboard.press("Enter")
        assert "First choose" in page.locator(".l2d .l2a-refused").text_content()
        page.keyboard.press("6")
        assert page.locator(".l2d .l2a-grade[aria-pressed=true]").get_attribute("aria-label") == (
            "Second answer is slightly better"
        )
        page.keyboard.press("c")
        page.keyboard.type("Look into the book: 1 is wrong")
        page.keyboard.press("Escape")
        page.keyboard.press("Enter")
        page.locator(".l2d-note", has_text="The verdict is saved: Second answer slightly better.").wait_for()
        with open_store(path) as store:
            (one,) = [x for x in disputes(store.labels()) if x.verdict]
        kept = one.verdict or {}
        assert (kept["choice"], kept["grade"], kept["teacher"]) == (2, "slightly", "Ms Hill")
        assert kept["reason"] == "Look into the book: 1 is wrong" and len(kept["labels"]) == 3
        page.locator(".l2d-tile", has_text="1 decided").wait_for()
        # The next one is of safety: it wants marks, and the focus is still where keys are heard.
        assert "safe to" in page.locator(".l2d-why").text_content()
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        page.locator(".l2d .l2a-refused", has_text="mark both").wait_for()
        for key in ("q", "l", "Enter"):
            page.keyboard.press(key)
        page.locator(".l2d-pairs", has_text="Every disputed pair is decided.").wait_for()
        quiet(page)


def test_what_comes_in_is_shown_and_said_without_disturbing_the_teacher(browser: Any, path: Path) -> None:
    with real.page_of(browser) as page:
        open_desk(page, path)
        assert "Zoe" in page.locator(".l2d-look").text_content()
        assert "median 0.6 s a pair" in page.locator(".l2d-look").text_content()
        tab_to(page, ".l2d")
        page.keyboard.press("c")
        page.keyboard.type("half a rea")
        with open_store(path) as store:
            with store.begin() as conn:
                conn.exec_driver_sql(
                    "INSERT INTO slots (item_id, number, position, state) SELECT item_id, 4, position, 'free' "
                    "FROM slots WHERE number = 1 AND item_id NOT IN (SELECT item_id FROM secrets WHERE gold_choice > 0)"
                )
            judge(store, "Dee", lambda task: (1, ""), seconds=0.4)
        page.locator(".l2d-table tbody tr", has_text="Dee").wait_for()
        page.locator(".l2d [role=status].l2a-unseen", has_text="Dee judges faster than one can read").wait_for()
        page.locator(".l2d-votes li", has_text="Dee").wait_for()
        page.keyboard.type("son")
        assert page.locator(".l2d textarea").input_value() == "half a reason"
        quiet(page)


def test_what_people_wrote_is_text(browser: Any, path: Path) -> None:
    with real.page_of(browser) as page:
        open_desk(page, path)
        page.locator(".l2d-comment").first.wait_for()
        said = page.locator(".l2d-comment").first.text_content()
        assert "<script>window.hacked = 1</script>" in said and "[RLO]" in said and "[ESC]" in said
        assert page.evaluate("window.hacked") is None and page.locator(".l2d img").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 700, 390])
def test_it_fits(browser: Any, path: Path, width: int, scheme: str) -> None:
    options = {"viewport": {"width": width, "height": 1000}, "color_scheme": scheme}
    with real.page_of(browser, **options) as page:
        open_desk(page, path, 60.0)
        no_sideways_scrolling(page)
        real.shot(page, f"desk-{scheme}-{width}")
        page.screenshot(full_page=True)
        smallest = page.evaluate("""() => Math.min(...[...document.querySelectorAll(".l2d *")].filter(
            (e) => e.offsetParent && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map(
            (e) => parseFloat(getComputedStyle(e).fontSize)))""")
        assert smallest >= 12


def test_a_label_of_ones_own_is_found_and_changed_with_the_keyboard_alone(browser: Any, tmp_path: Path) -> None:
    path = new_store(tmp_path / "labels.db", [row(i) for i in range(6)])
    with real.page_of(browser) as page:
        mount(page, AnnotationForm(path, "Ada"))
        form = real.Form(page)
        form.wait("item")
        form.tab_into()
        assert page.locator("button[aria-keyshortcuts='/']").first.is_disabled()  # nothing to find yet
        questions = []
        for key in "1256":
            questions.append(form.text(".l2a-dialogue .l2a-words"))
            form.answer(key)
        form.press("/")
        form.wait("panel")
        page.locator(".l2a-found li").nth(3).wait_for()
        assert form.text(".l2a-sheet [role=status]") == "All 4 pairs that you can change"
        assert page.evaluate("document.activeElement.type") == "search"
        page.keyboard.type(questions[1].upper()[:12])  # "QUESTION n: "
        page.locator(".l2a-sheet [role=status]", has_text="1 of 4 pairs").wait_for()
        assert "Answer A better" in form.text(".l2a-found-one")
        real.shot(page, "find")
        tab_to(page, ".l2a-found-one")
        page.keyboard.press("Enter")
        form.wait("item")
        form.wait_text(".l2a-place", "Earlier pair 2 of 4")
        assert form.text(".l2a-dialogue .l2a-words") == questions[1]
        assert page.locator(".l2a-grade[aria-pressed=true]").get_attribute("aria-keyshortcuts") == "2"
        form.press("8")
        form.wait_text(".l2a-place", "Earlier pair 3 of 4")
        with open_store(path) as store:
            (changed,) = [x for x in store.labels() if x["prompt"][-1]["content"] == questions[1]]
        assert changed["grade"] == "significantly" and changed["choice"] != changed["left"]
        # By the answer, without words; Esc leaves all as it is.
        form.press("/")
        form.wait("panel")
        tab_to(page, ".l2a-find-mark")
        page.keyboard.press("s")  # of the options: significantly better
        page.locator(".l2a-sheet [role=status]", has_text="2 of 4 pairs").wait_for()
        page.keyboard.press("Escape")
        form.wait("item")
        assert form.focused()
        quiet(page)


def test_the_desk_is_served_to_who_has_its_key(browser: Any, path: Path, tmp_path: Path) -> None:
    folder, port, key = tmp_path / "desk", free_port(), "k" * 22
    folder.mkdir()
    ours = {view.URL_VARIABLE: str(path), view.NAME_VARIABLE: "Ms Hill", "JUPYTER_TOKEN": key}
    wanted = serving.voila_environment(ours, folder)
    env = real.environment(folder, **{k: v for k, v in wanted.items() if k.startswith(("JUPYTER", "LLAMA2LAB"))})
    command = [*serving.command("127.0.0.1", port, "/", 4), "--Voila.auto_token=True"]
    url, log = f"http://127.0.0.1:{port}/", tmp_path / "voila.log"
    with real.running(command, env, serving.prepare(folder, view.NOTEBOOK), log, url + "voila/static/"):
        for address in ("", "?token=wrong", "api/kernels", "voila/render/annotate.ipynb"):
            try:
                with urllib.request.urlopen(url + address, timeout=60) as reply:
                    said = reply.read().decode()
                    assert "login" in reply.url and "Zoe" not in said, address
            except urllib.error.HTTPError as e:
                assert e.code in (401, 403, 404), address
        with real.page_of(browser) as page:
            page.goto(f"{url}?token={key}")
            page.locator(".l2d-look", has_text="Zoe").wait_for()
            page.locator(".l2d-votes li").first.wait_for()
            assert page.title() == "Annotation, live" or until(lambda: page.title() == "Annotation, live", "title", 10)
            # JupyterLab's own styles reach into the page.
            boxes = [page.locator(".l2d-tile").nth(i).bounding_box() for i in range(5)]
            assert len({round(box["y"]) for box in boxes}) == 1 and len({round(box["x"]) for box in boxes}) == 5
            assert all(box["height"] >= 60 for box in boxes)
            real.shot(page, "desk-served")
            page.emulate_media(color_scheme="dark")
            page.set_viewport_size({"width": 900, "height": 1500})
            real.shot(page, "desk-served-dark")
            quiet(page)
