"""The server behind `llama2lab annotate`: Voila, with as many visitors as the machine holds and no kernel left behind.

Each page has a kernel, which ends when the page is left (if it has the cookie against forged requests) or some time
after its connection; who comes when the room is full gets a page that tries again by itself. What is asked for under a
name that is not this machine's is refused: a page of somebody else's whose name is made to point here (DNS rebinding)
is of another origin, but its requests look like our own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from typing import Any

from jupyter_client.session import utcnow
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError, RequestHandler
from traitlets import Bool, Integer, List, Unicode
from voila.app import Voila


class Kernels(AsyncMappingKernelManager):
    """No more kernels than `room`; one whose page is gone is idle from that moment on, which is what Jupyter culls."""

    room = Integer(20, config=True, help="How many kernels there are at most.")
    patience = Integer(
        6,
        config=True,
        help="How many seconds a visitor waits for one to end: a page that is loaded "
        "anew asks for its new kernel while the old one ends.",
    )

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._starting = 0
        self._here: set[str] = set()
        self._left: dict[str, float] = {}  # kernel -> since when no page is connected to it

    def _taken(self) -> int:
        self._here &= set(self.list_kernel_ids())  # one that died counts no more
        return len(self._here) + self._starting

    async def start_kernel(self, **kwargs: Any) -> str:  # type: ignore[override]
        deadline = _now() + self.patience
        while self._taken() >= self.room:
            await self._make_room()
            if self._taken() >= self.room:
                if _now() > deadline:
                    raise HTTPError(503, "the room is full")
                await asyncio.sleep(0.1)
        self._starting += 1
        try:
            kernel = await super().start_kernel(**kwargs)
            self._here.add(kernel)
        finally:
            self._starting -= 1
        self._left[kernel] = _now()
        return kernel

    async def _make_room(self) -> None:
        """End the kernel that has been without a page the longest, if that is longer than a page takes to load."""
        self._left = {kernel: since for kernel, since in self._left.items() if kernel in self._here}
        kernel = min(self._left, key=self._left.__getitem__, default=None)
        if kernel is not None and _now() - self._left[kernel] > self.cull_idle_timeout / 3:
            await self.shutdown_kernel(kernel)

    async def shutdown_kernel(self, kernel_id: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self._here.discard(kernel_id)  # its place is free while it ends
        await super().shutdown_kernel(kernel_id, *args, **kwargs)  # type: ignore[misc]

    def notify_connect(self, kernel_id: str) -> None:
        super().notify_connect(kernel_id)
        self._left.pop(kernel_id, None)

    def notify_disconnect(self, kernel_id: str) -> None:
        super().notify_disconnect(kernel_id)
        if kernel_id in self and not self._kernel_connections.get(kernel_id):
            self._left[kernel_id] = _now()
            self.get_kernel(kernel_id).last_activity = utcnow()  # type: ignore[attr-defined]


def _now() -> float:
    return asyncio.get_running_loop().time()


def elsewhere(ip: str, names: Iterable[str] = ()) -> str:
    """A pattern of all hosts in a browser's address line that are not this server's.

    A number is nobody's to redirect; but who listens on this machine alone is reached by its own numbers only.
    """
    mine = {"localhost", *names}
    try:
        local = ip == "localhost" or ipaddress.ip_address(ip).is_loopback
    except ValueError:  # "" is every address; a name is asked for under that name
        local = False
        mine.add(ip)
    if local:
        numbers = [r"127\.\d+\.\d+\.\d+", r"\[::1\]"]
    else:
        numbers = [r"\d+\.\d+\.\d+\.\d+", r"\[[0-9a-f:.]+\]"]
        machine = socket.gethostname()
        mine |= {machine, machine.split(".")[0], f"{machine.split('.')[0]}.local", socket.getfqdn()}
    allowed = [*numbers, *(re.escape(name.lower()) for name in sorted(mine) if name)]
    return rf"(?!(?:{'|'.join(allowed)})\.?$).*$"


class Elsewhere(RequestHandler):
    """The answer to whatever comes under another name."""

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(
            "This form is not served under the name in the address line. Whoever runs it can allow a name: "
            "llama2lab annotate --server-name NAME\n"
        )


class Room(Voila):
    names = List(Unicode(), [], config=True, help="Names under which browsers reach this, beside the machine's own.")
    ends_with_stdin = Bool(False, config=True, help="Stop when standard input closes: whoever started this is gone.")

    def initialize(self, argv: Any = None) -> None:
        super().initialize(argv)
        self.voila_configuration.multi_kernel_manager_class = Kernels
        self.voila_configuration.prelaunch_hook = give_cookie
        self.tornado_settings["xsrf_cookie_kwargs"] = {"samesite": "Strict"}

    def init_handlers(self) -> list[Any]:  # type: ignore[override]
        self.app.add_handlers(elsewhere(self.ip, self.names), [(r".*", Elsewhere)])
        return super().init_handlers()

    def listen(self) -> None:
        if self.ends_with_stdin:
            threading.Thread(target=end_with, args=(sys.stdin.fileno(),), daemon=True).start()
        super().listen()


def give_cookie(handler: Any, notebook: Any, cwd: str) -> None:
    """Voila calls this for each page: the cookie without which a page may not end its kernel when it is left."""
    _ = handler.xsrf_token  # sets it


def end_with(descriptor: int) -> None:
    """Ends this process when the pipe closes. Not by `sys.stdin`: Python aborts where a thread still reads from that
    when all ends, as with Ctrl-C."""
    while os.read(descriptor, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    Room.launch_instance()
