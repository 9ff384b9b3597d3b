"""The recipe map: its prompts follow their rules, its answers are the run's, and keys do all that a mouse does."""

import json
from pathlib import Path

import annotation_browser as real
import pytest
from picture_page import draw, focused

from llama2lab.engine.paths import ROOT
from llama2lab.lab.checking import Outcome
from llama2lab.lab.progress import Progress, predict
from llama2lab.lessons import recipe_map as x
from llama2lab.lessons.catalogue import all_exercises
from llama2lab.lessons.n00_start.exercises import FIRST_TALK

NASTY = "<img src=x onerror=alert(1)>"
STAGES = ("sft", *x.VERSIONS)
SAYS = dict(zip(STAGES, (f"Mira has {n} red hats." for n in range(6)), strict=True))


def rows(prompt, signs, kind="helpful", messages=1, long=False, broken=False):
    """What the stages answered to one prompt: right or safe as `signs` say."""
    said = [{"role": "user", "content": prompt}] * messages
    return tuple(
        {
            "prompt_id": prompt,
            "kind": kind,
            "messages": said,
            "answer": SAYS[stage] + " It is here." * 30 * long + " And the." * broken,
            "correct": good,
            "score": (1.2 if good else -2.0) if kind == "unsafe" else 0.0,
        }
        for stage, good in zip(STAGES, signs, strict=True)
    )


UP, LATE, LOST = (False, *[True] * 5), (False, False, *[True] * 4), (True, *[True] * 4, False)


def test_prompts_are_the_first_that_their_rules_allow():
    some = [
        rows("two turns", UP, messages=2),
        rows("long", UP, long=True),
        rows("broken", UP, broken=True),
        rows("never", [False] * 6),
        rows("up", UP),
        rows("up again", UP),
        rows("late", LATE),
        rows("harm", UP, "unsafe"),
        rows("lost", LOST),
    ]
    assert [row[0]["prompt_id"] for _, row in x.chosen(some)] == ["up", "late", "harm", "lost"]
    assert [row[0]["prompt_id"] for _, row in x.chosen(some[:3])] == ["long"]  # where nothing legible fits


def test_it_counts_what_is_done_here_and_everywhere(tmp_path):
    progress = Progress(tmp_path)
    of = [e for e in all_exercises() if e.key.startswith("00")]
    assert x.done(progress)["00"] == [0, len(of)]
    progress.record(Outcome(of[-1].key, "x", "passed", points=1, of=1))
    progress.record(Outcome(of[-2].key, "x", "failed"))
    predict(FIRST_TALK, 0.5, progress)  # a guess that has met nothing yet
    counts = x.done(progress)
    assert counts["00"] == [1, len(of)] and sum(n for _, n in counts.values()) == len(all_exercises())
    words = x.progress_words(counts, "00")
    assert words == f"1 of {len(of)} exercises done here, 1 of {len(all_exercises())} in all notebooks"
    assert x.progress_words(counts, "13") == f"1 of {len(all_exercises())} exercises done in all notebooks"
    (tmp_path / "lab-progress.json").unlink()
    (tmp_path / "lab-progress.json").mkdir()  # cannot be read
    assert x.done(progress)["00"] == [0, len(of)]


class Run:
    """As much of a finished run as the map asks for."""

    def __init__(self, folder: Path, answers):
        self.folder, self.kept = folder, answers
        for stage in answers:
            (folder / stage).mkdir(parents=True)
            (folder / stage / "stage.json").write_text("{}")
            (folder / stage / "answers.jsonl").write_text("")

    def answers(self, *stages):
        return list(zip(*(self.kept[stage] for stage in stages), strict=True))

    def has(self, stage):
        return stage == "base"

    def live(self, experiment, prompts):
        assert experiment is x.goes_on
        return {p: f"{p} goes on" for p in prompts}


def made(folder, leave=(), prompt="up"):
    whole = [rows(prompt, UP), rows("late", LATE)]
    return x.recipe_map(Run(folder, {s: [r[i] for r in whole] for i, s in enumerate(STAGES) if s not in leave}), "06")


def test_the_map_holds_each_stages_answers(tmp_path):
    data = made(tmp_path).data
    says = data["examples"][0]["says"]
    assert says["base"] == {"text": "up goes on", "good": None}
    assert says["sft"] == {"text": SAYS["sft"], "good": False} and says["rlhf-v5"]["good"] is True
    assert json.loads(json.dumps(data))["examples"][1]["prompt"] == "late"
    assert "rlhf-v2" not in made(tmp_path / "other", leave=("rlhf-v2",)).data["examples"][0]["says"]


def test_a_run_without_answers_has_a_map_all_the_same(tmp_path):
    found = made(tmp_path, leave=STAGES[1:])
    assert found.data["examples"] == [] and "Reward" in found.static().title()


def test_every_notebook_has_its_place_on_the_map():
    files = x.notebook_files(ROOT / "notebooks")
    assert {s.notebook for s in x.STAGES} <= files.keys() and files["06"].startswith("06_")
    assert {"01", "05", "10"} <= {s.notebook for s in x.STAGES}


def test_what_models_write_stays_text(tmp_path):
    found = made(tmp_path, prompt=NASTY)
    assert NASTY not in found.static() and "&lt;img" in found.static()


def test_the_map_is_light(tmp_path):
    found = made(tmp_path)
    assert len(json.dumps(found.data)) + len(found.static()) + len(found._esm) + len(found._css) < 100_000


def test_the_shipped_runs_answers_follow_the_rules(lab):
    """The words of a rule are true of what is shown under it."""
    joined = lab.answers("sft", "rlhf-v1", "rlhf-v5")
    for words, (sft, v1, v5) in x.chosen(joined):
        signs = {"SFT": x.good(sft), "V1": x.good(v1), "V5": x.good(v5)}
        if words == x.RULES[0][0]:
            assert signs == {"SFT": False, "V1": True, "V5": True}
        elif words == x.RULES[3][0]:
            assert signs["SFT"] and not signs["V5"]
        assert len(sft["messages"]) == 1


@pytest.mark.browser
def test_keys_do_all_that_a_mouse_does(tmp_path):
    real.skip_without_browser()
    found = made(tmp_path, leave=("rlhf-v2",), prompt=NASTY)
    with real.chromium() as browser, real.page_of(browser, reduced_motion="reduce") as page:
        draw(page, x.RecipeMap, found.data)
        says, more = page.locator(".l2map-says"), page.locator(".l2map-more")
        assert page.locator(".l2p img").count() == 0 and NASTY in says.inner_text()
        assert page.locator(".l2map-box.here").count() == 2  # both reward models
        page.get_by_role("combobox").focus()
        page.keyboard.press("ArrowDown")
        assert says.inner_text().startswith("Asked: late")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert focused(page).startswith("06")  # one Tab stop for the map, at the notebook's own box
        page.keyboard.press("Enter")
        assert "You are here" in more.inner_text() and "helpful" in more.inner_text()
        page.keyboard.press("Escape")
        assert more.is_hidden()
        page.keyboard.press("Home")
        page.keyboard.press("ArrowLeft")
        assert focused(page).startswith("09")
        page.keyboard.press("Enter")
        assert more.get_by_role("link").get_attribute("href") == x.notebook_files()["09"]
        page.get_by_role("button", name="V1").focus()
        page.keyboard.press(" ")
        assert f"V1: {SAYS['rlhf-v1']}" in says.inner_text() and "wrong" in says.inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert "keeps no answers" in says.inner_text()
        page.get_by_role("button", name="play").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('.l2map-says').textContent.includes('V5: ')", timeout=60_000)
        assert page.locator(".l2map-dot").get_attribute("visibility") == "hidden"  # less motion was asked for
        assert page.locator(".l2p").bounding_box()["height"] < 400 and page.errors == []


@pytest.mark.browser
def test_the_prompt_sets_out_by_itself(tmp_path):
    real.skip_without_browser()
    with real.chromium() as browser, real.page_of(browser) as page:
        draw(page, x.RecipeMap, made(tmp_path).data)
        page.wait_for_function("document.querySelector('.l2map-dot').getAttribute('visibility') === 'visible'")
        assert page.locator(".l2p").bounding_box()["height"] <= 230
        page.wait_for_function("document.querySelector('.l2map-says').textContent.includes('SFT: ')")
        page.get_by_role("button", name="pause").click()
        assert page.locator(".l2map-dot").get_attribute("visibility") == "hidden" and page.errors == []
