"""Progress that survives damage, several writers and a full disk; predictions, and what is said about them."""

import json
import multiprocessing
import re
import warnings
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.errors import LabError
from llama2lab.lab.checking import Exercise, Level, Mistake, Outcome, run, solution
from llama2lab.lab.predictions import Choice, Guess, Number, Order, Pick, Prediction, Ranking, number_of
from llama2lab.lab.progress import FILE, Progress, check, compare, predict
from llama2lab.lessons.catalogue import all_exercises
from llama2lab.lessons.n00_start import exercises as n00
from llama2lab.lessons.n02_transformer import exercises as n02
from llama2lab.lessons.n06_rewards import exercises as n06

QUESTION = n02.WHY_ROOT
PREDICTION = n00.FIRST_TALK
ORDERED = n06.BY_GRADE


@pytest.fixture
def progress(tmp_path) -> Progress:
    return Progress(tmp_path)


def status_of(progress: Progress, exercise: Exercise) -> str:
    return progress.read()[exercise.key]["status"]


def test_progress_is_kept_and_what_was_passed_stays_so(progress) -> None:
    assert check(QUESTION, "a", progress).status == "failed"
    assert status_of(progress, QUESTION) == "failed"
    assert check(QUESTION, "b", progress).passed
    assert check(QUESTION, "c", progress).status == "failed"
    entry = Progress(progress.path.parent).read()[QUESTION.key]
    assert (entry["status"], entry["points"], entry["attempts"]) == ("passed", QUESTION.level.points, 3)


def test_not_attempted_leaves_no_mark(progress) -> None:
    assert check(QUESTION, ..., progress).status == "not attempted"
    assert not progress.path.exists()


def test_the_folder_is_the_environments_or_the_notebooks(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA2LAB_PROGRESS", raising=False)
    check(QUESTION, "b")
    assert (tmp_path / FILE).exists()
    monkeypatch.setenv("LLAMA2LAB_PROGRESS", str(tmp_path / "new" / "place"))
    check(QUESTION, "b")
    assert (tmp_path / "new" / "place" / FILE).exists()


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"exercises": 3}',
    '{"exercises": {"a": 1}}',
    '{"exercises": {"a": {"status": "best"}}}',
    '{"exercises": {"a": {"status": "passed", "points": "many"}}}',
    "[" * 100_000,
    "\ud800",
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_set_aside_with_a_word(progress, text) -> None:
    contents = text.encode("utf-8", "surrogatepass")
    for number in (1, 2):
        progress.path.write_bytes(contents)
        with pytest.warns(UserWarning, match=f"damaged.*lab-progress.damaged-{number}.json"):
            assert check(QUESTION, "b", progress).passed
        assert progress.path.with_name(f"lab-progress.damaged-{number}.json").read_bytes() == contents
        assert status_of(progress, QUESTION) == "passed"


def test_a_folder_that_cannot_be_written_is_said(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = Progress(tmp_path / "file" / "below")
    for outcome in (check(QUESTION, "b", blocked), predict(PREDICTION, 0.5, blocked)):
        assert "not saved" in outcome.message
    assert check(QUESTION, "b", blocked).passed


def _pass(folder: str, number: int) -> None:
    for i in range(5):
        Progress(folder).record(Outcome(f"{number}.{i}", "x", "passed", points=1, of=1))


def test_notebooks_open_at_once_lose_nothing(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_pass, args=(str(tmp_path), n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(Progress(tmp_path).read()) == 20


def test_the_table_counts_and_escapes(progress) -> None:
    nasty = replace(QUESTION, key="99.nasty", title="<script>alert(1)</script>")
    check(nasty, "b", progress)
    check(QUESTION, "a", progress)
    summary = progress.summary([nasty, QUESTION, PREDICTION])
    assert summary.head == "1 of 3 exercises done, 1 of 3 points"
    page = summary._repr_html_()
    assert "<script" not in page and 'scope="col"' in page and 'scope="row"' in page and "<caption>" in page
    assert "Not yet right" in page and "Not attempted yet" in repr(summary)
    assert len(progress.summary().rows) == 2
    assert len(progress.summary(all_exercises()).rows) == len(all_exercises())
    assert not Progress(progress.path.parent / "empty").summary().rows


# ---- predictions -------------------------------------------------------------------------------------------------


def test_a_prediction_is_made_compared_and_paid(progress) -> None:
    assert compare(PREDICTION, 0.7, progress).status == "not attempted"
    assert predict(PREDICTION, None, progress).status == "not attempted"
    assert predict(PREDICTION, 1.5, progress).status == "failed"
    assert predict(PREDICTION, "lots", progress).status == "failed"
    assert predict(PREDICTION, 0.9, progress).status == "noted"
    assert predict(PREDICTION, "20 %", progress).status == "noted"
    wrong = compare(PREDICTION, 0.7, progress)
    assert wrong.status == "noted" and wrong.points == PREDICTION.level.points
    assert "0.2" in wrong.message and "0.7" in wrong.message and "more than you thought" in wrong.message
    late = predict(PREDICTION, 0.7, progress)
    assert "stays" in late.message and progress.read()[PREDICTION.key]["prediction"] == 0.2
    assert progress.summary([PREDICTION]).head == "1 of 1 exercises done, 1 of 1 points"


def test_within_the_band_is_passed(progress) -> None:
    predict(PREDICTION, 0.65, progress)
    assert compare(PREDICTION, 0.7, progress).passed
    assert "below" not in compare(PREDICTION, float("nan"), progress).message
    assert compare(PREDICTION, float("nan"), progress).status == "failed"


def test_orders_are_compared_pair_by_pair(progress) -> None:
    measured = {"sig": 0.8, "better": 0.7, "slightly": 0.6, "neg": 0.5}
    predict(ORDERED, ["sig", "better", "slightly", "neg"], progress)
    outcome = compare(ORDERED, measured, progress)
    assert "6 of 6 pairs" in outcome.message and "toss a coin" in outcome.message
    assert ORDERED.lesson in outcome.message
    right = Progress(progress.path.parent / "other")
    predict(ORDERED, "neg < slightly < better < sig", right)
    assert compare(ORDERED, measured, right).passed


@pytest.mark.parametrize("exercise", [e for e in all_exercises() if isinstance(e, Prediction)], ids=lambda e: e.key)
def test_every_prediction_answers_both_ways(exercise, tmp_path) -> None:
    form = exercise.check
    if isinstance(form, Guess):
        middle = (form.low + form.high) / 2
        band = max(form.absolute, form.relative * middle)
        assert band > 0
        for off, said in ((0.0, ""), (-2.1 * band, form.under), (2.1 * band, form.over)):
            progress = Progress(tmp_path / str(off))
            assert predict(exercise, middle + off, progress).status == "noted"
            outcome = compare(exercise, middle, progress)
            assert outcome.passed == (off == 0) and said in outcome.message
    elif isinstance(form, Pick):
        for key in form.options:
            for other in form.options:
                good, text = form.compare(key, other)
                assert good == (key == other) and (good or form.if_wrong[key] in text)
    else:
        assert isinstance(form, Ranking)
        keys = list(form.options)
        for (first, second), name in form.swapped.items():
            others = [k for k in keys if k not in (first, second)]
            good, text = form.compare([second, *others, first], [first, *others, second])
            assert not good and name in text
        assert form.compare(keys, keys)[0]
    with pytest.raises(LabError, match="predict"):
        check(exercise, 1, Progress(tmp_path))
    with pytest.raises(LabError, match="no solution"):
        solution(exercise)


def test_a_pick_has_its_word() -> None:
    pick = Pick(up=("it rises", "Nothing pushes it."), down=("it falls", "Something holds it."))
    exercise = Prediction("99.pick", "t", "t", Level(1, 1, 1), "-", ("h",), pick)
    assert exercise.check.compare("UP", "down") == (
        False,
        "You predicted up (it rises); measured is down (it falls). Nothing pushes it.",
    )
    assert exercise.check.compare("up", "up")[0]
    with pytest.raises(Mistake, match="none of the choices"):
        pick("sideways")
    assert "up: it rises" in repr(exercise)
    with pytest.raises(ValueError):
        Pick(a="x")
    with pytest.raises(ValueError):
        Choice(a="x", b="y")


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=5)),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
    st.binary(max_size=5),
    st.complex_numbers(),
)


@given(ANYTHING)
def test_any_answer_to_a_question_is_an_outcome(answer) -> None:
    for form in (Choice(a="x", b=("y", "no")), Number(3.0), Order({"a": "x", "b": "y"}, ("a", "b"))):
        outcome = run(Exercise("99.q", "t", "t", Level(1, 1, 1), "-", ("h",), form), answer)
        assert outcome.status in ("passed", "failed", "not attempted")
        assert outcome.message or outcome.passed
        assert "cannot read" not in outcome.message


@given(st.floats(-1e6, 1e6))
def test_numbers_are_read_as_they_are_written(value) -> None:
    assert number_of(value) == number_of(repr(value)) == number_of(f" {value!r} ")
    assert number_of(f"{value!r} %") == value / 100


def test_an_order_says_where_it_goes_wrong() -> None:
    order = Order({"a": "", "b": "", "c": ""}, ("a", "b", "c"))
    with pytest.raises(Mistake, match="c is out of place at place 2"):
        order(["a", "c", "b"])
    with pytest.raises(Mistake, match="exactly once"):
        order("a b")


def test_the_file_is_plain_json(progress) -> None:
    check(QUESTION, "b", progress)
    predict(ORDERED, "neg, slightly, better, sig", progress)
    data = json.loads(progress.path.read_text(encoding="utf-8"))
    assert data["version"] == 1 and data["exercises"][ORDERED.key]["prediction"] == ["neg", "slightly", "better", "sig"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}", data["exercises"][QUESTION.key]["first"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(progress.read()) == 2
