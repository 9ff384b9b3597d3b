"""Waiting for what a test asserts, on a machine that may be slow, busy or asleep for seconds; ports of one's own."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 300.0  # seconds: a busy machine is slow, not broken

_numbers = itertools.count()


def until(what: Callable[[], Any], words: str = "", seconds: float = PATIENCE) -> Any:
    """What it gives, as soon as that is true; `words` say what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        last = time.monotonic() > deadline  # asked once more after a sleep of the machine
        if found := what():
            return found
        assert not last, f"after {seconds:.0f} s still not so: {words}"
        time.sleep(0.02)


def free_port() -> int:
    """A port that is still free when a server gets round to it: below all that Linux hands out by itself (32768 and
    up), and of this process alone among those that run tests."""
    for _ in range(20):
        port = 10_000 + os.getpid() % 1000 * 20 + next(_numbers) % 20
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("all ports of this process are taken")
