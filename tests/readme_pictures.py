"""README's pictures, taken anew from the widgets of the notebooks in a real JupyterLab: `make pictures`.

Each is what its cell shows after the keys that stand beside it, in a window of 1,240 px, light.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotation_browser as real

FOLDER = real.ROOT / "notebooks" / "pictures"
WIDTH = 1240


@dataclass(frozen=True)
class Shot:
    """A widget: the notebook whose names it needs, the line that makes it, what of the page is taken, and the keys that
    are pressed on `control` of it first."""

    notebook: str
    line: str
    takes: str = ".l2p"
    control: str = ""
    keys: tuple[str, ...] = ()


EXPLORER = ".jp-OutputArea-output .widget-vbox"
SHOTS = {
    "recipe_map": Shot("n00_start", 'recipe_map(lab, current="00")'),
    "chat": Shot("n00_start", 'ChatExplorer(lab, ("sft", "rlhf-v5"), stored=opening(lab))', EXPLORER),
    "transformer_flow": Shot("n02_transformer", "TransformerFlow(lab)"),
    "reward_film": Shot("n06_rewards", "RewardFilm(lab.measured(hacking))", ".l2p", "input[type=range]", ("End",)),
    "ghost_attention": Shot("n09_gatt", "GhostPicture(lab)"),
}


def take(lab: real.Lab, page: Any, name: str, one: Shot) -> None:
    lines = f"from llama2lab.notebooks.{one.notebook} import *\n\nlab = finished_run()\n{one.line}"
    real.write_notebook(lab.folder / f"{name}.ipynb", lines)
    lab.open(page, f"{name}.ipynb")
    lab.idle(page)
    box = page.locator(one.takes).first
    box.wait_for()
    if one.keys:
        box.locator(one.control).first.focus()
        for key in one.keys:
            page.keyboard.press(key)
    page.wait_for_timeout(3000)  # what moves by itself at first
    box.screenshot(path=str(FOLDER / f"{name}.png"))
    print(f"{name}: {(FOLDER / f'{name}.png').stat().st_size:,} bytes", flush=True)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        real.chromium() as browser,
        real.jupyter_lab(Path(folder), "--LabApp.expose_app_in_browser=True") as url,
    ):
        for name, one in SHOTS.items():
            with real.page_of(browser, viewport={"width": WIDTH, "height": 1600}) as page:
                take(real.Lab(url, Path(folder)), page, name, one)


if __name__ == "__main__":
    main()
