"""A picture on an empty page, without JupyterLab and without a kernel: what browser tests of a drawing stand on."""

from __future__ import annotations

import json
from typing import Any

FRONT = """<!doctype html><meta charset="utf-8"><style>%s</style><body><div id="here"></div><script type="module">
%s
const model = { get: () => %s, set() {}, on() {}, off() {}, save_changes() {} };
WIDGET.render({ model, el: document.getElementById("here") });
</script>"""


def draw(page: Any, kind: Any, data: dict[str, Any]) -> None:
    """Draws `data` as a picture of the class `kind`; `page.errors` (`annotation_browser.page_of`) holds what fails."""
    script = str(kind._esm).replace("export default", "const WIDGET =")
    page.set_content(FRONT % (kind._css, script, json.dumps(data).replace("<", "\\u003c")))
    page.locator(".l2p-title").wait_for()


def focused(page: Any) -> str:
    """The text of what has the focus."""
    return page.evaluate("document.activeElement.textContent")
