"""`llama2lab annotate`: the application through Voila, with a kernel for each visitor.

The store's URL goes to the kernels through the environment and nowhere else, since it may hold a password. How many
visitors there may be, and under which names they come, is the server's business (room.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from llama2lab.annotation.form.app import SETTINGS_VARIABLE, URL_VARIABLE
from llama2lab.annotation.form.standing import Settings
from llama2lab.annotation.form.widget import HERE
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS

STORE_VARIABLE = "LLAMA2LAB_ANNOTATIONS"  # of the command line; the kernels need it not
NOTEBOOK = HERE / "app.ipynb"
TEMPLATE = "llama2lab"
# A kernel whose page is gone ends after this long; one whose page is open stays. Browsers that lost the network try for
# about two minutes to come back.
GONE_SECONDS = 120
KERNEL_MB = 80  # what one visitor takes, measured: 61 of its own and a share of what all have in common
MOST_VISITORS = 100
STOP_SECONDS = 10


def annotate(
    url: str | os.PathLike[str],
    host: str = "127.0.0.1",
    port: int = 8866,
    *,
    settings: Settings | None = None,
    open_browser: bool = False,
    base_url: str = "/",
    visitors: int | None = None,
    names: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> None:
    """Serve the annotation form until Ctrl-C. The store must be there and hold pairs.

    `visitors` is how many may be there at once (None: what the memory holds), `names` under which names browsers may
    reach the form beside this machine's own.
    """
    location = parse_url(url).render_as_string(hide_password=False)
    with open_store(url, create=False) as store:
        waiting, kinds = _pairs(store)
        settings = settings or Settings()
        settings = replace(settings, name=settings.name or whose(store, os.environ))
        where = store.where
    if not waiting:
        raise LabError(f"{where} holds no pairs yet; put some in first")
    check_port(host, port)
    if not base_url.startswith("/") or not base_url.endswith("/"):
        raise LabError(f"the base URL begins and ends with a slash, not {base_url!r}")
    visitors = room_for() if visitors is None else visitors
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}{base_url}"

    def started() -> None:
        say(f"the form: {address}   ({waiting} pairs: {', '.join(kinds)}; {where}; stop with Ctrl-C)")
        say(
            f"room for {visitors} visitors at once; change it with --visitors"
            + (f"; whoever comes is {settings.name}" if settings.name else "")
        )
        if host not in ("127.0.0.1", "localhost", "::1"):
            say(
                "anybody who reaches this machine can use the form; there is no encryption. It answers to numbers, to "
                "this machine's name, and to what --server-name gives"
            )
        if open_browser:
            webbrowser.open(address)

    with tempfile.TemporaryDirectory(prefix="llama2lab-annotate-") as folder:
        words = command(host, port, base_url, visitors, [*hub_names(os.environ), *names])
        run(words, prepare(Path(folder)), environment(location, settings, Path(folder)), started)


def run(command: Sequence[str], folder: Path, environ: Mapping[str, str], started: Callable[[], None]) -> None:
    """Voila until Ctrl-C; `started` is called as soon as it runs."""
    # The pipe closes when this process ends, in whatever way: the server then ends too.
    process = subprocess.Popen(
        [*command, "--Room.ends_with_stdin=True"], cwd=folder, stdin=subprocess.PIPE, env=dict(environ)
    )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        started()
        code = process.wait()
    except KeyboardInterrupt:
        code = 0
    finally:
        signal.signal(signal.SIGTERM, before)
        _stop(process)
    if code:
        raise LabError(f"Voila ended with code {code}; what it said stands above")


def hub_names(environ: Mapping[str, str]) -> list[str]:
    """The name of the JupyterHub that this runs on, which stands in the browsers' address line."""
    found = (urlsplit(environ.get(key, "")).hostname for key in ("JUPYTERHUB_PUBLIC_URL", "JUPYTERHUB_PUBLIC_HUB_URL"))
    return [name for name in found if name]


def whose(store: Store, environ: Mapping[str, str]) -> str | None:
    """The one person whose form it is: the login's of a class on PostgreSQL, or the user's of a JupyterHub."""
    return store.login() or environ.get("JUPYTERHUB_USER") or None


def prepare(folder: Path, notebook: Path = NOTEBOOK) -> Path:
    """Voila's folder, which holds nothing else: it serves what lies beside the notebook. And its page."""
    shutil.copytree(HERE / "template", folder / "share" / "voila" / "templates" / TEMPLATE)
    served = folder / "served"
    served.mkdir()
    shutil.copy(notebook, served / "annotate.ipynb")
    return served


def command(
    host: str, port: int, base_url: str, visitors: int = 20, names: Sequence[str] = (), gone_seconds: int = GONE_SECONDS
) -> list[str]:
    return [
        *(sys.executable, "-m", "llama2lab.annotation.form.room", "annotate.ipynb", "--no-browser"),
        f"--port={port}",
        f"--Voila.ip={host}",
        "--Voila.port_retries=0",
        f"--Voila.base_url={base_url}",
        "--Voila.log_level=WARN",
        # Other extensions of JupyterLab that happen to be installed (nbgrader's, the notebook's) have no place in
        # this page, and fail in it.
        *(
            f"--VoilaConfiguration.extension_allowlist={name}"
            for name in ("@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8", "anywidget")
        ),
        f"--template={TEMPLATE}",
        "--VoilaConfiguration.allow_template_override=NO",
        "--VoilaConfiguration.allow_theme_override=NO",
        "--show_tracebacks=False",
        f"--Kernels.room={visitors}",
        f"--MappingKernelManager.cull_idle_timeout={gone_seconds}",
        f"--MappingKernelManager.cull_interval={max(1, gone_seconds // 10)}",
        "--MappingKernelManager.cull_busy=True",
        *(f"--Room.names={name}" for name in names),
    ]


def room_for() -> int:
    """How many visitors this machine's memory holds beside what runs already."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**21  # half of what there is
        except (AttributeError, OSError, ValueError):  # Windows
            free = 4096
    return max(1, min(MOST_VISITORS, int(0.8 * free / KERNEL_MB)))


def environment(location: str, settings: Settings, folder: Path) -> dict[str, str]:
    return voila_environment({URL_VARIABLE: location, SETTINGS_VARIABLE: json.dumps(asdict(settings))}, folder)


def voila_environment(ours: Mapping[str, str], folder: Path) -> dict[str, str]:
    paths = [str(folder / "share"), os.environ.get("JUPYTER_PATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != STORE_VARIABLE}
    jupyter = {"JUPYTER_PATH": os.pathsep.join(p for p in paths if p), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return {**kept, **ours, **jupyter}


def _pairs(store: Store) -> tuple[int, list[str]]:
    """How many pairs there are, of which kinds. A class's login sees the pairs that it was given, and may count those
    that wait for it."""
    name = store.login()
    if name is None:
        with store.begin(read=True) as conn:
            shown = sa.or_(t.items.c.overlap > 0, t.secrets.c.gold_choice.is_not(None))  # others are set aside
            of_kinds = sa.select(t.items.c.kind, sa.func.count()).outerjoin(t.secrets).where(shown)
            of_kinds = of_kinds.group_by(t.items.c.kind)
            counts: dict[str, int] = dict(conn.execute(of_kinds).tuples().all())
    else:
        found = {kind: queue.progress(store, store.annotator(name), kind) for kind in KINDS}
        counts = {kind: one.done + one.skipped + one.open for kind, one in found.items()}
    return sum(counts.values()), sorted(kind for kind, number in counts.items() if number)


def check_port(host: str, port: int) -> None:
    try:
        family = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as e:
        raise LabError(f"port {port} of {host} cannot be used ({e.strerror or e}); choose another with --port") from e


def _interrupt(*_: Any) -> None:
    """Whoever ends this process ends Voila with it, as with Ctrl-C."""
    raise KeyboardInterrupt


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Voila without the visitors' kernels left behind: they end when it does."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
