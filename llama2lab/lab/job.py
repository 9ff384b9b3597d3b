"""Training that can be watched, paused and stopped: the thread behind the live panels.

A step is never cut in two. Stop saves the state in the work's folder and starting again goes on from there, with the
same numbers as if nothing had happened; a closed browser changes nothing, since the work is the kernel's.
"""

from __future__ import annotations

import atexit
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import watching

ENDS = ("stopped", "done", "failed")


class Job:
    """Work in a thread of its own, which can be paused, stopped and started again.

        job = Job(lambda: sft(model, tokenizer, rows, settings, seed, machine, folder), changed=panel.redraw)
        job.start()       # at once back; again after a stop: goes on
        job.pause()       # waits at the end of the step under way, until resume()
        job.stop()        # ends after the step under way; the loop saves its state in its folder
        job.wait()        # to the end, started if need be; the kernel's stop button then is job.stop()
        job.rows          # the log of the training loop under way, one dict a step; len(job.rows) of job.steps are done

    `work()` is any function that runs the library's loops (train.fit, pretrain, sft, ppo, train_reward ...). It is
    called again by a start after a stop, so it should be given a folder to go on from: without one it starts over.
    What it returns is `result`; what it raises is `error`, in words (`trace` has the lines). `changed()`, if given, is
    called in the job's thread at each step and at each change of state, so it must be quick. One job runs at a time:
    two would take each other's cores.
    """

    def __init__(self, work: Callable[[], Any], changed: Callable[[], None] | None = None):
        self.work, self.changed = work, changed
        self.what, self.steps = "", 0
        self.rows: Sequence[dict[str, float]] = []
        self.result: Any = None
        self.error = self.trace = ""
        self.state = "not started"  # then running, paused or stopping, and one of ENDS
        self._stop, self._go, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread lives: running, paused or stopping."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start, or go on after a stop or a pause; nothing where it runs already or is done."""
        if self._thread and self.state in ENDS:
            self._thread.join()
        if self.running or self.state == "done":
            self.resume()
            return
        for other in list(_jobs):
            if other.running:
                other.stop()
                other.wait()
        self._stop.clear()
        self.error = self.trace = ""
        self._set("running")
        _jobs.add(self)
        self._thread = threading.Thread(target=self._run, name="job", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        self._set("paused", "running")

    def resume(self) -> None:
        self._set("running", "paused")

    def stop(self) -> None:
        """Ask it to end after the step under way; `wait` sees it end."""
        self._set("stopping", "running", "paused")

    def wait(self, seconds: float | None = None) -> Any:
        """Until it ends, or for so many seconds; gives the result, None if it was stopped. Starts what was not started
        and ends a pause. LabError with the reason if it failed. The kernel's stop button stops the job, which keeps
        its work, and leaves the rest of the notebook to run."""
        if self.state == "not started":
            self.start()
        self.resume()
        try:
            if self._thread:
                self._thread.join(seconds)
        except KeyboardInterrupt:
            self.stop()
            if self._thread:
                self._thread.join()
        if self.state == "failed":
            raise LabError(self.error)
        return self.result

    def _run(self) -> None:
        try:
            with watching(self._watch):
                self.result = self.work()
            state = "done"
        except KeyboardInterrupt:
            state = "stopped"
        except Exception as e:  # shown in words by whoever looks at the job
            self.error = str(e) if isinstance(e, LabError) else f"{type(e).__name__}: {e}"
            self.trace = traceback.format_exc()
            state = "failed"
        _jobs.discard(self)
        self._set(state)

    def _watch(self, what: str, log: Sequence[dict[str, float]], steps: int) -> bool:
        self.what, self.rows, self.steps = what, log, steps
        if self.changed:
            self.changed()
        self._go.wait()
        return self._stop.is_set()

    def _set(self, state: str, *after: str) -> None:
        """Change the state, if it is one of `after`, and with it what the thread waits for."""
        with self._lock:
            if after and self.state not in after:
                return
            self.state = state
            (self._go.clear if state == "paused" else self._go.set)()
            if state == "stopping":
                self._stop.set()
        if self.changed:
            self.changed()


_jobs: weakref.WeakSet[Job] = weakref.WeakSet()  # that run


@atexit.register
def _stop_all() -> None:
    """A kernel that is shut down lets its jobs save their work."""
    for job in list(_jobs):
        job.changed = None
        job.stop()
        if job._thread:
            job._thread.join(5)
