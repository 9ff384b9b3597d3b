"""The picture of a student's own output: drawn from his function alone, and never more than a picture. That every right
answer is drawn, test_lab_exercises.py tests."""

import html
import os
import re
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from test_lab_exercises import CODE, WRONG

from llama2lab.cli.release import graded, quiet_run
from llama2lab.lab import checking, child
from llama2lab.lab.checking import LARGEST, Exercise, Level, run, solution
from llama2lab.lab.chips import token_picture
from llama2lab.lab.compare import judge, read
from llama2lab.lab.own_output import numbers, own, own_curves, texts
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons.n01_tokenizer.exercises import MERGE, MOST_FREQUENT_PAIR
from llama2lab.lessons.n02_transformer.exercises import CAUSAL_MASK
from llama2lab.lessons.n03_pretraining.exercises import SCHEDULE
from llama2lab.lessons.n04_sft.exercises import CHAT_TEXT
from llama2lab.lessons.n09_gatt.exercises import GATT_ROW

DRAWN = [e for e in CODE if e.picture]


def picture(exercise: Exercise, answer) -> str:
    """What the exercise draws of a function that is called here, without a process."""
    assert exercise.picture is not None
    return exercise.picture(lambda *args: exercise.inside(answer, *args) if exercise.inside else answer(*args))


def test_every_notebook_with_code_has_a_picture() -> None:
    assert {e.key[:2] for e in DRAWN} == {e.key[:2] for e in CODE} and len(DRAWN) >= 18


@pytest.mark.parametrize("exercise", DRAWN, ids=lambda e: e.key)
def test_another_function_draws_another_picture(exercise: Exercise) -> None:
    """A wrong answer looks wrong: nothing but the student's function stands behind the picture."""
    right = picture(exercise, solution(exercise))

    def differs(answer) -> bool:
        with suppress(Exception):  # whoever is wrong may give anything
            return picture(exercise, answer) != right
        return False

    assert any(differs(case[1]) for case in WRONG if case[0] is exercise)


def test_the_causal_mask_is_the_students() -> None:
    def filled(f) -> int:
        return picture(CAUSAL_MASK, f).count("fill-opacity=")

    assert filled(solution(CAUSAL_MASK)) == 8 * 9 // 2 + 6 + 7 + 8
    assert filled(lambda q, k: torch.ones(q, k)) == 8 * 8 + 3 * 8


# ---- what has passed has passed ----------------------------------------------------------------------------------


def check_double(f) -> None:
    judge(read(f(torch.tensor([1.0, 2.0])), (2,)), [2.0, 4.0])


def draw_double(f) -> str:
    return own("Yours <b>", token_picture([(str(x), True) for x in numbers(f(torch.ones(3)), 3)]))


LEVEL = Level(difficulty=1, minutes=1, points=2)
DOUBLE = Exercise(
    "99.double",
    "Double",
    "Write double(x).",
    LEVEL,
    "none",
    ("Twice.",),
    check_double,
    lambda x: 2 * x,
    lesson="Why.",
    picture=draw_double,
)


def endless(x):
    while True:
        pass


def raising(x):
    raise ValueError("<script>")


def changing(x):
    return x.mul_(2)


MISDEEDS = {
    "endless": endless,
    "raises": raising,
    "ends Python": lambda x: os._exit(0),
    "changes its argument": changing,
    "nothing": lambda x: None,
    "NaN": lambda x: x * float("nan"),
    "infinite": lambda x: x * float("inf"),
    "another shape": lambda x: torch.ones(2**20),
    "text": lambda x: "<script>",
    "no data": lambda x: object(),
}


@pytest.mark.parametrize("misdeed", MISDEEDS.values(), ids=MISDEEDS)
def test_a_picture_that_fails_changes_nothing(misdeed) -> None:
    outcome = run(DOUBLE, lambda x: 2 * x if len(x) == 2 else misdeed(x), seconds=1.0, draw=True)
    assert outcome.passed and outcome.points == 2 and outcome.picture == ""
    assert outcome.message == "Why." and "<script" not in outcome._repr_html_()


def test_a_picture_that_is_too_large_or_no_text_is_left_out() -> None:
    def draw(made) -> Callable[[Callable], str]:
        return lambda f: made

    for made in ("x" * (LARGEST + 1), None):
        exercise = Exercise("99.d", "D", "d", LEVEL, "none", (), check_double, lambda x: 2 * x, picture=draw(made))
        outcome = run(exercise, lambda x: 2 * x, draw=True)
        assert outcome.passed and outcome.picture == ""


def test_the_picture_stands_below_the_lesson_and_prints_nothing() -> None:
    def loud(x):
        print(len(x))
        return 2 * x

    outcome = run(DOUBLE, loud, draw=True)
    page = outcome._repr_html_()
    assert page.index("Why.") < page.index("<figure") and "Yours &lt;b&gt;" in page
    assert outcome.printed == "2\n" and repr(outcome) == repr(run(DOUBLE, loud))
    assert run(DOUBLE, lambda x: x, draw=True).picture == ""


def test_without_a_process_too(monkeypatch) -> None:
    monkeypatch.setattr(child, "FORK", False)
    assert "<figure" in run(DOUBLE, lambda x: x + x, draw=True).picture


# ---- what is kept, and what is graded ----------------------------------------------------------------------------


def test_no_picture_is_kept_or_graded(tmp_path, monkeypatch) -> None:
    answer, progress = solution(CAUSAL_MASK), Progress(tmp_path)
    assert "<svg" in check(CAUSAL_MASK, answer, progress).picture
    assert progress.read()[CAUSAL_MASK.key]["status"] == "passed"
    kept = progress.path.read_text()
    assert "svg" not in kept and "picture" not in kept
    assert run(CAUSAL_MASK, answer).picture == quiet_run(CAUSAL_MASK, answer).picture == ""
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert graded(CAUSAL_MASK, answer).picture == ""


# ---- hostile text ------------------------------------------------------------------------------------------------

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def evil_chat(messages):
    system = any(m["content"] == "Be brief." for m in messages)
    return EVIL if system else solution(CHAT_TEXT)(messages)


def evil_merge(words, pair):
    return [[EVIL[:12], EVIL]] if words[0] == list("she") else solution(MERGE)(words, pair)


def evil_pair(words):
    return ("<script>", EVIL) if words[0] == list("she") else solution(MOST_FREQUENT_PAIR)(words)


ROWS: list[int] = []  # the check asks for three, the picture for the fourth


def evil_row(instruction, questions, answers, turns):
    ROWS.append(1)
    messages, learnt = solution(GATT_ROW)(instruction, questions, answers, turns)
    return ([{"role": EVIL, "content": EVIL} for _ in messages] if len(ROWS) > 3 else messages), learnt


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(CHAT_TEXT, evil_chat), (MERGE, evil_merge), (MOST_FREQUENT_PAIR, evil_pair), (GATT_ROW, evil_row)],
    ids=lambda x: getattr(x, "key", ""),
)
def test_text_of_the_student_is_escaped(exercise, answer) -> None:
    outcome = run(exercise, answer, draw=True)
    assert outcome.passed and "&lt;script" in outcome.picture, outcome
    tags = set(re.findall(r"<([a-zA-Z]+)", outcome.picture))
    assert tags <= {
        "figure",
        "figcaption",
        "div",
        "span",
        "wbr",
        "p",
        "svg",
        "rect",
        "text",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }


def test_a_schedule_that_is_no_number_passes_where_it_was_checked() -> None:
    right = solution(SCHEDULE)

    def schedule(step, steps, peak, warmup, final):
        return float("nan") if peak < 1e-3 else right(step, steps, peak, warmup, final)

    outcome = run(SCHEDULE, schedule, draw=True)
    assert outcome.passed and outcome.picture == ""


# ---- the parts ---------------------------------------------------------------------------------------------------


def test_parts_refuse_what_cannot_be_drawn() -> None:
    assert numbers(torch.tensor(2), *()) == 2.0 and numbers([[1, 2]], 1, 2) == [[1.0, 2.0]]
    for value in ([1.0], [[1.0, float("nan")]], [[1.0, float("inf")]], "text", object()):
        with pytest.raises(checking.Mistake):
            numbers(value, 1, 2)
    assert texts(("a", "b"), 2) == ["a", "b"]
    for value in ("ab", ["a", "b", "c"], [1], None):
        with pytest.raises(checking.Mistake):
            texts(value, 2)


def test_an_axis_begins_at_0_where_nothing_lies_below() -> None:
    def ends(*values: float) -> list[str]:
        drawn = own_curves("Yours", [("y", list(enumerate(values)))], "x", "y")
        return [html.unescape(text) for text in re.findall(r'text-anchor="end"[^>]*>([^<]*)<', drawn)]

    assert ends(2.0, 5.0) == ["0", "5"] and ends(-2.0, 5.0) == ["-2", "5"]
