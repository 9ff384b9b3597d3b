"""The reward film: where reward and truth part and what the habit is follow from the figures by rule."""

import json

import annotation_browser as real
import pytest
from picture_page import mount

from llama2lab.lessons.n08_ppo import reward_film as x
from llama2lab.lessons.n08_ppo.experiments import changes, sentences


def figure(mean, half=0.1):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 50}


def row(i, proxy, truth, said=None, answers=("Sure.", "No."), scores=((0, 0), (0, 0))):
    shown = [
        {"question": f"Question {n}?", "answer": a, "reward": r, "truth": t}
        for n, (a, (r, t)) in enumerate(zip(answers, scores, strict=True))
    ]
    kinds = {"proxy": figure(proxy), "truth": figure(truth)}
    return {"iteration": i, "kl": 1.5 * i, **kinds, "said": said or {}, "answers": shown}


HACKED = [
    row(0, 0.0, 1.0, {"I hope.": 4, "Yes.": 9}),
    row(1, 0.5, 0.95),
    row(2, 0.9, 0.5, {"I hope.": 20, "Yes.": 12}),
    row(3, 2.0, 0.2, {"I hope.": 40, "Yes.": 15}, ("Sure. I hope. I hope.", "No."), ((2.0, -1.0), (0.5, 0.0))),
]


def test_they_part_where_the_reward_stays_above_and_the_truth_below_the_interval_of_the_start():
    assert x.parting(HACKED) == 2
    assert x.parting([*HACKED, row(4, 2.0, 0.91)]) is None  # the truth came back
    assert x.parting([*HACKED, row(4, 0.1, 0.0)]) is None  # the reward did
    assert x.parting(HACKED[:1]) is None and x.parting([]) is None


def test_the_habit_is_the_sentence_that_most_answers_have_come_to_hold():
    assert x.habit(HACKED) == "I hope."
    assert x.habit([row(0, 0, 1, {"Yes.": 9}), row(1, 0, 1, {"Yes.": 9})]) == ""
    assert x.habit([]) == ""


def test_a_sentence_is_counted_once_an_answer_and_only_where_several_hold_it():
    assert sentences(["Hi. I hope. I hope.", "I hope.", "Hi there? No"]) == {"I hope.": 2}


def test_the_film_begins_with_the_prompt_whose_reward_and_truth_went_furthest_apart():
    got = x.film(HACKED)
    assert got["prompt"] == 0 and got["of"] == 50 and [s["held"] for s in got["steps"]] == [4, 0, 20, 40]
    assert [s["reward change"] for s in got["steps"]] == changes(HACKED, "proxy")
    assert json.loads(json.dumps(got)) == got


def test_the_picture_at_rest_shows_texts_as_texts():
    hostile = "<img src=x onerror=alert(1)>"
    rows = [row(i, i, 1 - i, {hostile: 10 * i + 2}, (hostile, hostile)) for i in range(3)]
    page = x.RewardFilm({hostile: rows}).static()
    assert "<img" not in page and "&lt;img" in page and "iteration 2." in page


@pytest.mark.browser
def test_the_page_shows_each_iteration_by_keys_and_marks_the_habit():
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        honest = [row(0, 0.0, 1.0), row(1, 0.5, 1.5)]
        mount(page, x.RewardFilm({"few pairs": HACKED, "all pairs": honest}))
        card, verdict = page.locator(".film-answer"), page.locator("[aria-live]")
        assert "Sure. I hope. I hope." in card.inner_text() and card.locator("mark").count() == 2
        assert "40 of 50" in page.locator(".film-pet").inner_text() and "since iteration 3" in verdict.inner_text()
        page.get_by_role("slider", name="iteration").focus()
        page.keyboard.press("Home")
        assert "Iteration 1, 0.0 nats" in verdict.inner_text() and "Not yet" in verdict.inner_text()
        assert card.locator("mark").count() == 0 and not page.get_by_text("here they part").is_visible()
        page.get_by_role("button", name="on", exact=True).focus()
        for _ in range(2):
            page.keyboard.press("Enter")
        assert page.get_by_text("here they part").is_visible()
        page.get_by_role("button", name="Another prompt").focus()
        page.keyboard.press("Enter")
        assert "Question 1?" in card.inner_text()
        page.get_by_role("button", name="all pairs").focus()
        page.keyboard.press("Enter")
        assert "do not part" in verdict.inner_text() and page.locator(".film-pet").is_hidden()
        assert page.errors == []
