"""The forest plot of claims: places and verdicts are those of the evidence, and keys do all that a mouse does."""

import json

import annotation_browser as real
import pytest
from picture_page import draw, focused

from llama2lab.engine.paths import ROOT
from llama2lab.evidence import claims
from llama2lab.evidence import claims_plot as x
from llama2lab.evidence.stored import Stored, read_stored

NASTY = "<img src=x onerror=alert(1)>"


def figure(mean, half, n=100, **more):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n, **more}


def claim(number, notebook, *figures):
    return claims.Claim(number, f"claim {number}", "said so", notebook, lambda s: list(figures), "pairs")


SEEN = ("told", figure(0.3, 0.1))
OPEN = ("left open", figure(0.1, 0.2))
SOME = (
    claim(1, "02", SEEN, OPEN),
    claim(2, "06", (NASTY, figure(-0.4, 0.2))),
    claim(3, "06", ("counted", figure(1024, 0, 1))),
    claim(4, "07"),
)


def data(some=SOME):
    return x.claims_data(Stored(()), some)


def test_places_are_counted_in_halves_of_the_interval():
    told, left_open = data()["claims"][0]["figures"]
    assert told["place"] == pytest.approx([3, 2, 4]) and told["verdict"] == claims.SEEN and not told["grows"]
    assert left_open["place"] == pytest.approx([0.5, -0.5, 1.5]) and left_open["grows"]
    assert left_open["price"] == "about 400 pairs would decide"
    assert data()["claims"][2]["figures"][0]["place"] is None


def test_trainings_that_disagree_are_not_decided_by_more_items():
    one = figure(0.3, 0.1, each=[0.8, -0.2])
    row = x.figure_row("apart", one, "pairs")
    assert row["verdict"] == claims.OPEN and not row["grows"] and row["price"] == "its trainings disagree"


def test_every_verdict_has_its_sign_in_words_and_mark():
    assert set(x.SIGNS) == set(claims.VERDICTS)
    assert [c["sign"] for c in data()["claims"]] == ["\u2713?", "\u2717", "\u2713", "\u2013"]


def test_the_stored_claims_are_all_there():
    s = read_stored(ROOT / "data")
    whole = x.claims_plot(data=ROOT / "data").data
    assert json.loads(json.dumps(whole))["counts"] == claims.count(s)
    assert [c["number"] for c in whole["claims"]] == [c.number for c in claims.CLAIMS]
    for row, one in zip(whole["claims"], claims.CLAIMS, strict=True):
        assert row["verdict"] == one.verdict(s) and len(row["figures"]) == len(one.figures(s))
    only = x.claims_plot("06", ROOT / "data").data["claims"]
    assert only and {c["notebook"] for c in only} == {"06"}


def test_where_no_evidence_lies_the_plot_says_so(tmp_path):
    empty = x.claims_plot(data=tmp_path)
    assert empty.data["claims"] == [] and "No evidence" in empty.static()


def test_what_is_at_rest_is_a_table_in_which_texts_stay_texts():
    still = x.ClaimsPlot(data=data()).static()
    assert still.startswith("<table") and still.count("<tr>") == 1 + 4 + 4
    assert NASTY not in still and "&lt;img" in still and "about 400 pairs would decide" in still
    assert ".300 [.200, .400]" in still


@pytest.mark.browser
def test_keys_fold_filter_and_give_more_data():
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        draw(page, x.ClaimsPlot, data())
        rows, said = page.locator(".l2f-row"), page.locator(".l2f-say")
        page.wait_for_function("document.querySelector('.l2f-say').textContent.includes('3 of 4')")
        slider = page.get_by_role("slider", name="data")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert "2 times the data would tell 0 of the other 1" in said.inner_text()
        page.keyboard.press("ArrowRight")  # 5 times: more than the 400 of 100 that `needed` names
        assert "5 times the data would tell 1 of the other 1" in said.inner_text()
        page.keyboard.press("Tab")
        assert focused(page).startswith("\u2713?seen in part1 claim 1")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert rows.nth(1).get_attribute("aria-expanded") == "true"
        assert NASTY in page.locator(".l2f-more:visible").inner_text() and page.locator(".l2p img").count() == 0
        page.keyboard.press(" ")
        assert page.locator(".l2f-more:visible").count() == 0
        page.keyboard.press("End")
        assert "claim 4" in focused(page)
        page.get_by_role("combobox", name="notebook").select_option("06")
        assert rows.count() == 2
        page.get_by_role("combobox", name="verdict").select_option("refuted")
        assert rows.count() == 1 and "claim 2" in rows.inner_text()
        assert page.errors == []
