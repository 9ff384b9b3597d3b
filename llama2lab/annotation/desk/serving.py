"""`llama2lab labels watch`: the teacher's desk through Voila, on this machine alone and behind a token of its own.

Others who use this machine reach its ports too: without the token, which is in the address that is said, they get
nothing. It goes to the server through the environment, since whoever lists the machine's processes reads command lines.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path

from llama2lab.annotation.desk.view import NAME_VARIABLE, NOTEBOOK, URL_VARIABLE
from llama2lab.annotation.form.serving import check_port, command, prepare, run, voila_environment
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.store import open_store
from llama2lab.annotation.store.verdicts import refuse_annotators

HOST = "127.0.0.1"
PAGES = 4  # at once; each takes a kernel


def watch(
    url: str | os.PathLike[str],
    name: str,
    port: int = 8867,
    *,
    open_browser: bool = False,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> None:
    """Serve the desk of the teacher `name` until Ctrl-C. The store must be there, and the URL no annotator's."""
    name, location = clean_name(name), parse_url(url).render_as_string(hide_password=False)
    with open_store(url, create=False) as store:
        refuse_annotators(store)
        where = store.where
    check_port(HOST, port)
    token = secrets.token_urlsafe(16)
    address = f"http://{HOST}:{port}/?token={token}"

    def started() -> None:
        say(f"the desk of {name}: {address}   ({where}; stop with Ctrl-C)")
        if open_browser:
            webbrowser.open(address)

    with tempfile.TemporaryDirectory(prefix="llama2lab-watch-") as folder:
        ours = {URL_VARIABLE: location, NAME_VARIABLE: name, "JUPYTER_TOKEN": token}
        words = [*command(HOST, port, "/", PAGES), "--Voila.auto_token=True"]
        run(words, prepare(Path(folder), NOTEBOOK), voila_environment(ours, Path(folder)), started)
