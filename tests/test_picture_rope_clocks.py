"""RoPE clocks: the hands are the library's turned query and key, their sum is the score, and the page follows keys."""

import json
import math

import annotation_browser as real
import pytest
import torch
from picture_page import mount, rest

from llama2lab.lessons.n02_transformer.attention import attention_weights
from llama2lab.lessons.n02_transformer.rope_clocks import PLACES, RopeClocks, angle
from llama2lab.lessons.n02_transformer.seen import short_question

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def clocks(lab):
    return RopeClocks(lab)


def test_query_and_key_are_those_of_the_chat_model(lab, clocks):
    d, model = clocks.data, lab.model()
    assert json.loads(json.dumps(d)) == d
    weights = attention_weights(model, short_question(lab)[1]).cpu()
    before = weights.diagonal(-1, 2, 3)[..., 1:]
    assert before.mean(-1).max() == before[d["layer"] - 1, d["head"] - 1].mean()
    # At their own places the query's scores are those that the model's weights come from.
    m, n = d["at"]["query"], d["at"]["key"]
    assert m == n + 1 and weights[d["layer"] - 1, d["head"] - 1, m, n] == before[d["layer"] - 1, d["head"] - 1].max()
    assert d["turn"][0] == pytest.approx(2 * math.pi)
    assert d["turn"][-1] == pytest.approx(2 * math.pi * d["theta"] ** (1 - 2 / d["head_dim"]), rel=1e-4)


def test_together_they_keep_angles_and_score(clocks):
    d, pairs = clocks.data, len(clocks.data["turn"])
    query, key = torch.tensor(d["query"]), torch.tensor(d["key"])
    for m in range(PLACES):
        for n in range(m + 1):
            assert d["scores"][m][n] == pytest.approx(d["scores"][m - n][0], abs=5e-3)
    products = (query @ key.T / d["head_dim"] ** 0.5).tolist()
    assert products[30][7] == pytest.approx(d["scores"][30][7], abs=5e-3)
    fast = [angle(d["query"][n + 3], d["key"][n], 0) for n in range(40)]
    assert max(fast) - min(fast) < 1e-3 and abs(angle(d["query"][4], d["key"][0], 0) - fast[0]) > 0.5
    assert all(-math.pi < angle(d["query"][9], d["key"][2], pair) <= math.pi for pair in range(pairs))


def test_the_picture_at_rest_shows_texts_as_texts(clocks):
    page = rest(clocks, question=HOSTILE, words={"query": HOSTILE, "key": HOSTILE})
    assert "<img" not in page and page.count("&lt;img") == 3
    assert page.count("<circle") == len(clocks.data["turn"]) + 1


@pytest.mark.browser
def test_the_page_follows_the_keys(clocks):
    real.skip_without_browser()
    d = clocks.data
    m, n = d["at"]["query"], d["at"]["key"]
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        mount(page, clocks)
        score, parts = page.locator(".l2p-rope-score strong"), page.locator(".l2p-rope-face div:not(.turn)")

        def shown():
            return score.inner_text().replace("−", "-").removeprefix("score ")

        def total():
            return sum(float(words.split("·")[1].replace("−", "-")) for words in parts.all_inner_texts())

        assert shown() == f"{d['scores'][m][n]:.2f}" and total() == pytest.approx(float(shown()), abs=0.1)
        start, hands = parts.all_inner_texts(), page.locator(".l2p-rope-face").first.inner_html()
        page.get_by_role("slider", name="both together").focus()
        page.keyboard.press("PageUp")
        page.keyboard.press("ArrowRight")
        assert parts.all_inner_texts() == start and page.locator(".l2p-rope-face").first.inner_html() != hands
        page.get_by_role("slider", name="position of the query").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert shown() == f"{d['scores'][m + 14][n + 11]:.2f}" and parts.all_inner_texts() != start
        assert total() == pytest.approx(float(shown()), abs=0.1)
        page.keyboard.press("Home")  # no query before its key
        assert shown() == f"{d['scores'][n + 11][n + 11]:.2f}"
        page.locator(".l2p-rope-face").first.focus()
        page.keyboard.press("ArrowDown")
        assert f"Pair 9 of {len(d['turn'])}" in page.locator(".l2p-note").first.inner_text()
        page.get_by_role("button", name="on", exact=True).focus()
        page.keyboard.press("Enter")
        assert shown() == f"{d['scores'][m + 1][n + 1]:.2f}"
        assert page.errors == []


@pytest.mark.browser
def test_hostile_texts_and_a_narrow_column(clocks):
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, viewport={"width": 400, "height": 900}) as page:
        mount(page, clocks, question=HOSTILE, words={"query": HOSTILE, "key": HOSTILE})
        assert page.locator("#here img").count() == 0 and HOSTILE in page.locator(".l2p").inner_text()
        page.get_by_role("slider", name="position of the query").focus()
        page.keyboard.press("End")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.errors == []
