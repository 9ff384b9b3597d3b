"""axe-core finds no serious fault in pictures, questions, the annotation form and the teacher's desk: light and dark,
also at 700 px."""

from collections.abc import Callable
from typing import Any

import annotation_browser as real
import pytest
import widget_page
from axe_playwright_python.sync_playwright import Axe
from picture_page import mount
from test_annotation_desk_browser import judged  # noqa: F401 (the fixture `path`)
from test_picture_ppo_view import Run, full_row

from llama2lab.annotation.desk.view import TeacherView
from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store.store import open_store
from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lessons.n00_start.exercises import FIRST_TALK
from llama2lab.lessons.n01_tokenizer.bpe_machine import BpeMachine, town_text
from llama2lab.lessons.n02_transformer.exercises import CACHE_SIZE, WHY_ROOT
from llama2lab.lessons.n02_transformer.rope_clocks import RopeClocks
from llama2lab.lessons.n02_transformer.transformer_flow import TransformerFlow
from llama2lab.lessons.n06_rewards.exercises import BY_GRADE
from llama2lab.lessons.n08_ppo.clip_curve import ClipCurve, clip_data
from llama2lab.lessons.n08_ppo.experiments import hacking
from llama2lab.lessons.n08_ppo.gae_by_hand import GaeByHand, five_tokens
from llama2lab.lessons.n08_ppo.ppo_view import PpoView
from llama2lab.lessons.n08_ppo.reward_film import RewardFilm
from llama2lab.lessons.n09_gatt.ghost_picture import GhostPicture
from llama2lab.lessons.n09_gatt.ghost_rows import GhostRows, training_row
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.run.gold import gold_pairs, guidelines
from llama2lab.town.town import load_town

pytestmark = pytest.mark.browser
real.skip_without_browser()

PICTURES: dict[str, Callable[[Finished], Picture]] = {
    "recipe map": lambda lab: recipe_map(lab, current="06"),
    "claims": lambda lab: claims_plot("06"),
    "byte pairs": lambda lab: BpeMachine(town_text(lab.town)),
    "RoPE": RopeClocks,
    "flow": TransformerFlow,
    "GAE": lambda lab: GaeByHand(lab.measured(five_tokens)),
    "clip": lambda lab: ClipCurve(clip_data(lab)),
    "PPO, live": lambda lab: PpoView(Run(), shown=[full_row(0), full_row(1)], shown_beta=0.1),
    "film": lambda lab: RewardFilm(lab.measured(hacking)),
    "ghost": GhostPicture,
    "ghost rows": lambda lab: GhostRows(lab, training_row(lab)),
    "choice": lambda lab: ask(WHY_ROOT),
    "number": lambda lab: ask(CACHE_SIZE),
    "guess": lambda lab: sealed(FIRST_TALK, 0.7).question,
    "order": lambda lab: sealed(BY_GRADE, {"sig": 0.9, "better": 0.8, "slightly": 0.6, "neg": 0.5}).question,
}
# What concerns a whole page, and not what stands in it.
PAGE_RULES = {rule: {"enabled": False} for rule in ("document-title", "html-has-lang", "landmark-one-main", "region")}


def faults(page: Any) -> list[str]:
    """What axe holds for serious or critical, a line each."""
    found = Axe().run(page, options={"resultTypes": ["violations"], "rules": PAGE_RULES}).response["violations"]
    return [
        f"{one['id']}: {node['target']} {' '.join(node['failureSummary'].split())[:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]


@pytest.fixture(scope="module")
def browser():
    with real.chromium() as running:
        yield running


@pytest.mark.parametrize("name", PICTURES)
def test_axe_finds_nothing_serious_in(name, browser, lab):
    picture = PICTURES[name](lab)
    found = {}
    for scheme in ("light", "dark"):
        with real.page_of(browser, reduced_motion="reduce", color_scheme=scheme) as page:
            page.set_viewport_size({"width": 700 if scheme == "dark" else 1100, "height": 900})
            mount(page, picture)
            if scheme == "dark":
                page.evaluate("document.body.style.background = '#111'")
            found[scheme] = faults(page)
    assert found == {"light": [], "dark": []}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_annotation_form(scheme, browser, tmp_path):
    with open_store(tmp_path / "labels.db") as store:
        store.add_guidelines("helpfulness", guidelines(load_town(), "helpfulness"))
        add_pairs(store, gold_pairs(load_town(), 4, "helpfulness", 0), seed=3)
    with real.page_of(browser, color_scheme=scheme) as page:
        widget_page.mount(page, AnnotationForm(tmp_path / "labels.db", "ada", kind="helpfulness"))
        real.Form(page).wait("item", "guidelines")
        assert faults(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_teachers_desk(scheme, browser, path):
    with real.page_of(browser, color_scheme=scheme) as page:
        page.set_viewport_size({"width": 700 if scheme == "dark" else 1100, "height": 900})
        widget_page.mount(page, TeacherView(path, "Ms Hill"))
        page.locator(".l2d-votes li").first.wait_for()
        assert faults(page) == []


def test_a_serious_fault_is_found(browser):
    with real.page_of(browser) as page:
        page.set_content('<div id="here"><button></button><p style="color: #ccc; background: #fff">faint</p></div>')
        assert {line.partition(":")[0] for line in faults(page)} == {"button-name", "color-contrast"}
