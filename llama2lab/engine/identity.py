"""What a kept measurement is about: the code that measured, the town, the run; and one kernel at a time to measure
it."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, read_json
from llama2lab.engine.folders import sum_of
from llama2lab.engine.paths import PACKAGE, ROOT

# As they were when this process began: what is edited later does not run here.
SOURCES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p.read_text(encoding="utf-8")
    for p in PACKAGE.rglob("*.py")
}


def code_digest(function: Callable[..., Any]) -> str:
    """Changes with the code of the function's module and of all modules of the library that it imports, wherever in
    them and however far down."""
    module = inspect.getmodule(function)
    name = getattr(module, "__name__", "")
    if name in SOURCES:
        return _closure_digest(frozenset([name]))
    try:
        own = inspect.getsource(module or function)
    except (OSError, TypeError):  # written in a notebook
        own = inspect.getsource(function)
    return digest([own, _closure_digest(_imports(own) | {"llama2lab.lab.finished"})])


@cache
def _closure_digest(names: frozenset[str]) -> str:
    """Of the modules and all that they import."""
    found, ahead = set(names), list(names)
    while ahead:
        new = _imports(SOURCES[ahead.pop()]) - found
        found |= new
        ahead += new
    return digest({module: SOURCES[module] for module in found})


@cache
def _imports(source: str) -> frozenset[str]:
    """The library's modules that a source imports, the packages that they lie in among them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in found]
    return frozenset({".".join(p[:n]) for p in parts for n in range(1, len(p) + 1)} & SOURCES.keys())


def folder_digest(folder: Path) -> str:
    """Changes with what a folder holds, not with its place or its times. What is hidden, under way, measured
    (experiments/) or only for going on (resume/) does not count; a file whose sum its stage.json knows is not read."""
    sums: dict[str, str] = {}
    for path in folder.glob("*/stage.json"):
        known = read_json(path)
        for name, value in ((known.get("sums") or {}) if isinstance(known, dict) else {}).items():
            sums[f"{path.parent.name}/{name}"] = value
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        hidden = any(p.startswith(".") or p.endswith((".partial", ".tmp")) for p in parts)
        if not hidden and {"resume", "experiments"}.isdisjoint(parts):
            name = "/".join(parts)
            found[name] = sums.get(name) or _sum(path, path.stat().st_size, path.stat().st_mtime_ns)
    return digest(found)


@cache
def _sum(path: Path, size: int, time: int) -> str:
    """SHA-256 of a file, read once for each state of it."""
    return sum_of(path)


@contextlib.contextmanager
def alone(folder: Path, wait: bool = True) -> Iterator[None]:
    """Within, no other kernel works on `folder` (or file): one that comes later says who does and waits, or, without
    `wait`, gets a LabError. The lock is the operating system's: it ends with the process that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    note = folder.with_name(f".{folder.name}.by.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        by = "another notebook"
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            who = json.loads(note.read_text(encoding="utf-8"))
            by = f"another notebook (process {who['pid']} on {who['host']}, since {who['since']})"
        if not wait:
            raise LabError(f"{by} works in {folder}; let it end or stop it there, then try again") from None
        print(f"{by} works on this already, in {folder}: waiting for it. The stop button ends the waiting.", flush=True)
        lock.acquire()
    try:
        who = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%H:%M:%S}"}
        with contextlib.suppress(OSError):  # a courtesy to whoever meets the lock
            note.write_text(json.dumps(who), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()
