"""The annotation form in a page of its own: the real front end, and behind it the real Python form of this process,
without JupyterLab and without a kernel."""

from __future__ import annotations

import json
from typing import Any

import annotation_browser as real

from llama2lab.annotation.form.widget import AnnotationForm

ADDRESS = "http://form.test/"  # nothing listens there: the page is handed to the browser
FRONT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>form</title>
<meta name="viewport" content="width=device-width"><style>%s</style><body><div id="here"></div><script type="module">
%s
const state = %s, heard = [];
const model = { get: (name) => state[name], set() {}, save_changes() {}, off() {},
  on(name, what) { if (name === "msg:custom") heard.push(what); },
  send(message) { window.toPython(message).then((answer) => heard.forEach((what) => what(answer))); } };
window.parts = { differences, Pace, markedText };
WIDGET.render({ model, el: document.getElementById("here") });
</script></html>"""


def mount(page: Any, form: AnnotationForm) -> real.Form:
    """Shows the form on a page of `annotation_browser.page_of`."""
    said: list[Any] = []
    form.send = lambda content, buffers=None: said.append(json.loads(json.dumps(content)))  # type: ignore

    def receive(message: Any) -> Any:
        said.clear()
        form._receive(form, message, [])
        return said[-1]

    page.expose_function("toPython", receive)
    script = str(form._esm).replace("export default", "const WIDGET =")
    state = json.dumps({"_session": form._session, "_config": form._config}).replace("<", "\\u003c")
    page.route(ADDRESS, lambda route: route.fulfill(content_type="text/html", body=FRONT % (form._css, script, state)))
    page.goto(ADDRESS)
    page.locator(".l2a").wait_for()
    return real.Form(page)
