"""Ghost Attention's pictures: what they show is what the library says, texts are escaped, and keys move them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import annotation_browser as real
import pytest

from llama2lab.engine.errors import LabError
from llama2lab.lessons.n09_gatt import dialogues as g
from llama2lab.lessons.n09_gatt import ghost_picture as ghost
from llama2lab.lessons.n09_gatt import ghost_rows as rows
from llama2lab.model.chat import encode_chat

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def pairs(lab):
    return ghost.stored_pairs(lab)


@pytest.fixture(scope="module")
def picture(lab):
    return ghost.GhostPicture(lab)


def test_the_rule_opens_on_a_dialogue_that_shows_the_effect(pairs) -> None:
    first = pairs[ghost.shown_first(pairs)]
    assert first.ghost.obeyed[0] and first.right > len(first.ghost.answers) / 2
    for p in pairs:
        assert p.gain <= first.gain or not p.ghost.obeyed[0] or p.right <= len(p.ghost.answers) / 2
    wrong = [replace(p, right=0) for p in pairs]  # nothing is as the rule asks: the largest gain of all
    assert wrong[ghost.shown_first(wrong)].gain == max(p.gain for p in pairs)


def test_right_answers_are_the_oracles(lab, pairs) -> None:
    p = pairs[ghost.shown_first(pairs)]
    asked = ghost.questions_of(lab.town)
    said = [lab.oracle.judge(asked[q], a).correct for q, a in zip(p.ghost.questions, p.ghost.answers, strict=True)]
    assert p.right == sum(said) and not all(said)


def test_all_dialogues_give_the_runs_figures(lab, picture, pairs) -> None:
    for way, stage in enumerate(ghost.STAGES):
        for turn, figure in lab.metrics(stage)["retention"].items():
            assert picture.data["by_turn"][int(turn) - 1][way] == pytest.approx(figure["mean"] * len(pairs))
    assert len(picture.data["dialogues"]) == len(pairs) == lab.metrics("gatt")["retention"]["1"]["n"]


def test_a_turn_shows_the_attention_and_the_check_of_the_library(lab, picture, pairs) -> None:
    shown, pair = picture.shown, pairs[picture.chosen]
    assert shown["number"] == picture.chosen == picture.data["first"]
    for way, d in enumerate((pair.without, pair.ghost)):
        look = g.instruction_attention(lab, lab.model(ghost.STAGES[way]), d)
        both = list(zip(look["whole"]["mean"], look["first"]["max"], strict=True))
        sides = [turn["sides"][way] for turn in shown["turns"]]
        assert [s["attention"] for s in sides] == [list(one) for one in both]
        assert [s["even"][1] for s in sides] == look["first"]["even"]
        assert [s["obeys"] for s in sides] == [lab.oracle.obeys(d.instruction, a) for a in d.answers]
        assert [s["answer"] for s in sides] == list(d.answers)
    assert [s["obeys"] for s in shown["turns"][shown["start"]]["sides"]] == [False, True]
    json.dumps([picture.data, shown])


def test_another_dialogue_is_opened_and_numbers_beyond_the_last_wrap(picture, pairs) -> None:
    before, kept = picture.shown, picture.data
    picture.chosen = len(pairs) + 1
    assert picture.shown["number"] == 1 and picture.shown["instruction"] == pairs[1].ghost.instruction.text
    assert picture.data is kept
    picture.chosen = before["number"]
    assert picture.shown == before


def test_dialogues_that_only_one_stage_answered_are_refused(lab, monkeypatch) -> None:
    kept = {stage: g.kept_dialogues(lab, stage)[n : n + 1] for n, stage in enumerate(ghost.STAGES)}
    monkeypatch.setattr(ghost, "kept_dialogues", lambda _, stage: kept[stage])
    with pytest.raises(LabError, match="no dialogue that both rlhf-v3 and gatt answered"):
        ghost.stored_pairs(lab)


def hostile(shown: dict[str, Any]) -> dict[str, Any]:
    evil = json.loads(json.dumps(shown))
    evil["instruction"] = evil["turns"][evil["start"]]["question"] = HOSTILE
    for turn in evil["turns"]:
        for side in turn["sides"]:
            side["answer"] = HOSTILE
    return evil


def test_static_shows_all_turns_and_escapes_texts(picture) -> None:
    kept = picture.shown
    plain = picture.static()
    assert plain.count("obeys") >= sum(kept["kept"]) and kept["instruction"] in plain
    assert plain.count("<rect") == 2 * len(kept["turns"])
    try:
        picture.shown = hostile(kept)
        assert HOSTILE not in picture.static() and picture.static().count("&lt;img") == 4
    finally:
        picture.shown = kept


# ---- the training row --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def row(lab):
    return rows.training_row(lab, dialogues=4)


def test_the_row_is_gatt_rows_own(lab, row) -> None:
    assert row["loss"] == "last" and row["turns"] == rows.TURNS and len(row["messages"]) == 2 * rows.TURNS
    assert [row["instruction"] in m["content"] for m in row["messages"]] == [True] + [False] * 5


def test_tokens_and_masks_are_those_of_training(lab, row) -> None:
    shown = rows.tokens_of(lab, row)
    tokens = [token for message in shown["messages"] for token in message["tokens"]]
    ids, everywhere = encode_chat(lab.tokenizer, row["messages"])
    _, last = encode_chat(lab.tokenizer, row["messages"], mask_turns="last")
    assert [t[1] for t in tokens] == everywhere and [t[2] for t in tokens] == last
    assert shown["counts"] == {"all": sum(everywhere), "last": sum(last), "tokens": len(ids)}
    for k, message in enumerate(shown["messages"]):  # a message's tokens are its own
        assert {t[1] for t in message["tokens"]} == {k % 2} and {t[2] for t in message["tokens"]} == {int(k == 5)}
        assert (message["instruction"] == row["instruction"]) == (message["role"] == "user")
        assert row["instruction"] not in message["text"]
    json.dumps(shown)


def test_a_row_escapes_texts(lab, row) -> None:
    evil = {**row, "messages": [{**m, "content": f"{m['content']} {HOSTILE}"} for m in row["messages"]]}
    static = rows.GhostRows(lab, evil).static()
    assert HOSTILE not in static and static.count("&lt;img") == 6
    assert static.count("<s>") == rows.TURNS - 1  # the instruction is struck out of all user messages but the first


# ---- in a browser ------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><meta charset="utf-8"><style>%s</style><div id="el"></div><script type="module">
const state = %s, ears = [];
window.sent = [];
window.answer = (shown) => { state.shown = shown; ears.forEach((ear) => ear()); };
const model = { get: (name) => state[name], set: (name, value) => { state[name] = value; }, off() {},
  on: (name, ear) => { if (name === "change:shown") ears.push(ear); },
  save_changes: () => window.sent.push(state.chosen) };
%s
made.render({ model, el: document.getElementById("el") });
</script>"""


def written(folder: Path, made: Any, **state: Any) -> str:
    """A page of its own with a picture: `sent` holds what it asked Python for, `answer` is Python's reply."""
    script = made._esm.replace("export default", "const made =")
    path = folder / "page.html"
    path.write_text(PAGE % (made._css, json.dumps(state).replace("</", "<\\/"), script), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    real.skip_without_browser()
    with real.chromium() as running:
        yield running


@pytest.mark.browser
def test_keys_walk_the_turns_and_choose_a_dialogue(browser, picture, tmp_path) -> None:
    url = written(tmp_path, picture, data=picture.data, shown=picture.shown, chosen=picture.chosen)
    with real.page_of(browser, viewport={"width": 700, "height": 1000}, reduced_motion="reduce") as page:
        page.goto(url)
        turn, start = page.locator(".gh-said span"), picture.shown["start"]
        assert turn.inner_text() == f"turn {start + 1}"
        page.get_by_role("button", name="back", exact=True).focus()
        for key, at in (("ArrowRight", start + 1), ("End", 19), ("ArrowRight", 19), ("Home", 0), ("ArrowLeft", 0)):
            page.keyboard.press(key)
            assert turn.inner_text() == f"turn {at + 1}"
        answers = [side["answer"] for side in picture.shown["turns"][0]["sides"]]
        assert page.locator(".gh-answer").all_inner_texts() == answers
        assert "Turn 1." in page.locator("[aria-live]").inner_text()
        before = page.locator(".gh-row").first.inner_html()
        page.get_by_text("first word, the head that looks most").press("Enter")
        assert page.locator(".gh-row").first.inner_html() != before

        page.get_by_text("Where it fails").press("Enter")
        gains = [b - a for a, b in (d["kept"] for d in picture.data["dialogues"])]
        assert page.evaluate("window.sent") == [gains.index(min(gains))]
        page.evaluate("(shown) => window.answer(shown)", hostile(picture.shown))
        assert page.locator("img").count() == 0 and HOSTILE in page.locator(".gh-answer").first.inner_text()
        assert page.evaluate("document.activeElement.textContent") == "Where it fails"  # the focus stays
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.errors == []


@pytest.mark.browser
def test_keys_step_through_the_row(browser, lab, row, tmp_path) -> None:
    made = rows.GhostRows(lab, row)
    with real.page_of(browser, viewport={"width": 700, "height": 1000}, reduced_motion="reduce") as page:
        page.goto(written(tmp_path, made, data=made.data))
        assert page.locator(".gr-told.gone").count() == 0 and page.locator(".gr-told").count() == rows.TURNS
        page.get_by_role("button", name="back", exact=True).focus()
        for learnt in ("all", "last"):
            page.keyboard.press("ArrowRight")
            assert page.locator(".gr-told.gone").count() == rows.TURNS - 1
            assert page.locator(".gr-token.learnt").count() == made.data["counts"][learnt]
        page.get_by_role("button", name="1 Sample").press("Space")
        assert page.locator(".gr-told.gone").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and page.errors == []
