"""What keeps a folder whole: one writer at a time, replaced in one step, and sums that notice damage."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from llama2lab.engine.errors import LabError

LOCK, WRITER = ".lock", ".writer.json"  # the lock, and who holds it
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}  # some network file systems


# ---- one writer --------------------------------------------------------------------------------------------


@dataclass
class _Held:
    lock: FileLock | None  # None where the file system knows no locks
    thread: threading.Thread
    pid: int
    times: int = 1


_held: dict[str, _Held] = {}  # by the folder's real path
_guard = threading.RLock()  # collecting a Run that is gone may end it while another one begins


def take(folder: Path) -> Callable[[], None]:
    """Become the one writer of `folder`, which is there; gives the function that ends it, which may be called twice.

    The lock is the operating system's, so it ends with the process, however that ends; a forked child has no part in
    it. The thread that holds it may take it again, and is done with it when it has ended it as often. Who only reads
    needs none of this.

    Raises:
        LabError: another process or thread writes there; names it.
        OSError: the folder cannot be written.
    """
    key = os.path.realpath(folder)
    with _guard:
        held = _held.get(key)
        if held and held.pid == os.getpid():
            held.times += 1
            if held.thread is not threading.current_thread() and held.thread.is_alive():
                held.times -= 1
                by = f"another thread of this process ({held.thread.name})"
                raise LabError(f"{folder} is in use by {by}; let it end first, or choose another folder")
            held.thread = threading.current_thread()
        else:
            held = _held[key] = _Held(_lock(folder), threading.current_thread(), os.getpid())
    pid, done = os.getpid(), threading.Event()

    def end() -> None:
        if done.is_set() or os.getpid() != pid:  # a forked child ends nothing
            return
        done.set()
        with _guard:
            held.times -= 1
            if held.times:
                return
            _held.pop(key, None)
            with contextlib.suppress(OSError):
                (folder / WRITER).unlink(missing_ok=True)
            if held.lock:
                held.lock.release()

    return end


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """`take` for the time of a with block; makes the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    end = take(folder)
    try:
        yield
    finally:
        end()


def _lock(folder: Path) -> FileLock | None:
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        cure = "wait for it or stop it, or choose another folder"
        raise LabError(f"{folder} is in use by {_writer(folder)}; {cure}") from None
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise
        cure = "see to it that one process at a time writes there"
        print(f"{folder}: this file system has no locks; {cure}", file=sys.stderr)
        return None
    since, command = datetime.now(UTC).isoformat(timespec="seconds"), shlex.join(sys.argv)[:300]
    who = {"pid": os.getpid(), "host": platform.node(), "since": since, "command": command}
    with contextlib.suppress(OSError):  # a courtesy to whoever meets the lock
        (folder / WRITER).write_text(json.dumps(who), encoding="utf-8")
    return lock


def _writer(folder: Path) -> str:
    """Who holds the lock, in words."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        who = json.loads((folder / WRITER).read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    return "another process"


# ---- replaced in one step ----------------------------------------------------------------------------------


def put_in_place(fresh: Path, folder: Path) -> None:
    """Let the finished folder `fresh` be `folder`. At every instant the old one or the new one is whole; what a kill
    leaves beside them, `clear_up` clears up.

    Raises:
        OSError: it cannot be; all is as before, or done but for what was to be removed.
    """
    if not folder.exists():
        os.replace(fresh, folder)
    elif exchange(fresh, folder):
        discard(fresh)
    else:
        old = _beside(folder, "old")
        os.replace(folder, old)
        try:
            os.replace(fresh, folder)
        except OSError:
            os.replace(old, folder)
            raise
        discard(old)


def discard(folder: Path) -> None:
    """Remove a folder. It loses its name first, so that half of it never passes for a whole one."""
    garbage = _beside(folder, "discarded")
    if garbage.exists():
        shutil.rmtree(garbage)
    os.replace(folder, garbage)
    shutil.rmtree(garbage)


def clear_up(folder: Path) -> None:
    """Finish or undo what a kill in `put_in_place(..., folder)` or a `discard` beside it left half done."""
    old = _beside(folder, "old")
    if old.exists():
        if folder.exists():
            discard(old)
        else:
            os.replace(old, folder)
    for path in list(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if path.name.startswith(f"{folder.name}.") and path.name.endswith(".discarded"):
            shutil.rmtree(path)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def exchange(a: Path, b: Path) -> bool:
    """Let two paths change their names in one step; False where the system cannot (Linux can)."""
    at_cwd, rename_exchange = -100, 2  # fcntl.h, linux/fs.h
    try:
        rename = ctypes.CDLL(None).renameat2
        return rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0
    except (OSError, AttributeError, TypeError):
        return False


# ---- sums --------------------------------------------------------------------------------------------------

_checked: set[tuple[str, int, int, int, str]] = set()  # files as they were when their sum was found right


def sum_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def has_sum(path: Path, expected: str) -> bool:
    """Whether a file has this sum; read once a process, as long as it stays as it is."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino, expected)
    if key not in _checked:
        if sum_of(path) != expected:
            return False
        _checked.add(key)
    return True
