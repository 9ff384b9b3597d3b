"""Every exercise: its solution passes, right answers of another style pass, usual mistakes are named."""

import re

import lab_cases_building
import lab_cases_first
import lab_cases_model
import lab_cases_rlhf
import lab_cases_training
import pytest

from llama2lab.lab import checking
from llama2lab.lab.checking import Exercise, Outcome, run, solution
from llama2lab.lab.predictions import Choice, Form, Number, Order, Prediction
from llama2lab.lessons.catalogue import all_exercises

CASES = (lab_cases_first, lab_cases_model, lab_cases_training, lab_cases_rlhf, lab_cases_building)
RIGHT = [case for module in CASES for case in module.RIGHT]
WRONG = [case for module in CASES for case in module.WRONG]
EXERCISES = all_exercises()
CODE = [e for e in EXERCISES if not isinstance(e.check, Form)]
QUESTIONS = [e for e in EXERCISES if isinstance(e.check, Choice | Number | Order)]


def names(cases):
    return [f"{case[0].key}-{i}" for i, case in enumerate(cases)]


def drawn(exercise: Exercise, answer, monkeypatch) -> Outcome:
    """What a right answer gets, with the picture of its own output where the exercise has one."""
    # What is raised while it is drawn is not passed over here.
    monkeypatch.setattr(checking, "picture_of", lambda e, answered: e.picture(answered) if e.picture else "")
    outcome = run(exercise, answer, draw=True)
    assert outcome.passed, outcome
    if exercise.picture:
        assert 500 < len(outcome.picture) < checking.LARGEST / 2
        assert re.search(r"<figcaption[^>]*>[^<]*\b[Yy]our\b", outcome.picture), "the title says whose it is"
        assert not re.search(r"\b(nan|inf|None)\b", outcome.picture)
    return outcome


@pytest.mark.parametrize("exercise", [*CODE, *QUESTIONS], ids=lambda e: e.key)
def test_the_solution_passes(exercise: Exercise, monkeypatch) -> None:
    outcome = drawn(exercise, solution(exercise), monkeypatch)
    assert outcome.points == exercise.level.points


@pytest.mark.parametrize(("exercise", "answer"), RIGHT, ids=names(RIGHT))
def test_other_right_answers_pass(exercise, answer, monkeypatch) -> None:
    drawn(exercise, answer, monkeypatch)


@pytest.mark.parametrize(("exercise", "answer", "words"), WRONG, ids=names(WRONG))
def test_mistakes_are_named(exercise, answer, words) -> None:
    outcome = run(exercise, answer)
    assert outcome.status == "failed" and words in outcome.message, outcome
    assert outcome.points == 0


@pytest.mark.parametrize("exercise", CODE, ids=lambda e: e.key)
def test_every_code_exercise_has_enough_cases(exercise: Exercise) -> None:
    assert sum(case[0] is exercise for case in RIGHT) >= 2
    assert len({case[2] for case in WRONG if case[0] is exercise}) >= 2


@pytest.mark.parametrize("exercise", [e for e in QUESTIONS if isinstance(e.check, Choice)], ids=lambda e: e.key)
def test_each_wrong_choice_is_answered_in_its_own_words(exercise: Exercise) -> None:
    choice = exercise.check
    assert isinstance(choice, Choice)
    for key in choice.options:
        outcome = run(exercise, f" {key.upper()} ")
        assert outcome.passed == (key == choice.right)
        if key != choice.right:
            assert outcome.status == "failed" and outcome.message == choice.wrong[key]
    assert len(set(choice.wrong.values())) == len(choice.wrong)


@pytest.mark.parametrize("exercise", [e for e in QUESTIONS if isinstance(e.check, Number)], ids=lambda e: e.key)
def test_each_trap_is_named(exercise: Exercise) -> None:
    number = exercise.check
    assert isinstance(number, Number) and number.traps
    for value, name in number.traps:
        outcome = run(exercise, value)
        assert outcome.status == "failed" and outcome.message == name
    assert run(exercise, number.right * 37 + 1000).message.endswith("too large.")


@pytest.mark.parametrize("exercise", [e for e in QUESTIONS if isinstance(e.check, Order)], ids=lambda e: e.key)
def test_each_swap_is_named(exercise: Exercise) -> None:
    order = exercise.check
    assert isinstance(order, Order) and order.swapped
    for (first, second), name in order.swapped.items():
        keys = [k for k in order.right if k not in (first, second)]
        assert order.right.index(first) < order.right.index(second)
        alone = run(exercise, [second, *keys, first])
        assert alone.status == "failed"
        assert alone.message in order.swapped.values()
        assert name


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_whoever_passes_reads_why(exercise: Exercise) -> None:
    assert 40 < len(exercise.lesson) <= 240, "two lines of 120"


def test_metadata_is_complete() -> None:
    keys = [e.key for e in EXERCISES]
    assert len(set(keys)) == len(keys)
    for e in EXERCISES:
        assert re.fullmatch(r"\d\d\.[a-z0-9_]+", e.key)
        assert 1 <= e.level.difficulty <= 5 and 1 <= e.level.minutes <= 30 and 1 <= e.level.points <= 5
        assert e.hints and e.source and e.task and e.title
        assert (e.solution is None) == isinstance(e, Prediction)
    assert len(CODE) >= 36 and len(EXERCISES) >= 70
    for n in range(1, 11):
        assert sum(e.key[:2] == f"{n:02}" for e in CODE) >= 2, f"{n:02} has too little to build"
    assert {e.key[:2] for e in EXERCISES} == {f"{n:02}" for n in range(13)}
