"""GAE by hand: the answer is chosen by its rule, and the page's sums are the library's."""

import json

import annotation_browser as real
import pytest
import torch
from picture_page import mount

from llama2lab.engine.errors import LabError
from llama2lab.lessons.n08_ppo import gae_by_hand as x
from llama2lab.stages import ppo

ANSWER = {
    "question": "What is 3 plus 4?",
    "before": " 3 plus",
    "tokens": [" 4", " is", " 7", ".", "</s>"],
    "rewards": [-0.02, 0.01, 0.06, 0.0, 0.71],
    "values": [0.1, 0.15, 0.05, 0.62, 0.66],
    "gamma": 1.0,
    "lam": 0.95,
    "beta": 0.2,
    "start": "rlhf-v4",
    "rule": x.RULE,
}


def answer(*values, rewards=(0.0, 0.0, 0.0, 0.0, 1.0)):
    return ANSWER | {"values": list(values), "rewards": list(rewards)}


def test_the_rule_takes_the_answer_where_the_critic_changes_its_mind_most_of_those_that_are_sane():
    calm, jumps, wild = answer(0, 0.1, 0, 0, 0), answer(0, 0, -0.9, 0.9, 1), answer(0, -16, 15, 0, 0)
    assert x.chosen([calm, jumps, wild], -2, 2) is jumps
    with pytest.raises(LabError, match="of 1 short answers none"):
        x.chosen([wild], -2, 2)


def test_the_advantages_are_the_librarys():
    rewards, values = torch.tensor([ANSWER["rewards"]]), torch.tensor([ANSWER["values"]])
    wanted = ppo.gae(rewards, values, torch.ones(1, 5).bool(), 0.9, 0.5)[0][0].tolist()
    assert x.advantages(ANSWER["rewards"], ANSWER["values"], 0.9, 0.5) == pytest.approx(wanted, abs=1e-6)


def test_the_picture_at_rest_shows_texts_as_texts():
    hostile = "<img src=x onerror=alert(1)>"
    texts = {"question": hostile, "before": hostile, "tokens": [hostile] * 5}
    page = x.GaeByHand(ANSWER | texts).static()
    assert "<img" not in page and page.count("&lt;img") == 2 + 5 + 5
    assert f"{x.advantages(ANSWER['rewards'], ANSWER['values'], 1.0, 0.95)[0]:+.2f}" in page


@pytest.mark.slow
def test_the_answer_is_real_sane_and_plain_data(lab):
    play = x.Play(start="rlhf-v4", iterations=3, batch=32, minibatch=16, beta=0.2, unsafe_share=0.0)
    got = x.five_tokens(lab, play, warm=2, asked=200)
    assert json.loads(json.dumps(got)) == got
    assert len(got["tokens"]) == len(got["rewards"]) == len(got["values"]) == x.TOKENS
    assert got["tokens"][-1] == "</s>" and (got["gamma"], got["lam"]) == (1.0, 0.95)
    assert got["rewards"][-1] > 0 and got["tokens"][0].startswith(" ")
    assert any(got["values"])  # the critic has learnt: its head starts at 0


@pytest.mark.browser
def test_the_page_follows_the_keys_and_sums_as_the_library_does():
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        mount(page, x.GaeByHand(ANSWER))

        def sums():
            return [float(t) for t in page.locator("[data-exact]").evaluate_all("all => all.map(e => e.dataset.exact)")]

        rewards, values = list(ANSWER["rewards"]), list(ANSWER["values"])
        assert sums() == pytest.approx(x.advantages(rewards, values, 1.0, 0.95), abs=1e-9)

        page.get_by_role("slider", name="value of token 3").focus()
        for key in ("ArrowDown", "ArrowDown", "PageUp"):
            page.keyboard.press(key)
        page.get_by_role("slider", name="reward of token 5").focus()
        page.keyboard.press("ArrowUp")
        values[2], rewards[4] = 0.45, 0.76
        assert sums() == pytest.approx(x.advantages(rewards, values, 1.0, 0.95), abs=1e-9)

        page.get_by_role("slider", name="gamma").focus()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        page.get_by_role("slider", name="lambda").focus()
        for press, lam in (("Home", 0.0), ("ArrowRight", 0.05), ("End", 1.0)):
            page.keyboard.press(press)
            assert sums() == pytest.approx(x.advantages(rewards, values, 0.85, lam), abs=1e-9)

        page.get_by_role("button", name="token 3").focus()
        page.keyboard.press("Enter")
        assert "Advantage of token 3" in page.locator(".gae-sum").inner_text()
        page.get_by_role("button", name="The run's numbers").focus()
        page.keyboard.press("Enter")
        assert sums() == pytest.approx(x.advantages(ANSWER["rewards"], ANSWER["values"], 1.0, 0.95), abs=1e-9)
        page.get_by_role("button", name="on", exact=True).focus()
        page.keyboard.press(" ")
        assert sums() == pytest.approx(x.advantages(ANSWER["rewards"], ANSWER["values"], 1.0, 1.0), abs=1e-9)
        assert page.errors == []


@pytest.mark.browser
def test_the_page_shows_texts_as_texts_and_fits_a_narrow_column():
    real.skip_without_browser()
    hostile = "<img src=x onerror=alert(1)>"
    with real.chromium() as browser, real.page_of(browser, viewport={"width": 400, "height": 900}) as page:
        mount(page, x.GaeByHand(ANSWER | {"question": hostile, "before": hostile, "tokens": [hostile] * 5}))
        assert page.locator("#here img").count() == 0 and hostile in page.locator(".l2p").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.errors == []
