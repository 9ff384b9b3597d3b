"""A picture alone on a page, without JupyterLab and without a kernel: what browser tests of a drawing stand on."""

from __future__ import annotations

import json
from typing import Any

from llama2lab.lab.picture import Picture

FRONT = """<!doctype html><meta charset="utf-8"><style>%s</style><body><div id="here"></div><script type="module">
%s
const state = %s, heard = {};
window.sent = [];
window.change = (name, value) => {
  state[name] = value;
  (heard[`change:${name}`] ?? []).forEach((listen) => listen());
};
const model = { get: (name) => state[name], set() {}, off() {}, save_changes() {},
  send: (message) => sent.push(message), on: (name, listen) => (heard[name] ??= []).push(listen) };
WIDGET.render({ model, el: document.getElementById("here") });
</script>"""


def draw(page: Any, kind: type[Picture] | Picture, data: dict[str, Any], **more: Any) -> None:
    """Draws `data`, and what else it shares with its page, as a picture of that kind; `page.errors`
    (`annotation_browser.page_of`) holds what goes wrong."""
    script = str(kind._esm).replace("export default", "const WIDGET =")
    page.set_content(FRONT % (kind._css, script, json.dumps({"data": data, **more}).replace("<", "\\u003c")))
    page.locator(".l2p-title, .l2p h3").first.wait_for()


def mount(page: Any, picture: Picture, **changed: Any) -> None:
    """Draws the picture with its own data, some of them changed, and what else it shows its page."""
    more = {"shown": picture.shown} if picture.has_trait("shown") else {}
    draw(page, picture, picture.data | changed, **more)


def change(page: Any, name: str, value: Any) -> None:
    """As if the kernel had set what it shares with the page."""
    page.evaluate("([name, value]) => window.change(name, value)", [name, value])


def sent(page: Any) -> list[Any]:
    """The messages that the page has sent to the kernel."""
    return page.evaluate("window.sent")


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
