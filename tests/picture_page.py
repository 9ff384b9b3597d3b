"""A picture alone on a page, without JupyterLab and without a kernel: what browser tests of a drawing stand on."""

from __future__ import annotations

import json
from typing import Any

from llama2lab.lab.picture import Picture

FRONT = """<!doctype html><meta charset="utf-8"><style>%s</style><body><div id="here"></div><script type="module">
%s
const state = { data: %s };
const model = { get: (name) => state[name], set() {}, on() {}, off() {}, save_changes() {} };
WIDGET.render({ model, el: document.getElementById("here") });
</script>"""


def draw(page: Any, kind: type[Picture] | Picture, data: dict[str, Any]) -> None:
    """Draws `data` as a picture of that kind; `page.errors` (`annotation_browser.page_of`) holds what goes wrong."""
    script = str(kind._esm).replace("export default", "const WIDGET =")
    page.set_content(FRONT % (kind._css, script, json.dumps(data).replace("<", "\\u003c")))
    page.locator(".l2p-title, .l2p h3").first.wait_for()


def mount(page: Any, picture: Picture, **changed: Any) -> None:
    """Draws the picture with its own data, some of them changed."""
    draw(page, picture, picture.data | changed)


def rest(picture: Picture, **changed: Any) -> str:
    """The picture at rest with its data, some of them changed."""
    whole = picture.data
    picture.data = whole | changed
    try:
        return picture.static()
    finally:
        picture.data = whole


def focused(page: Any) -> str:
    """The text of what has the focus."""
    return page.evaluate("document.activeElement.textContent")
