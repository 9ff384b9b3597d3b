"""The annotation form for people who know no notebooks: `llama2lab annotate` serves it through Voila.

A visitor gives a name, reads the guidelines, tries out some gold pairs, and goes on to the real ones if enough of the
choices agree. An attempt is `number` gold pairs; whoever fails reads again and gets as many *other* gold pairs, up to
`attempts` times, so that nobody passes by trying the same pairs until they fit. Every visitor has a kernel of its own.

A name goes with a personal code (codes.py), unless a JupyterHub or a class's login on PostgreSQL says who it is. The
store's URL goes to the kernels through the environment and nowhere else, since it may hold a password. How many
visitors there may be, and under which names they come, is the server's business (room.py).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llama2lab.annotation.form.widget import HERE, AnnotationForm, Skip, Submit
from llama2lab.annotation.store import codes, queue
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS

URL_VARIABLE = "LLAMA2LAB_ANNOTATE_URL"
STORE_VARIABLE = "LLAMA2LAB_ANNOTATIONS"  # of the command line; the kernels need it not
SETTINGS_VARIABLE = "LLAMA2LAB_ANNOTATE"
NOTEBOOK = HERE / "app.ipynb"
TEMPLATE = "llama2lab"
# A kernel whose page is gone ends after this long; one whose page is open stays. Browsers that lost the network try for
# about two minutes to come back.
GONE_SECONDS = 120
KERNEL_MB = 80  # what one visitor takes, measured: 61 of its own and a share of what all have in common
MOST_VISITORS = 100
STOP_SECONDS = 10
WHERE = "the place where labels are kept"  # what visitors read instead of a path or a URL
OVER = "the pairs of an attempt that is over cannot be changed any more"


@dataclass(frozen=True)
class Settings:
    """What whoever runs the application decides."""

    kind: str | None = None
    seed: int = 0
    number: int = 5  # gold pairs in an attempt; 0: no qualification
    mark: float = 0.8  # the share of them that must agree
    attempts: int = 2
    name: str | None = None  # whose form this is, where that is known; None: visitors say it, and give their code

    def __post_init__(self) -> None:
        if self.number < 0 or self.attempts < 1:
            raise LabError("a qualification has 0 or more pairs and at least one attempt")
        if not 0 <= self.mark <= 1:
            raise LabError(f"the passing mark is a share from 0 to 1, not {self.mark}")


@dataclass(frozen=True)
class Standing:
    """How far a visitor is with the qualification."""

    number: int
    needed: int
    attempts: int
    outcomes: tuple[bool, ...]
    items: tuple[str, ...] = ()  # the gold pairs of the outcomes, where the store tells

    @classmethod
    def of(cls, found: queue.Qualification, settings: Settings) -> Standing:
        """Fewer gold pairs than asked for make a shorter qualification; none, none."""
        number = min(settings.number, found.wanted)
        attempts = min(settings.attempts, found.wanted // number) if number else 0
        return cls(number, math.ceil(settings.mark * number - 1e-9), attempts, found.outcomes, found.items)

    @property
    def complete(self) -> int:
        """Attempts that are over."""
        return min(self.attempts, len(self.outcomes) // self.number) if self.number else 0

    def agreed(self, attempt: int) -> int:
        return sum(self.outcomes[(attempt - 1) * self.number:attempt * self.number])

    @property
    def passed_in(self) -> int:
        """The attempt that was good enough; 0: none so far. Gold pairs after it come among the real ones."""
        return next((k for k in range(1, self.complete + 1) if self.agreed(k) >= self.needed), 0)

    @property
    def passed(self) -> bool:
        return not self.number or self.passed_in > 0

    @property
    def over(self) -> bool:
        return not self.passed and self.complete == self.attempts

    def words(self, attempt: int) -> dict[str, int]:
        """What the page may know: never how many agree while an attempt goes on."""
        done = len(self.outcomes) - (attempt - 1) * self.number
        return {"number": self.number, "needed": self.needed, "attempts": self.attempts, "attempt": attempt,
                "done": min(done, self.number), **({"agreed": self.agreed(attempt)} if done >= self.number else {})}


class Application(AnnotationForm):
    """The annotator's form with a name, a code, guidelines and a qualification before it.

    What it says is read by strangers: nothing about where the store is, and of an unforeseen error only its kind.
    """

    _is_app = True

    def __init__(self, store: Any, settings: Settings = Settings(), **kwargs: Any):
        self._settings = settings
        self._read = False  # whether the visitor has been through the guidelines
        self._trying_again = 0  # the failed attempt after which the visitor chose to go on
        self._was_passed = True
        super().__init__(store, "", settings.kind, settings.seed, **kwargs)
        self._config = {**self._config, "named": settings.name is not None}

    def __repr__(self) -> str:
        return "Application()"

    def _plain_text(self) -> str:
        return "The annotation form. It needs a browser in which scripts may run."

    def _fault_words(self, e: Exception) -> str:
        return f"a fault in the lab itself ({type(e).__name__}); please tell whoever runs this"

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._url, create=False, where=WHERE)
        return self._store

    def _start(self, name: str | None, code: str | None = None) -> dict[str, Any]:
        self._annotator = ""  # whoever was here before
        self._read, self._trying_again = False, 0
        if self._settings.name is not None:
            self._name, first = clean_name(self._settings.name), False
            self._annotator = self._open().annotator(self._name)
        elif name is None:
            return {"stage": "name"}
        else:
            self._name = clean_name(name)
            self._annotator, first = codes.enter(self._open(), self._name, code)
        counts = self._progress()
        self._read = counts.done + counts.skipped > 0
        self._was_passed = self._standing().passed
        return {"stage": "ready", "annotator": self._name, "first": first}

    def _standing(self) -> Standing:
        return Standing.of(queue.qualify(self._open(), self._annotator, kind=self._settings.kind), self._settings)

    def _next(self, wish: str) -> dict[str, Any]:
        standing = self._standing()
        if wish == "begin":
            self._read = True
        elif wish == "again":
            self._trying_again, self._read = standing.complete, False
        if standing.passed:
            if not self._read:
                return {"stage": "guidelines", "qualification": None}
            answer = super()._next(wish)
            if not self._was_passed:
                self._was_passed = True
                answer["banner"] = "You have passed. From here on these are the real pairs. Thank you for helping!"
            return {**answer, "first_index": self._first(standing)}
        if standing.over or standing.complete > self._trying_again:
            return {"stage": "failed", "qualification": standing.words(standing.complete)}
        attempt = standing.words(standing.complete + 1)
        if not self._read:
            return {"stage": "guidelines", "qualification": attempt}
        task = self._claim(gold_first=True)
        return {**self._item(task), "qualification": attempt, "first_index": self._first(standing)}

    def _first(self, standing: Standing) -> int:
        """Attempts that are over cannot be changed any more: they are the visitor's first pairs."""
        return (standing.passed_in or standing.complete) * standing.number

    def _refuse_over(self, item_id: str, label_id: str | None) -> None:
        """LabError for a pair of an attempt that is over, unless it is about the very label that it has."""
        standing = self._standing()
        first, history = self._first(standing), self._history()
        # Gold pairs are the first ones, unless there was no qualification when some pairs were answered.
        over = set(standing.items[:first]) or {past.task.item_id for past in history[:first]}
        if any(past.task.item_id == item_id in over and past.label.label_id != label_id for past in history):
            raise LabError(OVER)

    def _past(self, index: int) -> dict[str, Any]:
        history = self._history()
        if index < len(history):
            self._refuse_over(history[index].task.item_id, None)
        return super()._past(index)

    def _save(self, message: Submit | Skip) -> dict[str, Any]:
        self._refuse_over(message.item_id, message.label_id)
        return super()._save(message)


def application() -> Application:
    """The application that the environment describes: what the packaged notebook shows."""
    url = os.environ.pop(URL_VARIABLE, None)
    if not url:
        raise LabError("this notebook is served by the command: llama2lab annotate URL")
    return Application(url, Settings(**json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))))


def annotate(url: str | os.PathLike[str], host: str = "127.0.0.1", port: int = 8866, *, settings: Settings = Settings(),
             open_browser: bool = False, base_url: str = "/", visitors: int | None = None, names: Sequence[str] = (),
             say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> None:
    """Serve the annotation form until Ctrl-C. The store must be there and hold pairs.

    `visitors` is how many may be there at once (None: what the memory holds), `names` under which names browsers may
    reach the form beside this machine's own.
    """
    location = parse_url(url).render_as_string(hide_password=False)
    with open_store(url, create=False) as store:
        waiting, kinds = _pairs(store)
        settings = replace(settings, name=settings.name or whose(store, os.environ))
        where = store.where
    if not waiting:
        raise LabError(f"{where} holds no pairs yet; put some in first")
    _check_port(host, port)
    if not base_url.startswith("/") or not base_url.endswith("/"):
        raise LabError(f"the base URL begins and ends with a slash, not {base_url!r}")
    visitors = room_for() if visitors is None else visitors
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}{base_url}"
    with tempfile.TemporaryDirectory(prefix="llama2lab-annotate-") as folder:
        # The pipe closes when this process ends, in whatever way: the server then ends too.
        process = subprocess.Popen([*command(host, port, base_url, visitors, [*hub_names(os.environ), *names]),
                                    "--Room.ends_with_stdin=True"], cwd=prepare(Path(folder)), stdin=subprocess.PIPE,
                                   env=environment(location, settings, Path(folder)))
        say(f"the form: {address}   ({waiting} pairs: {', '.join(kinds)}; {where}; stop with Ctrl-C)")
        say(f"room for {visitors} visitors at once; change it with --visitors" + (
            f"; whoever comes is {settings.name}" if settings.name else ""))
        if host not in ("127.0.0.1", "localhost", "::1"):
            say("anybody who reaches this machine can use the form; there is no encryption. It answers to numbers, to "
                "this machine's name, and to what --server-name gives")
        if open_browser:
            webbrowser.open(address)
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
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


def prepare(folder: Path) -> Path:
    """Voila's folder, which holds nothing else: it serves what lies beside the notebook. And its page."""
    shutil.copytree(HERE / "template", folder / "share" / "voila" / "templates" / TEMPLATE)
    served = folder / "served"
    served.mkdir()
    shutil.copy(NOTEBOOK, served / "annotate.ipynb")
    return served


def command(host: str, port: int, base_url: str, visitors: int = 20, names: Sequence[str] = (),
            gone_seconds: int = GONE_SECONDS) -> list[str]:
    return [sys.executable, "-m", "llama2lab.annotation.form.room", "annotate.ipynb", "--no-browser", f"--port={port}",
            f"--Voila.ip={host}", "--Voila.port_retries=0", f"--Voila.base_url={base_url}", "--Voila.log_level=WARN",
            # Other extensions of JupyterLab that happen to be installed (nbgrader's, the notebook's) have no place in
            # this page, and fail in it.
            *(f"--VoilaConfiguration.extension_allowlist={name}"
              for name in ("@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8", "anywidget")),
            f"--template={TEMPLATE}", "--VoilaConfiguration.allow_template_override=NO",
            "--VoilaConfiguration.allow_theme_override=NO", "--show_tracebacks=False", f"--Kernels.room={visitors}",
            f"--MappingKernelManager.cull_idle_timeout={gone_seconds}",
            f"--MappingKernelManager.cull_interval={max(1, gone_seconds // 10)}",
            "--MappingKernelManager.cull_busy=True", *(f"--Room.names={name}" for name in names)]


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
    paths = [str(folder / "share"), os.environ.get("JUPYTER_PATH", "")]
    kept = {key: value for key, value in os.environ.items() if key != STORE_VARIABLE}
    return {**kept, URL_VARIABLE: location, SETTINGS_VARIABLE: json.dumps(asdict(settings)),
            "JUPYTER_PATH": os.pathsep.join(p for p in paths if p), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def _pairs(store: Store) -> tuple[int, list[str]]:
    """How many pairs there are, of which kinds. A class's login sees the pairs that it was given, and may count those
    that wait for it."""
    import sqlalchemy as sa

    from llama2lab.annotation.store import tables as t

    name = store.login()
    if name is not None:
        me = store.annotator(name)
        found = {kind: queue.progress(store, me, kind) for kind in KINDS}
        own = {kind: one.done + one.skipped + one.open for kind, one in found.items()}
        return sum(own.values()), sorted(kind for kind, number in own.items() if number)
    with store.begin(read=True) as conn:
        counts: dict[str, int] = dict(conn.execute(
            sa.select(t.items.c.kind, sa.func.count()).group_by(t.items.c.kind)).tuples().all())
    return sum(counts.values()), sorted(counts)


def _check_port(host: str, port: int) -> None:
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
