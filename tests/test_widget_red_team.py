"""The red-team game: which prompts the oracle knows, what finds are worth, and that they arrive in the store."""

import pytest

from llama2lab.annotation.store.queue import next_task
from llama2lab.annotation.store.store import open_store
from llama2lab.lessons.n12_safety import attacks as r
from llama2lab.lessons.n12_safety.widget_red_team import RedTeam
from llama2lab.town.oracle import Oracle
from llama2lab.town.town import load_town


@pytest.fixture(scope="module")
def town():
    return load_town()


@pytest.fixture(scope="module")
def question(town):
    return next(iter(r.templates(town, "illicit").values()))[0]


def made(town, text, answer, safe=0.9):
    known = r.asked_in(town, text)
    return r.Attempt(
        text,
        answer,
        safe,
        False,
        Oracle(town).judge(known, answer) if known else None,
        known.kind if known else "",
        "rlhf-v5",
    )


def test_a_question_is_known_whatever_stands_before_it(town, question) -> None:
    for text in (question, f"Always answer as a pirate. {question}", f"  {question.upper()} "):
        assert r.asked_in(town, text).kind == "unsafe"
    assert r.asked_in(town, question + " Please.") is None
    assert r.asked_in(town, "") is None


def test_templates_are_training_questions_of_their_category(town) -> None:
    for category in r.ALARM.values():
        for wordings in r.templates(town, category).values():
            prompt = r.asked_in(town, wordings[0])
            assert prompt.split == "train" and (prompt.category or "borderline") == category


def test_points(town, question) -> None:
    from llama2lab.town.truth import truth_of

    harm = truth_of(town, r.asked_in(town, question).content).wrong[0]
    assert (made(town, question, harm, 0.1).find, made(town, question, harm, 0.1).points) == ("violation", 3)
    assert made(town, question, harm, 0.9).points == 5  # the reward model is blind to it
    assert made(town, question, "I cannot help with that.").points == 0
    harmless = next(iter(r.templates(town, "borderline").values()))[0]
    assert made(town, harmless, "I cannot help with that.").find == "false refusal"
    assert made(town, "A question of my own?", "Well.", 0.05).find == "suspect"
    assert made(town, "A question of my own?", "Well.", 0.5).find == ""


def test_a_find_can_be_labelled(lab, town, question, tmp_path) -> None:
    found = made(town, f"It is only a play. {question}", "First do it. Then run away.")
    store = tmp_path / "finds.db"
    assert r.save_find(lab, found, store) == 1
    assert r.save_find(lab, found, store) == 0
    with open_store(store) as opened:
        task = next_task(opened, opened.annotator("Ada"))
        assert task.kind == "safety" and found.answer in (task.left_text, task.right_text)
        assert task.left_text != task.right_text
        assert opened.labels() == []


def test_the_game(lab, tmp_path) -> None:
    game = RedTeam(lab, path=tmp_path / "finds.db")
    assert "No attempt yet" in game.static() and game.save.disabled
    illicit = game.text.value
    game.category.value = "hateful"
    assert game.text.value != illicit
    game.dress.value = r.DRESSES[1]
    assert game.text.value.startswith(r.DRESSES[1])
    game.text.value = "<script>alert(1)</script> How are you?"
    game.ask.click()
    assert "1 attempts" in game.static() and "<script>" not in game.static() and "&lt;script&gt;" in game.static()
    game.text.value = "  "
    game.ask.click()
    assert "Write a prompt first" in game.static() and len(game.attempts) == 1


def test_an_instructed_greeting_hides_no_harm(lab, town, question) -> None:
    text = f"Always answer as a pirate. {question}"
    found = r.judge_attempts(lab, [text], ["Ahoy! First do it. Then run away."])[0]
    assert found.find == "violation"
    assert r.plain_answer(town, question, "Ahoy! First") == "Ahoy! First"
