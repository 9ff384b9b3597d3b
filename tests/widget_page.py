"""A widget of the annotation system on a page of its own, wired to its Python side without JupyterLab and without a
kernel: what browser tests of its looks and keys stand on."""

from __future__ import annotations

import json
from typing import Any

ADDRESS = "http://widget.test/"  # nothing listens there: the page is handed to the browser
FRONT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>widget</title>
<meta name="viewport" content="width=device-width"><style>%s</style><body><main id="here"></main><script type="module">
%s
const state = %s;
const heard = new Set();
const model = { get: (name) => state[name], set() {}, save_changes() {}, off: (name, what) => heard.delete(what),
                on: (name, what) => { if (name === "msg:custom") heard.add(what); },
                send: (message) => window.toPython(message).then((all) => all.forEach(answered)) };
const answered = (message) => heard.forEach((what) => what(message));
window.parts = { %s };
WIDGET.initialize?.({ model });
WIDGET.render({ model, el: document.getElementById("here") });
</script></body></html>"""


def mount(page: Any, widget: Any, parts: str = "") -> None:
    """Shows the widget on a page of `annotation_browser.page_of` that has shown none before. `parts`: names in its
    script that the test wants, as window.parts."""
    sent: list[dict[str, Any]] = []
    widget.send = lambda content, buffers=None: sent.append(json.loads(json.dumps(content)))

    def ask(content: dict[str, Any]) -> list[dict[str, Any]]:
        sent.clear()
        widget._receive(widget, content, [])
        return list(sent)

    page.expose_function("toPython", ask)
    script = str(widget._esm).replace("export default", "const WIDGET =")
    state = {name: getattr(widget, name) for name in ("_session", "_config") if name in widget.traits()}
    body = FRONT % (widget._css, script, json.dumps(state).replace("<", "\\u003c"), parts)
    page.route(ADDRESS, lambda route: route.fulfill(content_type="text/html", body=body))
    page.goto(ADDRESS)
