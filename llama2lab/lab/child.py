"""A student's function in a process of its own, asked by a check for one answer after another.

On Linux the notebook forks, so that the function needs no copy: it has its globals, and what it changes there goes with
the process. The check stays in the notebook and reads its answers as plain data (`as_json`). What so holds, because the
operating system holds it: the time limit, whatever the code catches, ignores or blocks; limits of memory, of files
written and (for all but root) of processes; a crash or exit ends that process alone; everything set, seeded, patched or
closed in it stays in it; what it started itself is ended with it.

What does not: files it writes or deletes, the network, and signals to other processes of the same person, the notebook
among them. Nor is a check an exam: the answers can be read in the library's source, and a cell of the notebook, which
runs in the notebook itself, can replace the check.

Where there is no fork that can be relied on (macOS, Windows), or the system refuses another process, the function runs
in a thread of the notebook. Then only what Python itself can interrupt is stopped in time, and what `restore` names is
put back; a crash or an exit by `os._exit` ends the kernel.
"""

from __future__ import annotations

import builtins
import ctypes
import faulthandler
import gc
import io
import json
import logging
import os
import random
import signal
import socket
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import TypeAdapter, ValidationError

from llama2lab.lab.as_json import text_of, unpack
from llama2lab.lab.call import PRINTED, Fault, Message, Prints, call, too_long
from llama2lab.lab.restore import Library

if sys.platform != "win32":
    import resource

FORK = sys.platform == "linux"  # elsewhere system libraries, Apple's among them, do not survive a fork
START = 20.0  # seconds in which a process must have begun
PATIENCE = 2.0  # seconds in which code must have ended after it was told to
MEMORY = 4 * 2**30  # bytes that it may take beyond the notebook's own
FILE = 64 * 2**20  # bytes of the longest file that it may write
TASKS = 200  # processes and threads that may be begun anew on the machine meanwhile
ANSWER = 32 * 2**20  # bytes of the longest answer
DEATH_SIGNAL, SUBREAPER = 1, 36  # options of prctl, from Linux's sys/prctl.h
MESSAGE = TypeAdapter(Message)


# ---- a process ---------------------------------------------------------------------------------------------------


class Process:
    """The function in a process of its own, which waits to be asked.

    Between it and the notebook stands a second process that runs none of its code: it is the parent of all that the
    code starts, also of what has left its group, and ends all of that when the code has ended or is to end.

    Raises:
        OSError: the system refuses another process, or it did not begin in time.
    """

    def __init__(self, function: Callable, library: Library, seconds: float, printed: Prints, warned: Prints):
        self.seconds, self.printed, self.warned = seconds, printed, warned
        self.rest, self.left, self.pid = bytearray(), seconds, 0
        self.ours, theirs = socket.socketpair()
        begun, refused = threading.Event(), []

        def live() -> None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of forks beside threads
                    self.pid = os.fork()
            except OSError as e:
                refused.append(e)
            if not refused and self.pid == 0:
                _begin(function, library, theirs, seconds)
            theirs.close()
            begun.set()
            if self.pid:
                with suppress(ChildProcessError):
                    os.waitpid(self.pid, 0)

        # In a fresh thread: OpenMP keeps its workers with the thread that first used them, they do not survive a fork,
        # and whoever forks from there waits for them for ever.
        self.thread = threading.Thread(target=live, name="exercise", daemon=True)
        try:
            self.thread.start()
            begun.wait()
            if refused:
                raise refused[0]
            if self._message(START).kind != "ready":
                raise ChildProcessError("it did not begin")
        except BaseException:
            self.close()
            raise

    def ask(self, args: list[Any]) -> Message:
        """The function's answer to these arguments, which are packed.

        Raises:
            Fault: it took longer than all its seconds, or the process has ended.
        """
        begin = time.monotonic()
        try:
            self.ours.settimeout(max(1e-3, self.left))
            with suppress(BrokenPipeError, ConnectionResetError):  # why it has ended is still to be read
                self.ours.sendall(json.dumps(args).encode() + b"\n")
            while (message := self._message(begin + self.left - time.monotonic())).kind in ("printed", "warned"):
                (self.printed if message.kind == "printed" else self.warned).write(message.text)
        except TimeoutError:
            raise too_long(self.seconds) from None
        self.left -= time.monotonic() - begin
        if message.kind == "ended":
            why = f" ({signal.strsignal(message.signal)})" if message.signal else ""
            how = "A function ends with `return`, or by raising an exception."
            raise Fault("error", f"Your code ended Python itself{why}. {how}")
        return message

    def _message(self, seconds: float) -> Message:
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            self.ours.settimeout(max(1e-3, end - time.monotonic()))
            try:
                more = self.ours.recv(2**18)
            except ConnectionResetError:
                more = b""
            if not more:
                return Message("ended")
            self.rest += more
            if time.monotonic() > end:
                raise TimeoutError
            if len(self.rest) > ANSWER:
                longest = f"{ANSWER // 2**20} MB"
                raise Fault("error", f"The answer is longer than {longest}. Compare its shape with the task.")
        line, _, self.rest = self.rest.partition(b"\n")
        try:
            return MESSAGE.validate_json(line)
        except ValidationError:
            why = "it is nested too deeply, or your code wrote where only answers belong"
            raise Fault("error", f"The answer cannot be read: {why}.") from None

    def close(self) -> None:
        """End the process and all that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.pid and self.thread.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(self.pid, number)
                self.thread.join(PATIENCE)
        self.ours.close()


def _begin(function: Callable, library: Library, channel: socket.socket, seconds: float) -> NoReturn:
    """In the new process: start one more for the student's code, wait, and end whatever is left. Returns never: behind
    it lies the notebook's own code."""
    try:
        gc.freeze()  # what the notebook has left to be collected is not collected here
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD, signal.SIGTERM})  # they are waited for
        os.setsid()
        prctl = ctypes.CDLL(None).prctl
        prctl(SUBREAPER, 1)
        prctl(DEATH_SIGNAL, signal.SIGTERM)  # when the notebook ends
        _close(channel.fileno())
        student = os.fork()
        if student == 0:
            prctl(DEATH_SIGNAL, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.setsid()
            _limit(seconds)
            _serve(function, library, channel)
            os._exit(0)
        status = None
        while status is None and signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGCHLD:
            pid, code = os.waitpid(student, os.WNOHANG)
            status = code if pid else None
        with suppress(ProcessLookupError):
            os.killpg(student, signal.SIGKILL)
        while True:
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(int(child), signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        if status is not None:
            killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            channel.send(_line(Message("ended", signal=killed)), socket.MSG_DONTWAIT)
    finally:
        os._exit(0)


def _close(channel: int) -> None:
    """Close the notebook's connections: to its page, to databases. Open files stay, a student may read them."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            kind = stat.S_IFMT(os.fstat(number).st_mode)
            if number != channel and kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR):
                os.close(number)


def _line(message: Message) -> bytes:
    return json.dumps(vars(message)).encode() + b"\n"


def _limit(seconds: float) -> None:
    """Limits of the operating system for this process and all that it starts."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    tasks = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])  # of everybody: no fewer than ours
    for kind, most in (
        (resource.RLIMIT_AS, size + MEMORY),
        (resource.RLIMIT_NPROC, tasks + TASKS),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(seconds + START)),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _serve(function: Callable, library: Library, channel: socket.socket) -> None:
    """Answer what is asked, a line each, until nobody asks any more."""
    own = os.getpid()
    sys.stdin = io.StringIO()

    def send(kind: Literal["printed", "warned"], text: str) -> None:
        channel.sendall(_line(Message(kind, text_of(text))))

    # One character more than is kept, which tells that there was more.
    sys.stdout, sys.stderr = (Prints(PRINTED + 1, partial(send, kind)) for kind in ("printed", "warned"))
    # A notebook's own ways to its page do not work in another process.
    logging.raiseExceptions = False
    faulthandler.disable()
    builtins.input = _no_input
    if (shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()) is not None:
        shell.display_pub.publish = lambda data, *_, **__: print(data.get("text/plain", ""))
    torch.set_num_threads(1)
    random.seed(0)  # Python seeds anew after a fork; the others go on from where `kept_state` put them
    channel.sendall(_line(Message("ready")))
    for line in channel.makefile("rb"):
        answer = call(function, library, [unpack(value) for value in json.loads(line)])
        if os.getpid() != own:  # the code has forked, and this is the other one
            return
        channel.sendall(_line(answer))


def _no_input(*_: Any) -> NoReturn:
    raise EOFError("a check has no keyboard: take what you need as an argument")


# ---- without a process -------------------------------------------------------------------------------------------


class TimeIsUp(BaseException):
    """Raised in a thread whose time is over. Not an Exception, so that `except Exception` does not swallow it."""


class Here:
    """The function in a thread of the notebook, where a process is not to be had. As Process."""

    def __init__(self, function: Callable, library: Library, seconds: float, printed: Prints, warned: Prints):
        self.function, self.modules, self.printed = function, library, printed
        self.seconds = self.left = seconds

    def ask(self, args: list[Any]) -> Message:
        answers: list[Message] = []
        ended = threading.Event()

        def work() -> None:
            try:
                answers.append(call(self.function, self.modules, unpack(args)))
            finally:
                ended.set()

        thread = threading.Thread(name="exercise", daemon=True, target=work)
        begin = time.monotonic()
        with redirect_stdout(self.printed):
            try:
                thread.start()
                ended.wait(self.left)
            finally:
                late = not ended.is_set()
                runs = self._stop(thread, ended)
        self.left -= time.monotonic() - begin
        if late or not answers:
            raise too_long(
                self.seconds, " It could not be ended and still runs: restart the kernel when you can." if runs else ""
            )
        return answers[0]

    @staticmethod
    def _stop(thread: threading.Thread, ended: threading.Event) -> bool:
        """End the work; whether it runs on all the same. The thread itself is not asked: Python 3.11 takes one whose
        `join` was interrupted, as by a notebook's stop button, for one that has ended."""
        end = time.monotonic() + PATIENCE
        while not ended.is_set() and time.monotonic() < end:
            raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeIsUp)
            )
            if not raised:  # there is no such thread any more
                return False
            ended.wait(0.02)
        return not ended.is_set()

    def close(self) -> None:
        """There is nothing to end."""


def start(function: Callable, library: Library, seconds: float, printed: Prints, warned: Prints) -> Process | Here:
    """The function, ready to be asked: in a process of its own, if the system gives one."""
    if FORK:
        with suppress(OSError):
            return Process(function, library, seconds, printed, warned)
    return Here(function, library, seconds, printed, warned)
