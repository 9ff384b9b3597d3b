"""A picture alone on a page, without JupyterLab: what tests of RoPE clocks and transformer flow stand on."""

from __future__ import annotations

from typing import Any

from llama2lab.lab.picture import Picture

MOUNT = """async ([script, data]) => {
    const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    const state = { data }, model = { get: (name) => state[name], set() {}, on() {}, off() {}, save_changes() {} };
    (await import(address)).default.render({ model, el: document.getElementById("here") });
}"""


def mount(page: Any, picture: Picture, **changed: Any) -> None:
    """Draws the picture, its data `changed`, on an empty page; `page.errors` (`annotation_browser.page_of`) holds what
    goes wrong."""
    page.set_content(f'<!doctype html><style>{picture._css}</style><div id="here"></div>')
    page.evaluate(MOUNT, [picture._esm, picture.data | changed])
    page.locator(".l2p h3").wait_for()


def rest(picture: Picture, **changed: Any) -> str:
    """The picture at rest with its data `changed`."""
    whole = picture.data
    picture.data = whole | changed
    try:
        return picture.static()
    finally:
        picture.data = whole
