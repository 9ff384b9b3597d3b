"""A picture alone on a page, without JupyterLab: what a browser test of a picture's own drawing stands on."""

from __future__ import annotations

import json
from typing import Any

from llama2lab.lab.picture import Picture

FRONT = """<!doctype html><meta charset="utf-8"><style>%s</style><body><div id="here"></div><script type="module">
%s
const model = { get: () => %s, set() {}, on() {}, off() {}, save_changes() {} };
WIDGET.render({ model, el: document.getElementById("here") });
</script>"""


def mount(page: Any, picture: Picture) -> None:
    """Draws the picture on an empty page; `page.errors` (`annotation_browser.page_of`) holds what goes wrong."""
    data = json.dumps(picture.data).replace("<", "\\u003c")
    script = picture._esm.replace("export default", "const WIDGET =")
    page.set_content(FRONT % (Picture._css, script, data))
    page.locator(".l2p h3").wait_for()
