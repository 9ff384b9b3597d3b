"""Questions and predictions in one cell: what is covered stays so until a guess is locked, and keys alone do it."""

import json

import annotation_browser as real
import plotly.graph_objects as go
import pytest
from picture_page import FRONT

from llama2lab.engine.errors import LabError
from llama2lab.lab.ask import Asked, as_data, ask, mark_guess, sealed
from llama2lab.lab.progress import Progress, predict
from llama2lab.lessons.catalogue import all_exercises
from llama2lab.lessons.n00_start.exercises import FIRST_TALK, RECIPE
from llama2lab.lessons.n02_transformer.exercises import CACHE_SIZE, RMS_NORM, WHY_ROOT
from llama2lab.lessons.n06_rewards.exercises import BY_GRADE


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(tmp_path)


def press(asked: Asked, **given) -> dict:
    """As the page does it."""
    asked.given = {**given, "press": asked.given.get("press", 0) + 1}
    return asked.found


# ---- questions ---------------------------------------------------------------------------------------------------


def test_a_question_is_checked_and_kept(progress):
    asked = ask(WHY_ROOT, progress=progress)
    assert asked.found == {} and "Passed" not in repr(asked)
    assert press(asked, answer="a")["status"] == "failed" and not progress.read()[WHY_ROOT.key]["points"]
    assert press(asked, answer="b")["status"] == "passed" and "Passed" in repr(asked)
    again = ask(WHY_ROOT, progress=progress)  # the notebook is opened anew
    assert again.found["status"] == "passed" and again.found["message"] == WHY_ROOT.lesson


def test_an_answer_may_stand_in_the_cell(progress):
    assert ask(WHY_ROOT, "b", progress).found["status"] == "passed"
    assert ask(RECIPE, RECIPE.solution, progress).found["status"] == "passed"
    assert ask(CACHE_SIZE, "1.25", progress).found["status"] == "passed"
    assert ask(WHY_ROOT, ..., Progress(progress.path.parent / "new")).found == {}


def test_each_kind_has_its_own_call(progress):
    for call, exercise, words in ((ask, FIRST_TALK, "sealed"), (ask, RMS_NORM, "check")):
        with pytest.raises(LabError, match=words):
            call(exercise, progress=progress)
    with pytest.raises(LabError, match="no prediction"):
        sealed(WHY_ROOT, 1, progress=progress)


def test_every_question_and_prediction_can_be_drawn():
    forms = {as_data(e)["form"] for e in all_exercises() if not callable(e.solution)}
    assert forms == {"choice", "number", "guess", "order"}
    for exercise in all_exercises():
        json.dumps(as_data(exercise))


# ---- predictions -------------------------------------------------------------------------------------------------


def test_a_result_is_covered_until_a_guess_is_locked(progress):
    seal = sealed(FIRST_TALK, 0.7, "the chart's words", go.Figure(), progress=progress)
    assert seal.out.outputs == () and seal.question.found == {} and "0.7" not in json.dumps(seal.question.data)
    assert press(seal.question, answer="nonsense")["status"] == "failed" and seal.out.outputs == ()
    assert press(seal.question, answer="7")["status"] == "failed" and seal.out.outputs == ()  # it is a share
    found = press(seal.question, answer="0.5")
    assert found["open"] and (found["guess"], found["measured"]) == (0.5, 0.7)
    words, figure = seal.out.outputs
    assert words["text"] == "the chart's words\n" and "application/vnd.plotly.v1+json" in figure["data"]
    entry = progress.read()[FIRST_TALK.key]
    assert entry["prediction"] == 0.5 and entry["points"] == FIRST_TALK.level.points


def test_to_be_shown_earns_nothing_and_ends_guessing(progress):
    seal = sealed(FIRST_TALK, 0.7, "words", progress=progress)
    found = press(seal.question, show=True)
    assert found["open"] and "guess" not in found and len(seal.out.outputs) == 1
    assert predict(FIRST_TALK, 0.7, progress).message.startswith("The result is known already")
    again = sealed(FIRST_TALK, 0.7, "words", progress=progress)
    assert again.question.found["open"] and "guess" not in again.question.found
    assert progress.read()[FIRST_TALK.key]["points"] == 0


@pytest.mark.parametrize("measured", [float("nan"), None, "no number"])
def test_a_result_that_cannot_be_compared_is_shown_in_words(progress, measured):
    seal = sealed(FIRST_TALK, measured, "words", progress=progress)
    assert FIRST_TALK.task in seal.static()  # a run without the figure still opens its notebook
    found = press(seal.question, answer="0.5")
    assert found["open"] and "cannot be compared" in found["message"] and "measured" not in found
    assert len(seal.out.outputs) == 1


def test_a_guess_of_before_opens_it_at_once(progress):
    predict(BY_GRADE, ["neg", "slightly", "better", "sig"], progress)
    measured = {"sig": 0.9, "better": 0.8, "slightly": 0.6, "neg": 0.5}
    seal = sealed(BY_GRADE, measured, progress=progress)
    assert seal.question.found["status"] == "passed"
    assert seal.question.found["measured"] == ["neg", "slightly", "better", "sig"]


def test_the_guess_is_drawn_on_the_figure(progress):
    predict(FIRST_TALK, 0.25, progress)
    figure = go.Figure(go.Scatter(x=[1], y=[0.7]))
    drawn = sealed(FIRST_TALK, 0.7, figure, axis="y", progress=progress).out.outputs[0]["data"]
    shapes = drawn["application/vnd.plotly.v1+json"]["layout"]["shapes"]
    assert [(s["y0"], s["line"]["dash"]) for s in shapes] == [(0.25, "dash")]
    assert not figure.layout.shapes  # the caller's own figure is left alone
    mark_guess(figure, 3, "x")
    assert figure.layout.shapes[0].x0 == 3


def test_what_cannot_be_drawn_is_left_out_and_at_rest_texts_are_escaped(progress):
    seal = sealed(FIRST_TALK, 0.7, None, "<script>x</script>", progress=progress)
    assert "&lt;script&gt;" in seal.static() and "<script" not in seal.static() and FIRST_TALK.task in seal.static()
    press(seal.question, show=True)
    assert len(seal.out.outputs) == 1


# ---- on the page -------------------------------------------------------------------------------------------------

PAGE = FRONT.replace("set() {}", "set(name, value) { state[name] = value; }").replace(
    "save_changes() {}", "save_changes() { window.sent.push(state.given); }"
)


def draw(page, exercise):
    script = str(Asked._esm).replace("export default", "const WIDGET =")
    state = json.dumps({"data": as_data(exercise), "found": {}}).replace("<", "\\u003c")
    page.set_content(PAGE % (Asked._css, script, state))
    page.locator(".l2p-title").wait_for(timeout=20_000)


@pytest.mark.browser
def test_keys_alone_answer_every_form():
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        key = page.keyboard.press

        def sent():
            return {k: v for k, v in page.evaluate("window.sent.at(-1)").items() if k != "press"}

        draw(page, WHY_ROOT)
        assert page.get_by_role("button", name="Check").is_disabled()
        key("Tab"), key("Space"), key("ArrowDown"), key("Tab"), key("Enter")
        assert sent() == {"answer": "b"}

        draw(page, CACHE_SIZE)
        key("Tab")
        page.keyboard.type("1.25")
        key("Enter")
        assert sent() == {"answer": "1.25"}

        draw(page, FIRST_TALK)
        page.evaluate("document.body.addEventListener('keydown', (e) => { window.leaked = e.key; })")
        key("Tab")
        assert page.get_by_role("button", name="Lock my guess").is_disabled()
        key("ArrowRight"), key("Tab"), key("Tab"), key("Enter")
        assert float(sent()["answer"]) > 0.5
        assert page.evaluate("window.leaked") == "Tab"  # the first, from outside: JupyterLab never hears the arrow
        assert page.get_by_text("The result is covered").is_visible()
        page.evaluate("""window.change("found", { status: "noted", head: "Noted", message: "<b>so</b>", open: true,
            guess: .5, measured: .7 })""")
        assert not page.get_by_text("The result is covered").is_visible()
        assert page.get_by_role("img", name="measured 0.7, your guess 0.5").is_visible()
        assert page.get_by_text("<b>so</b>").is_visible()  # as text

        draw(page, FIRST_TALK)
        page.get_by_role("button", name="show me").focus()
        key("Enter")
        assert sent() == {"show": True}

        draw(page, BY_GRADE)
        first = [option for option, _ in as_data(BY_GRADE)["options"]]
        page.locator("li button").nth(1).focus()  # the first row's way down
        key("Enter"), key("Enter")
        page.get_by_role("button", name="Lock my guess").focus()
        key("Enter")
        assert sent() == {"answer": [first[1], first[2], first[0], *first[3:]]}
        assert page.errors == []
