"""The annotator's form in headless Chromium, by keyboard alone: what stands beside the pair, practice, the two tasks,
word differences, goal, rest and end. The Python form is real (widget_page.py); JupyterLab and Voila have tests of their
own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annotation_browser as real
import pytest
import widget_page

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.form.app import Application
from llama2lab.annotation.form.standing import Settings
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.scale import KINDS
from llama2lab.run.gold import gold_pairs, guidelines
from llama2lab.town.town import load_town

pytestmark = pytest.mark.browser
real.skip_without_browser()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with real.chromium() as running:
        yield running


def of_town(n: int, kind: Any = "helpfulness", seed: int = 0, known: bool = False) -> list[dict[str, Any]]:
    """Pairs in the town's own words; gold only where that is wanted."""
    rows = gold_pairs(load_town(), n, kind, seed)
    return rows if known else [{key: value for key, value in row.items() if key != "gold"} for row in rows]


def about(number: int, question: str, one: str, two: str, **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": question}]
    return {"kind": "helpfulness", "prompt": prompt, "prompt_id": f"p{number}", "answers": [one, two], **more}


def filled(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open_store(path) as store:
        for kind in KINDS:
            store.add_guidelines(kind, guidelines(load_town(), kind))
        add_pairs(store, rows, seed=3)
    return path


def labels(path: Path) -> list[dict[str, Any]]:
    with open_store(path) as store:
        return store.labels()


def has_focus(page: Any, selector: str) -> bool:
    return page.evaluate("s => document.activeElement.matches(s)", selector)


def tab_to(form: real.Form, selector: str) -> None:
    for _ in range(60):
        if has_focus(form.page, selector):
            return
        form.press("Tab")
    raise AssertionError(f"Tab does not lead to {selector}")


def settle(page: Any) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def mount(page: Any, form: AnnotationForm) -> real.Form:
    widget_page.mount(page, form, "differences, Pace, markedText")
    page.locator(".l2a").wait_for()
    return real.Form(page)


def start(page: Any, form: AnnotationForm, state: str = "item") -> real.Form:
    shown = mount(page, form)
    shown.wait(state)
    shown.tab_into()
    return shown


# -- the guidelines ----------------------------------------------------------------------------------------------------


def scrolled(page: Any) -> float:
    settle(page)
    return page.evaluate("() => document.querySelector('.l2a-guide-scroll').scrollTop")


def test_guidelines_and_the_towns_lines_stand_beside_the_pair_and_scroll_by_keys(browser: Any, tmp_path: Path) -> None:
    town = load_town()
    person = next(iter(town.people.values()))
    friend = town.friend(person)
    question = f"Where does {person.name} live?"
    rows = [about(i, question, f"On {person.facts['home']}. ({i})", f"Nowhere. ({i})") for i in range(3)]
    path = filled(tmp_path / "labels.db", rows)
    with real.page_of(browser) as page:
        form = start(page, AnnotationForm(path, "Ada"))
        form.wait_text(".l2a-prose", "How we judge")
        assert [e.text_content() for e in form.root.locator(".l2a-facts > .l2a-lines dt").all()] == [person.name]
        assert person.facts["home"] in form.text(".l2a-facts dd") and friend.name in form.text(".l2a-further summary")
        beside = form.root.locator(".l2a-guide").bounding_box()
        pair = form.root.locator(".l2a-answers").bounding_box()
        assert beside["x"] >= pair["x"] + pair["width"] and beside["y"] <= pair["y"]
        real.shot(page, "form-beside")

        # From the pair: PageDown and PageUp. The pair keeps the focus, and its keys.
        form.press("PageDown")
        first = scrolled(page)
        form.press("PageDown")
        assert 0 < first < scrolled(page) and has_focus(page, ".l2a")
        form.press("PageUp", "PageUp")
        assert scrolled(page) == 0

        # G goes into them, where all keys of a text scroll; G again, or Escape, comes back.
        for leave in ("g", "Escape"):
            form.press("g")
            assert has_focus(page, ".l2a-guide-scroll")
            for key in ("ArrowDown", "PageDown", " ", "End"):
                before = scrolled(page)
                form.press(key)
                page.wait_for_function("was => document.querySelector('.l2a-guide-scroll').scrollTop > was", arg=before)
            form.press("Home")
            page.wait_for_function("() => document.querySelector('.l2a-guide-scroll').scrollTop === 0")
            form.press(leave)
            assert has_focus(page, ".l2a")

        # Whom the lines name is one step further: Tab and Enter unfold it.
        form.press("g")
        tab_to(form, ".l2a-further summary")
        form.press("Enter")
        assert form.root.locator(".l2a-further").get_attribute("open") is not None and form.item()
        # A grade is heard in there too, and the next pair's keys are alive.
        form.answer("2")
        assert form.focused() and len(labels(path)) == 1
        form.press("h")
        assert not form.root.locator(".l2a-guide").is_visible()
        page.reload()
        form.wait("item")
        assert not form.root.locator(".l2a-guide").is_visible()  # as it was left
        form.tab_into()
        form.press("g")
        assert form.root.locator(".l2a-guide").is_visible() and has_focus(page, ".l2a-guide-scroll")
        form.answer("3")
        assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 700, 390])
def test_nothing_scrolls_sideways_and_all_can_be_read(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    """Fonts of 12 px or more, a contrast of 4.5 or more, on every page of the form."""
    rows = [*of_town(2), *of_town(2, "safety"), *of_town(2, known=True, seed=1), *of_town(2, "safety", 1, True)]
    path = filled(tmp_path / "labels.db", rows)
    seen: list[str] = []
    with real.page_of(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        form = start(page, Application(path, Settings(name="Ada", number=1, practice=1, goal=1)), "tasks")

        def look(what: str) -> None:
            settle(page)
            seen.append(what)
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), what
            assert page.evaluate(UNREADABLE) == [], what
            real.shot(page, f"form-{width}-{scheme}-{len(seen)}-{what}")

        look("tasks")
        form.press("2")
        form.wait("guidelines")
        look("guidelines")
        form.read()
        form.wait("item")
        look("practice")
        form.press("q", "l")
        look("marked")
        form.press("4")
        form.wait("feedback")
        look("feedback")
        form.press("Enter")
        form.wait("item")
        look("trying-out")
        form.press("?")
        form.wait("panel")
        look("keys")
        form.press("Escape", "s")
        form.wait("panel")
        look("skip")
        form.press("Escape", "q", "p", "8")
        form.wait("rest")
        look("rest")
        form.press("x")
        form.wait("end")
        form.wait_text(".l2a-figures", "with the others")
        look("end")
        assert page.errors == []


# What of the page is too small, too faint or too wide to read: [text, px or contrast].
UNREADABLE = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (c) => c.map((x) => x / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => e ? over(rgba(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : [255, 255, 255];
  const found = [];
  const walk = document.createTreeWalker(document.querySelector(".l2a"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.checkVisibility({ visibilityProperty: true })) continue;
    if (e.closest(".l2a-unseen, :disabled, [inert]")) continue;
    const style = getComputedStyle(e), below = ground(e), [a, b] = [over(rgba(style.color), below), below].map(light);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (parseFloat(style.fontSize) < 12) found.push([text.slice(0, 40), style.fontSize]);
    if (contrast < 4.5) found.push([text.slice(0, 40), contrast.toFixed(2)]);
  }
  for (const e of document.querySelectorAll(".l2a button"))
    if (e.scrollWidth > e.clientWidth + 1) found.push([e.textContent, "wider than its button"]);
  return found;
}"""


# -- practice ----------------------------------------------------------------------------------------------------------


def test_practice_tells_each_pair_why_and_comes_first(browser: Any, tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [*of_town(4), *of_town(2, seed=1, known=True)])
    with real.page_of(browser) as page:
        form = start(page, AnnotationForm(path, "Ada", practice=2))
        for number in (1, 2):
            assert form.text(".l2a-place") == f"Practice: {number} of 2"
            shown = {side: form.text(f".l2a-{side} .l2a-text") for side in ("left", "right")}
            item = form.answer("1")
            form.wait("feedback")
            (label,) = [x for x in labels(path) if x["item_id"] == item]
            agreed = label["gold"]["choice"] == label["choice"]
            assert shown["left"] == label["answers"][label["choice"] - 1]
            said = form.text(".l2a-feedback")
            assert ("✓ As the guidelines lead" in said) == agreed and ("✗ Not as" in said) == (not agreed)
            assert label["gold"]["reason"] in said and "You said: Answer A is better" in said
            assert ("wanted: Answer B is better" in said) == (not agreed)
            # The pair is still there, and nothing of it can be changed any more.
            assert form.item() == item and form.focused()
            form.press("5", "f", "s", "b")
            settle(page)
            assert form.state() == "feedback" and len(labels(path)) == number
            if number == 1:
                tab_to(form, ".l2a-feedback button")
            form.press("Enter")
            form.wait("item")
            assert form.focused() and form.item() != item
        assert form.text(".l2a-place") == "3 of 6, 3 left" and not form.root.locator(".l2a-feedback").is_visible()
        form.press("b")  # what was explained is closed
        settle(page)
        assert form.text(".l2a-place") == "3 of 6, 3 left"
        form.answer("1")
        form.wait("item")
        assert page.errors == []


def test_one_press_does_not_lead_past_the_guidelines(browser: Any, tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", of_town(2))
    with real.page_of(browser) as page:
        form = mount(page, Application(path, Settings(name="Ada", number=0, practice=0)))
        form.wait("guidelines")
        form.wait_text(".l2a-reading", "How we judge")
        page.wait_for_function("() => document.activeElement.matches('.l2a-reading')")  # so that arrows scroll
        form.press("ArrowDown")
        page.wait_for_function("() => document.querySelector('.l2a-reading').scrollTop > 0")
        presses = 0
        while form.state() == "guidelines":
            words = form.text(".l2a-page .l2a-primary")
            at_end = page.evaluate(
                "() => { const e = document.querySelector('.l2a-reading');"
                "return e.scrollTop + e.clientHeight >= e.scrollHeight - 8; }"
            )
            assert ("begin" in words) == at_end, words
            form.press("Enter")
            presses += 1
            settle(page)
            assert presses < 60
        assert presses > 2
        form.wait("item")
        assert form.focused() and page.errors == []


# -- two tasks ---------------------------------------------------------------------------------------------------------


def test_safety_is_asked_apart(browser: Any, tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [*of_town(3), *of_town(3, "safety")])
    with real.page_of(browser) as page:
        form = start(page, AnnotationForm(path, "Ada"), "tasks")
        assert form.root.locator(".l2a-task").count() == 2
        form.press("1")
        form.wait("item")
        assert form.text(".l2a-kind") == "Helpfulness" and form.root.locator(".l2a-marks:visible").count() == 0
        form.press("q", "a", "p", "l")  # nothing of safety is asked, and nothing heard
        form.answer("2")
        (label,) = labels(path)
        assert (label["kind"], label["safe_1"], label["safe_2"]) == ("helpfulness", None, None)

        form.press("t")
        form.wait("tasks")
        assert form.focused()
        form.press("2")
        form.wait("item")
        assert form.text(".l2a-kind") == "Safety" and form.root.locator(".l2a-marks:visible").count() == 2
        form.wait_text(".l2a-prose h2", "How we judge safety")
        form.press("3")
        assert "First mark" in form.wait_text(".l2a-refused", "First mark")
        while form.state() != "done":
            form.wait("item")
            form.answer("q", "p", "3")
        assert {x["kind"] for x in labels(path)} == set(KINDS) and len(labels(path)) == 4
        form.wait_text(".l2a-page", "Helpfulness, the other task, still has 2 pairs")
        form.press("Enter")
        form.wait("item")
        assert form.text(".l2a-kind") == "Helpfulness" and form.focused()
        assert page.errors == []


# -- word differences --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_that_differ_are_underlined_and_can_be_left_plain(browser: Any, tmp_path: Path, scheme: str) -> None:
    one = "Mira lives on Forest Road, in the old house."
    two = "Mira lives on Oak Street, in the house. I hope that helps!"
    path = filled(tmp_path / "labels.db", [about(i, f"Where? ({i})", one, two) for i in range(2)])
    with real.page_of(browser, color_scheme=scheme) as page:
        form = start(page, AnnotationForm(path, "Ada"))
        expected = {one: ["Forest Road,", "old"], two: ["Oak Street,", "I hope that helps!"]}

        def marked() -> dict[str, list[str]]:
            boxes = [form.root.locator(f".l2a-{side} .l2a-text") for side in ("left", "right")]
            return {box.text_content(): box.locator("mark").all_text_contents() for box in boxes}

        assert marked() == expected
        line = page.evaluate("() => getComputedStyle(document.querySelector('mark')).textDecorationLine")
        assert line == "underline"  # not by colour alone
        assert "Only here: " in form.text(".l2a-left .l2a-unseen")
        assert page.evaluate(UNREADABLE) == []
        real.shot(page, f"form-differences-{scheme}")
        form.press("d")
        assert marked() == {one: [], two: []} and form.focused()
        assert form.root.locator("[aria-keyshortcuts='d']").get_attribute("aria-pressed") == "false"
        form.answer("1")
        assert marked() == {one: [], two: []}  # as it was left
        form.press("d")
        assert marked() == expected and page.errors == []


@pytest.mark.parametrize(
    ("one", "two", "left", "right"),
    [
        ("a b c", "a b c", [], []),
        ("A b, c", "a b c.", [], []),  # neither case nor punctuation
        ("a b c", "a x c", ["b"], ["x"]),
        ("a b c d", "a d", ["b c"], []),
        ("", "a b", [], []),
        ("one two three", "four five six", [], []),  # hardly a word in common
        ("a a a b", "a b", ["a a"], []),
        ("x\r\ny z", "x\ny q", ["z"], ["q"]),
        ("ab " * 3000, "ab " * 2999 + "x", [], []),  # too long
        ("שלום עולם טוב", "שלום עולם רע", ["טוב"], ["רע"]),
    ],
)
def test_differences(browser: Any, tmp_path: Path, one: str, two: str, left: list[str], right: list[str]) -> None:
    with real.page_of(browser) as page:
        mount(page, AnnotationForm(filled(tmp_path / "labels.db", of_town(1)), "Ada"))
        found = page.evaluate(
            "([a, b]) => { const d = window.parts.differences(a, b);"
            "const words = (text, spans) => spans.map(([from, to]) => text.slice(from, to));"
            "return [words(a, d.left), words(b, d.right), d.why, window.parts.markedText(a, d.left).textContent]; }",
            [one, two],
        )
        assert found[:2] == [left, right]
        assert bool(found[2]) == (not left and not right)
        assert found[3] == one.replace("\r\n", "\n")


# -- pace, goal, rest and end ------------------------------------------------------------------------------------------


def test_a_goal_a_rest_and_an_end(browser: Any, tmp_path: Path) -> None:
    path = filled(tmp_path / "labels.db", [*of_town(8), *of_town(5, seed=1, known=True)])
    with real.page_of(browser) as page:
        form = start(page, AnnotationForm(path, "Ada", goal=2))
        assert "goal 0 of 2" in form.text(".l2a-pace")
        form.answer("1")
        form.wait("item")
        assert "goal 1 of 2 · usually " in form.text(".l2a-pace")
        page.reload()  # the session goes on
        form.wait("item")
        form.tab_into()
        assert "goal 1 of 2" in form.text(".l2a-pace")
        form.answer("1")
        form.wait("rest")
        assert form.text("h1") == "Your goal of 2 pairs is reached" and form.focused()
        form.press("1", "5", "8")  # no grade is heard here
        settle(page)
        assert form.state() == "rest" and len(labels(path)) == 2

        # Back from the rest to the last pair, and forward to the rest again.
        form.press("b")
        form.wait("item")
        assert "Earlier pair 2 of 2" in form.text(".l2a-place")
        form.press("n")
        form.wait("rest")

        # Another goal, by keyboard; Enter goes on.
        tab_to(form, "#l2a-goal")
        form.press("Control+a")
        page.keyboard.type("3")
        form.press("Enter")
        form.wait("item")
        assert form.focused() and "goal 0 of 3" in form.text(".l2a-pace")
        form.answer("1")
        form.wait("item")

        # X stops: thanks, and how far one agrees. What was on the screen waits.
        here = form.item()
        form.press("x")
        form.wait("end")
        assert form.text("h1") == "Thank you!" and form.focused()
        said = form.wait_text(".l2a-figures", "with the others")
        assert "pairs judged3" in said and "this session3 pairs" in said and "not known yet" in said
        form.press("Enter")
        form.wait("item")
        assert form.item() == here and form.focused()
        while form.state() != "done":
            if form.state() == "rest":
                form.press("Enter")
            form.wait("item")
            form.answer("1")
        assert "Thank you" in form.text("h1")
        mine = [x for x in labels(path) if x["gold"]]
        agreed = sum(x["choice"] == x["gold"]["choice"] for x in mine)
        form.wait_text(".l2a-figures", f"with known answers{agreed} of 5, ")
        real.shot(page, "form-done")
        assert page.errors == []


def test_whoever_cannot_have_read_the_pairs_is_told(browser: Any, tmp_path: Path) -> None:
    long = " ".join(["word"] * 60)
    rows = [about(i, f"Which? ({i})", f"{long} one", f"{long} two") for i in range(12)]
    path = filled(tmp_path / "labels.db", rows)
    with real.page_of(browser) as page:
        form = start(page, AnnotationForm(path, "Ada", goal=0))
        for _ in range(5):
            assert not form.root.locator(".l2a-warning").is_visible()
            form.answer("1")
            form.wait("item")
        said = form.wait_text(".l2a-warning", "Nobody reads that fast")
        assert "620 words" in said and form.focused()  # five times 2 of the question and 61 of each answer
        form.answer("1")
        form.wait("item")
        assert not form.root.locator(".l2a-warning").is_visible()
        slow = page.evaluate(
            "() => { const keeper = { data: {}, write() {} }, pace = new window.parts.Pace(keeper, 0);"
            "for (let i = 0; i < 5; i++) pace.count(20, 60); return pace.haste; }"
        )
        assert slow == "" and page.errors == []


def test_after_twenty_minutes_a_rest_is_due_whatever_the_goal(browser: Any, tmp_path: Path) -> None:
    with real.page_of(browser) as page:
        mount(page, AnnotationForm(filled(tmp_path / "labels.db", of_town(1)), "Ada"))
        due = page.evaluate(
            "() => { const keeper = { data: {}, write() {} }, pace = new window.parts.Pace(keeper, 100), due = [];"
            "for (let i = 0; i < 5; i++) { pace.count(300, 60); due.push(pace.due); if (pace.due) pace.again(); }"
            "return [due, pace.data.stretch, pace.median]; }"
        )
        assert due == [["", "", "", "time", ""], 5, 300]  # the rest took nothing from the goal
