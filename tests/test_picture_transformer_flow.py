"""Transformer flow: what is drawn is what the model computes, with and without a cache, and the page follows keys."""

import json
import re

import annotation_browser as real
import pytest
import torch
from picture_page import mount, rest

from llama2lab.lessons.n02_transformer.attention import attention_weights
from llama2lab.lessons.n02_transformer.seen import see, short_question
from llama2lab.lessons.n02_transformer.transformer_flow import LONGEST, TransformerFlow, table
from llama2lab.model.network import SIZES, Llama

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def flow(lab):
    return TransformerFlow(lab)


@torch.no_grad()
def test_what_is_seen_is_what_the_model_computes():
    model, ids = Llama(SIZES["nano"], seed=3).eval(), [1, 9, 30, 31, 7, 100, 2]
    for p in model.parameters():  # far from the even weights of a new model
        p.mul_(6.0) if p.ndim > 1 else None
    seen, c = see(model, ids), model.config
    assert torch.equal(seen.logits, model(torch.tensor([ids]), cache=model.new_cache(1, len(ids)))[0])
    assert torch.allclose(seen.logits, model(torch.tensor([ids]))[0], atol=1e-4)
    weights, x = attention_weights(model, ids), seen.embedded
    for i, one in enumerate(seen.layers):
        values = one.v.repeat_interleave(c.group, 0)
        hidden = torch.ones(len(ids), len(ids)).triu(1).bool()
        assert torch.equal(one.x, x) and torch.allclose(one.weights, weights[i], atol=1e-5)
        assert torch.allclose(one.scores.masked_fill(hidden, -torch.inf).softmax(-1), one.weights, atol=1e-5)
        assert torch.allclose(one.weights @ values, one.mixed, atol=1e-5)
        assert torch.allclose(one.x + one.attended, one.middle, atol=1e-5)
        assert torch.allclose(torch.nn.functional.silu(one.gate) * one.up, one.gated, atol=1e-5)
        assert torch.allclose(one.middle + one.fed, one.y, atol=1e-5)
        assert not torch.allclose(one.q, one.q_turned) and torch.allclose(one.q[:, 0], one.q_turned[:, 0], atol=1e-6)
        x = one.y
    assert not any(part._forward_hooks for part in model.modules())


@torch.no_grad()
def test_the_data_are_those_of_reading_token_by_token(lab, flow):
    d, model = flow.data, lab.model()
    assert json.loads(json.dumps(d)) == d and len(json.dumps(d)) < 1_000_000
    assert d["ids"][: d["asked"]] == short_question(lab)[1] and len(d["ids"]) == max(LONGEST, d["asked"])
    cache = model.new_cache(1, len(d["ids"]))
    device = model.embed.weight.device
    logits = model(torch.tensor([d["ids"][: d["asked"]]], device=device), cache=cache)[0, -1]
    for i, top in enumerate(d["top"]):
        best = logits.topk(len(top))
        assert [logit for _, logit, _ in top] == pytest.approx(best.values.tolist(), abs=0.02)
        chances = logits.softmax(-1)[best.indices].tolist()
        assert [chance for *_, chance in top] == pytest.approx(chances, abs=2e-3)
        if i + 1 < len(d["top"]):
            assert d["ids"][d["asked"] + i] == best.indices[0]
            logits = model(torch.tensor([[int(best.indices[0])]], device=device), cache=cache)[0, -1]
    for layer, tables in enumerate(d["layers"]):
        for kv in range(d["kv_heads"]):
            for name, kept in (("k_turned", cache.keys), ("v", cache.values)):
                shown = torch.tensor(tables[name][kv]["rows"]) * tables[name][kv]["unit"]
                assert torch.allclose(
                    shown.float(), kept[layer, 0, kv].cpu(), atol=0.6 * tables[name][kv]["unit"] + 1e-3
                )
    for head in d["layers"][0]["weights"]:
        assert all(sum(row) == pytest.approx(1000, abs=8) for row in head["rows"])


def test_tables_keep_three_digits_of_the_largest_number():
    assert table(torch.tensor([[12.34, -0.04], [0.0, 1.0]])) == {"unit": 0.1, "rows": [[123, 0], [0, 10]]}
    assert table(torch.zeros(1, 2))["rows"] == [[0, 0]]


def test_the_picture_at_rest_shows_texts_as_texts(flow):
    d = flow.data
    top = [[[HOSTILE, 1.0, 0.5]]] * len(d["top"])
    page = rest(flow, question=HOSTILE, words=[HOSTILE] * len(d["words"]), top=top)
    assert "<img" not in page and page.count("&lt;img") > 2
    assert all(part["does"] in page for part in d["parts"])


@pytest.mark.browser
def test_the_page_follows_the_keys(flow):
    real.skip_without_browser()
    d = flow.data
    depth, asked, last = len(d["layers"]), d["asked"], len(d["words"])
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        mount(page, flow)
        lit = page.locator(".l2p-flow-map > [aria-current], .l2p-flow-layer > [aria-current]")
        read = page.locator(".l2p-flow-read")
        page.get_by_role("button", name="on", exact=True).focus()
        shown = [lit.inner_text()]
        for _ in range(4 + 11 * depth - 1):
            page.keyboard.press("Enter")
            shown.append(lit.inner_text())
        names = {part["key"]: part["name"] for part in d["parts"]}
        layer = [part["name"] for part in d["parts"]][2:13]
        assert shown == [names["tokens"], names["embed"], *layer * depth, names["final"], names["logits"]]
        assert d["top"][0][0][0] in page.locator(".taken").inner_text()

        page.keyboard.press("Enter")
        assert lit.inner_text() == names["cache"] and f"The cache holds {asked + 1} columns" in read.inner_text()
        page.keyboard.press("End")
        assert (
            lit.inner_text() == names["logits"] and d["top"][last - asked][0][0] in page.locator(".taken").inner_text()
        )

        lit.focus()
        for _ in range(4):  # final, + feed-forward, SwiGLU
            page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        assert (
            lit.inner_text() == names["norm2"]
            and f"layer {depth} of {depth}" in page.locator(".l2p-flow-head").inner_text()
        )

        lit.focus()
        for _ in range(3):
            page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        assert lit.inner_text() == names["softmax"]
        page.get_by_role("application").first.focus()
        for key in ("Home", "PageUp", "ArrowDown", "ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        value = d["layers"][-1]["weights"][0]["rows"][2][1] / 1000
        said = read.inner_text()
        assert f"query of “{d['words'][2]}” (position 2), key of “{d['words'][1]}” (1)" in said
        assert float(re.sub(".*: ", "", said)) == pytest.approx(value, rel=5e-3)
        page.keyboard.press("End")
        assert "hidden, a later token" in read.inner_text()
        assert page.errors == []


@pytest.mark.browser
def test_it_plays_by_itself_and_fits_a_narrow_column(flow):
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, viewport={"width": 400, "height": 900}) as page:
        mount(page, flow, question=HOSTILE, words=[HOSTILE] * len(flow.data["words"]))
        page.get_by_role("button", name="pause").wait_for()
        for part in ("Q, K, V", "Softmax", "SwiGLU", "KV cache", "Next token"):
            page.get_by_role("button", name=part).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, part
        page.get_by_role("button", name="play").wait_for()
        assert page.locator("#here img").count() == 0 and HOSTILE in page.locator(".l2p").inner_text()
        assert page.errors == []
