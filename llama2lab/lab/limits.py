"""A time limit for code that somebody else wrote: an endless loop ends with a word, not with a dead notebook.

In the main thread of a Unix system an alarm signal interrupts the code; anywhere else it runs in a thread of its own,
in which an exception is raised from outside. Neither can interrupt a single long call into compiled code before it
returns; the thread is then left behind, so that the notebook at least goes on.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
REPEAT = 0.02  # seconds between one attempt to end the code and the next
PATIENCE = 2.0  # seconds in which a thread must have ended after it was told to


class TimeIsUp(BaseException):
    """Raised inside the code whose time is over. Not an Exception, so that `except Exception` does not swallow it.

    `stopped` is False where the code could not be ended and still runs in a thread of its own.
    """

    stopped = True


class Insist(TimeIsUp):
    """TimeIsUp for code that swallows it (`except: pass`): made in the code's own thread, it sees to it that the first
    line of whatever handles it raises again, which leads out of the handler."""

    def __init__(self) -> None:
        def again(frame: FrameType, event: str, arg: Any) -> Any:
            # Not at the event "exception", which is still within the `try`.
            if event == "line" and frame.f_code.co_filename != __file__:
                raise TimeIsUp  # Python then forgets the trace function
            return again

        sys.settrace(again)
        frame = sys._getframe().f_back
        while frame is not None and frame.f_code.co_name != "_limited":
            frame.f_trace = again  # type: ignore[assignment]  # running frames are traced only if told so one by one
            frame = frame.f_back


def _limited(work: Callable[[], T]) -> T:
    return work()


def with_limit(work: Callable[[], T], seconds: float) -> T:
    """The result of work(), or TimeIsUp after `seconds`."""
    if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
        return _with_alarm(work, seconds)
    return _in_thread(work, seconds)


def _with_alarm(work: Callable[[], T], seconds: float) -> T:
    armed, rings = True, 0

    def ring(number: int, frame: Any) -> None:
        nonlocal rings
        if armed:
            rings += 1
            signal.setitimer(signal.ITIMER_REAL, REPEAT)
            raise TimeIsUp if rings < 3 else Insist()

    begin, tracing = time.monotonic(), sys.gettrace()
    handler = signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    results: list[T] = []
    try:
        try:
            results.append(_limited(work))
        finally:
            armed = False
    except TimeIsUp:
        rings += 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.settrace(tracing)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - begin)), interval)
    if rings:
        raise TimeIsUp
    return results[0]


def _in_thread(work: Callable[[], T], seconds: float) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            try:
                results.append(_limited(work))
            except BaseException as e:  # it is raised again in the thread that waits
                errors.append(e)
        except TimeIsUp as e:  # a second one, while the first was being handled
            errors.append(e)

    thread = threading.Thread(target=run, name="exercise", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        late = thread.is_alive()
    except KeyboardInterrupt:
        _stop(thread, lambda: bool(results or errors))
        raise
    if late:
        _stop(thread, lambda: bool(results or errors))
        e = TimeIsUp()
        e.stopped = not thread.is_alive()
        raise e
    if errors:
        raise errors[0]
    return results[0]


def _stop(thread: threading.Thread, done: Callable[[], bool]) -> None:
    """Raise TimeIsUp in the thread until it is done, or patience is."""
    end = time.monotonic() + PATIENCE
    tries = 0
    while thread.is_alive() and not done() and time.monotonic() < end:
        tries += 1
        kind = TimeIsUp if tries < 3 else Insist
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind))
        thread.join(REPEAT)
    thread.join(max(0.0, end - time.monotonic()))
