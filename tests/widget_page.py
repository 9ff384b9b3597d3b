"""A widget of the annotation system on a page of its own, wired to its Python side without JupyterLab and without a
kernel: what browser tests of its looks and keys stand on."""

from __future__ import annotations

import json
from typing import Any

FRONT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>widget</title><style>%s</style><body>
<main id="here"></main><script type="module">
%s
const state = %s;
const heard = new Set();
const model = { get: (name) => state[name], set() {}, save_changes() {}, on: (name, what) => heard.add(what),
                off: (name, what) => heard.delete(what),
                send: (message) => window.toPython(message).then((all) => all.forEach(tell)) };
const tell = (message) => heard.forEach((what) => what(message));
WIDGET.initialize?.({ model });
WIDGET.render({ model, el: document.getElementById("here") });
</script></body></html>"""


def mount(page: Any, widget: Any) -> None:
    """Shows the widget on a page that has shown none before; `page.errors` holds what goes wrong."""
    sent: list[dict[str, Any]] = []
    widget.send = lambda content, buffers=None: sent.append(json.loads(json.dumps(content)))

    def ask(content: dict[str, Any]) -> list[dict[str, Any]]:
        sent.clear()
        widget._receive(widget, content, [])
        return list(sent)

    page.expose_function("toPython", ask)
    script = str(widget._esm).replace("export default", "const WIDGET =")
    state = {name: getattr(widget, name) for name in ("_session", "_config") if name in widget.traits()}
    page.set_content(FRONT % (widget._css, script, json.dumps(state).replace("<", "\\u003c")))
