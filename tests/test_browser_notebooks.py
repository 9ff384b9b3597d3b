"""The notebooks in a real JupyterLab, in headless Chromium: Run All, then their widgets driven with the keyboard.

LLAMA2LAB_LIVE names what notebooks have measured before (`.ci/run` runs them first), so that they are quick here;
LLAMA2LAB_SHOTS names a folder for pictures of every notebook and widget, light and dark.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotation_browser as real
import pytest
from test_plots_browser import TEXTS, mixed, unreadable

from llama2lab.cli.notebooks import NAMES, NOTEBOOKS
from llama2lab.lab.finished import RUN

pytestmark = pytest.mark.browser
real.skip_without_browser()

# Read at import: fixtures give every test an empty folder.
GIVEN = {name: os.environ[name] for name in (RUN, "LLAMA2LAB_LIVE") if name in os.environ}
RUN_ALL_SECONDS = 1200


@dataclass(frozen=True)
class Drive:
    """A control of a widget and what is done to it: `text` is typed in place of what it holds, `keys` are pressed.
    What the widget `shows` must then change."""

    widget: str  # its title, or a CSS selector that begins with a point
    control: str  # the control's label; none for the widget itself
    keys: tuple[str, ...] = ("ArrowRight",)
    text: str = ""
    shows: str = ".widget-html-content"


CHOOSE_NEXT = ("Space", "ArrowDown", "Enter")  # in a list that opens

GUESS = ".l2ask:has(input[type=range])"

DRIVES: dict[str, tuple[Drive, ...]] = {
    "00_start_here": (
        Drive("Talk to two models", "message", ("Enter",), "What is 2 plus 3?"),
        Drive("Sampling playground", "temperature"),
        Drive("Sampling playground", "Next token", ("Enter",)),
        Drive(GUESS, "your guess", shows=":scope *"),
        Drive(GUESS, "Lock my guess", ("Enter",), shows=".l2ask-says"),
    ),
    "01_tokenizer_and_data": (
        Drive("Tokenizer explorer", "text", (), "Unbelievable 1984"),
        Drive("Tokenizer explorer", "vocabulary", ("ArrowLeft",)),
    ),
    "02_transformer": (
        Drive("Attention explorer", "layer"),
        Drive("Attention explorer", "tokens so far", ("ArrowLeft",)),
        Drive("GQA and cache calculator", "KV heads of GQA"),
    ),
    "03_pretraining": (
        Drive("What one training step reads", "tokens a row"),
        Drive(".l2w", "Start", ("Enter",), shows=".l2w-said"),
        Drive(".l2w", "Stop", ("Enter",), shows=".l2w-said"),
    ),
    "04_supervised_finetuning": (
        Drive("Which tokens are learnt", "conversation", ("Space", "End", "Enter")),
        Drive("Which tokens are learnt", "the loss counts", CHOOSE_NEXT),
        Drive(".l2w", "Start", ("Enter",), shows=".l2w-said"),
        Drive(".l2w", "Stop", ("Enter",), shows=".l2w-said"),
    ),
    "05_preferences": (Drive(".l2a", "", ("?",), shows=":scope *"), Drive("A choice, or two scores?", "carelessness")),
    "06_reward_models": (
        Drive("Reward explorer", "prompt", CHOOSE_NEXT),
        Drive("Margin explorer", "gap, chosen less rejected"),
    ),
    "07_rejection_sampling": (
        Drive("Best of K", "K", ("ArrowLeft",)),
        Drive("Best of K", "reveal what is true", ("Space",)),
    ),
    "08_ppo": (
        Drive(".l2w", "Start", ("Enter",), shows=".l2w-said"),
        Drive(".l2w", "Stop", ("Enter",), shows=".l2w-said"),
    ),
    "09_ghost_attention": (
        Drive("Ghost Attention", "turns", ("ArrowLeft",)),
        Drive("Ghost Attention", "attention", CHOOSE_NEXT),
    ),
    "10_five_rounds": (
        Drive("Five versions", "version", ("ArrowLeft",)),
        Drive("Five versions", "prompt", CHOOSE_NEXT),
    ),
    "11_evaluation": (Drive("Cost and energy calculator", "GPU hours", (), "1000"),),
    "12_safety": (Drive("Red team", "Ask the model", ("Enter",)),),
    "13_what_it_would_take": (),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with real.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Lab]:
    """A JupyterLab on a copy of the notebooks, as `make lab` starts it."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder, dirs_exist_ok=True)
    env = {"LLAMA2LAB_LIVE": str(folder / "live"), **GIVEN, "LLAMA2LAB_PROGRESS": str(folder)}
    with real.jupyter_lab(folder, "--LabApp.expose_app_in_browser=True", **env) as url:
        yield real.Lab(url, folder)


def run_all(lab: real.Lab, page: Any, notebook: str) -> None:
    """Opens a notebook and runs all of its cells; none may end with an error."""
    lab.open(page, notebook, cells=0)
    page.evaluate("""() => {
        window.ended = null;
        jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ended = true; });
    }""")
    page.wait_for_function("() => window.ended", timeout=RUN_ALL_SECONDS * 1000)
    lab.idle(page)
    errors = page.evaluate("""() => jupyterapp.shell.currentWidget.content.widgets.flatMap((cell, number) =>
        (cell.model.outputs?.toJSON() ?? []).filter(o => o.output_type === 'error')
            .map(o => `cell ${number}: ${o.ename}: ${o.evalue}`))""")
    assert errors == []


def widget(page: Any, title: str) -> Any:
    """The innermost box with this title."""
    box = (
        page.locator(f".jp-Notebook {title}").first
        if title.startswith(".")
        else page.locator(".jp-Notebook .widget-vbox").filter(has=page.locator("strong", has_text=title)).last
    )
    box.wait_for()
    box.scroll_into_view_if_needed()
    return box


def control(box: Any, label: str) -> Any:
    """What takes the keys in the control with this label."""
    if not label:
        return box
    button = box.get_by_role("button", name=re.compile(rf"^\W*{re.escape(label)}$"))  # an icon's glyph comes first
    words = box.locator("label").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
    button.or_(words).first.wait_for(state="attached")
    if button.count():
        return button.first
    return words.last.locator("xpath=..").locator("[role=slider], select, textarea, input, button").first


def shown(box: Any, selector: str) -> str:
    """The inner HTML of what it shows."""
    return box.evaluate("(e, what) => [...e.querySelectorAll(what)].map(x => x.innerHTML).join('\\n')", selector)


def drive(page: Any, one: Drive) -> None:
    box = widget(page, one.widget)
    target = control(box, one.control)
    real.until(target.is_enabled, f"{one.control!r} of {one.widget!r} can be used")  # Stop: once the kernel has begun
    before = shown(box, one.shows)
    target.focus()
    if one.text:
        page.keyboard.press("Control+a")
        page.keyboard.type(one.text)
    for key in one.keys:
        page.keyboard.press(key)
    if one.text and not one.keys:
        page.keyboard.press("Tab")
    real.until(lambda: shown(box, one.shows) != before, f"{one.widget!r} changes with {one.control!r}")


def quiet(page: Any) -> None:
    """No error in the browser's console, but for what JupyterLab itself is known to say, and anywidget of a picture
    that took more than two seconds on a busy machine: one that never comes up fails where it is driven."""
    known = ("favicon", "Failed to load resource", "ResizeObserver loop", "[anywidget] Failed to initialize model.")
    assert [e for e in page.errors if not any(k in e for k in known)] == []


def theme(page: Any, name: str) -> None:
    page.evaluate("name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    page.wait_for_function("dark => document.body.dataset.jpThemeLight === String(!dark)", arg="Dark" in name)


def pictures(page: Any, name: str, drives: tuple[Drive, ...]) -> None:
    """The whole notebook and each driven widget, light, dark and narrow, where somebody wants to see them."""
    if not os.environ.get("LLAMA2LAB_SHOTS"):
        return
    folder = Path(os.environ["LLAMA2LAB_SHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    if page.evaluate("jupyterapp.shell.leftCollapsed") is False:
        page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    size = page.viewport_size
    for look, colour, width in (("light", "Light", 1100), ("dark", "Dark", 1100), ("narrow", "Dark", 700)):
        theme(page, f"JupyterLab {colour}")
        page.set_viewport_size({"width": width, "height": size["height"]})
        for number, one in enumerate(drives):
            widget(page, one.widget).screenshot(path=str(folder / f"{name}-{number}-{look}.png"))
        height = page.evaluate(
            "(e => { e.scrollTop = 0; return e.scrollHeight; })(document.querySelector('.jp-WindowedPanel-outer'))"
        )
        page.set_viewport_size({"width": width, "height": min(16000, height + 200)})
        page.wait_for_timeout(1500)  # cells that were out of sight are drawn
        page.screenshot(path=str(folder / f"{name}-{look}.png"))
        page.set_viewport_size(size)
    theme(page, "JupyterLab Light")


# The active cell, and how far the notebook is scrolled.
PLACE = """() => [[...document.querySelectorAll('.jp-Notebook .jp-Cell')].findIndex(c => c.matches('.jp-mod-active')),
    document.querySelector('.jp-WindowedPanel-outer').scrollTop]"""


@pytest.mark.parametrize("name", [name for name in NAMES if (NOTEBOOKS / f"{name}.ipynb").exists()])
def test_a_notebook_runs_and_its_widgets_answer(lab: real.Lab, browser: Any, name: str) -> None:
    with real.page_of(browser) as page:
        run_all(lab, page, f"{name}.ipynb")
        assert page.evaluate(PLACE) == [0, 0], "Run All keeps the place"
        for one in DRIVES[name]:
            drive(page, one)
        quiet(page)
        pictures(page, name, DRIVES[name])


# ---- what all widgets stand on -----------------------------------------------------------------------------------

EXPLORER = """import ipywidgets as w
from llama2lab.lab.explorer import Explorer, slider, steps
size = slider("Size", 3, 1, 9)
long = slider("annotators differ in strictness", 1.0, 0.0, 3.0, 0.25)
some = steps("KV heads of GQA", [("one", 1), ("two of many more (the run's)", 2)], 2)
name = w.Text("Ada", description="Name", continuous_update=False)
kind = w.Dropdown(options=["one", "two"], description="Kind")
bold = w.Checkbox(False, description="Bold")
more = w.Button(description="More", tooltip="Adds one")
more.count = 0
class Demo(Explorer):
    def draw(self):
        return f"<p>size {size.value} name {name.value} kind {kind.value} bold {bold.value} more {more.count}</p>"
demo = Demo("A demo", [size, long, some, name, kind, bold, more])
def add(_):
    more.count += 1
    demo.redraw()
more.on_click(add)
demo"""

DEMO = (
    Drive("A demo", "Size"),
    Drive("A demo", "Name", (), "Bob"),
    Drive("A demo", "Name", ("Enter",), "Eve"),
    Drive("A demo", "Kind", CHOOSE_NEXT),
    Drive("A demo", "Bold", ("Space",)),
    Drive("A demo", "More", ("Enter",)),
)


def test_an_explorer_is_used_with_the_keyboard(lab: real.Lab, browser: Any) -> None:
    real.write_notebook(lab.folder / "explorer.ipynb", EXPLORER)
    with real.page_of(browser) as page:
        run_all(lab, page, "explorer.ipynb")
        for one in DEMO:
            drive(page, one)
        text = widget(page, "A demo").locator("p").inner_text()
        assert text == "size 4 name Eve kind two bold True more 1"
        assert sliders(widget(page, "A demo")) == [
            ["Size", "4"],
            ["annotators differ in strictness", "1.00"],
            ["KV heads of GQA", "two of many more (the run's)"],
        ]
        quiet(page)
        pictures(page, "explorer", DEMO[:1])


def sliders(box: Any) -> list[list[str]]:
    """(name, value) of each slider, as a screen reader says them; every one has 120 px to move in."""
    found = box.evaluate("""e => [...e.querySelectorAll('[role=slider]')].map(h => [h.getAttribute('aria-label'),
        h.getAttribute('aria-valuetext'), h.closest('.noUi-target').getBoundingClientRect().width])""")
    assert all(track >= 120 for *_, track in found), found
    return [[name, value] for name, value, _ in found]


FIGURE = """from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.shown import show
show({"a": {"chat": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 9}}}, "start", "accuracy", chance=0.5)"""


def test_the_texts_of_a_figure_follow_the_theme(lab: real.Lab, browser: Any) -> None:
    """The style sheet comes with any picture; here with the claims, as with the recipe map in each notebook."""
    real.write_notebook(lab.folder / "figure.ipynb", FIGURE, 'claims_plot("06")')
    with real.page_of(browser) as page:
        run_all(lab, page, "figure.ipynb")
        page.locator(".jp-Notebook .infolayer text").first.wait_for(state="attached")
        page.locator(".l2p").wait_for()
        for name in ("JupyterLab Light", "JupyterLab Dark"):
            theme(page, name)
            texts = page.evaluate(TEXTS, ".jp-Notebook .main-svg text")
            ground = page.evaluate("getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor")
            assert len(texts) >= 5 and unreadable(texts, mixed(ground, 1.0, "#000000")) == []
        theme(page, "JupyterLab Light")


TRAINING = """import time, torch
from pathlib import Path
from llama2lab.engine.device import Machine
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.stages.pretrain import fit_packed
model = Llama(ModelConfig(32, 16, 1, 2, 1, 24, max_seq_len=32), seed=1)
data = pack([([i % 32] * 9, [1] * 9) for i in range(64)], 32, 0, 3)
def on_step(step):
    Path("steps.txt").open("a").write(f"{step}\\n")
    while step >= 8 and not Path("closed.txt").exists():
        time.sleep(0.05)
log = fit_packed(model, data, 4, 32, Optim(1e-3), 0, Machine(torch.device("cpu"), "fp32"), Path("training"),
                 on_step=on_step)
Path("ended.txt").write_text(str(len(log)))"""


def test_closing_the_browser_in_the_middle_of_training_loses_nothing(lab: real.Lab, browser: Any) -> None:
    real.write_notebook(lab.folder / "training.ipynb", TRAINING, "len(log)")
    steps, ended = lab.folder / "steps.txt", lab.folder / "ended.txt"
    with real.page_of(browser) as page:
        lab.open(page, "training.ipynb", cells=1)
        real.until(lambda: steps.exists() and len(steps.read_text().split()) > 3, "the training has begun")
    assert not ended.exists()
    (lab.folder / "closed.txt").touch()
    real.until(ended.exists, "the training goes on without the browser")
    assert [int(s) for s in steps.read_text().split()] == list(range(int(ended.read_text())))
    with real.page_of(browser) as page:
        lab.open(page, "training.ipynb", cells=0)
        cell = page.locator(".jp-Notebook .jp-CodeCell").nth(1)
        lab.command_mode(page)
        page.keyboard.press("ArrowDown")
        lab.run_cell(page, 1)
        real.until(
            lambda: cell.locator(".jp-OutputArea-output").inner_text().strip() == ended.read_text(),
            "the kernel still knows what it trained",
        )
