"""The files that the lab writes: whole or not at all, strict JSON, and read back with an eye for damage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import filecmp
import gzip
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Strict
from torch import Tensor

from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import validated

Number = Annotated[int, Strict()] | Annotated[float, Strict()]  # a number, and no text that looks like one


def write_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all, even if the power fails half way, and whoever else writes it."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise disk_error(e, path) from e
        raise LabError(f"cannot write {path}: a text holds half a character (a lone surrogate); mend it") from e


def copy_atomic(source: Path, target: Path) -> None:
    """Copy a file whole or not at all; nothing happens where the same is there already."""
    with disk_errors(target):
        if target.exists() and filecmp.cmp(source, target, shallow=False):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "mend the permissions"),
    errno.EROFS: "choose another folder",
    errno.ENOENT: "somebody removed or moved it meanwhile; see to that",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file is in the way; choose another folder",
}


def disk_error(e: OSError, path: Path) -> LabError:
    cure = CURES.get(e.errno or 0, "free some space or mend the folder's permissions")
    again = "then give the same command again: nothing already made is lost"
    return LabError(f"cannot write {path}: {e.strerror or e}; {cure}, {again}")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within, an error of the system is a LabError that names `path`."""
    try:
        yield
    except OSError as e:
        raise disk_error(e, path) from e


def read_json(path: Path, cure: str = "remove the file and run the command again") -> Any:
    """The contents of a JSON file; LabError with file and line if it is damaged. NaN, which earlier versions wrote
    where nothing was measured, is None."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=lambda name: None)
    except (UnicodeDecodeError, OSError) as e:
        raise LabError(f"{path}: cannot be read ({e}); is this the right file?") from e
    except json.JSONDecodeError as e:
        raise LabError(f"{path}:{e.lineno}: broken JSON ({e.msg}); {cure}") from e
    except (ValueError, RecursionError) as e:
        raise LabError(f"{path}: no JSON that can be read ({type(e).__name__}); {cure}") from e


def read_as(kind: Any, path: Path, cure: str) -> Any:
    """The contents of a JSON file as the type `kind`; LabError as `read_json`, or `validated`."""
    return validated(kind, read_json(path, cure), str(path), cure)


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Rows of data as JSON lines."""
    try:
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    except ValueError as e:
        cure = "lower the learning rate of the model that scored it"
        raise LabError(f"cannot write {path}: a row holds a number that is not finite; {cure}") from e
    write_atomic(path, text)


def read_rows(path: Path, cure: str = "remove the stage's folder and run again") -> list[dict]:
    """Rows written by `write_rows`, or packed by `pack_rows`; LabError with file, line and `cure` at the first damaged
    one."""
    rows = []
    number = 0
    try:
        path = rows_file(path)
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == GZ else open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise LabError(f"{path}:{number}: a row is an object, {{...}}; {cure}")
    except json.JSONDecodeError as e:
        raise LabError(f"{path}:{number}: broken row ({e.msg}); {cure}") from e
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as e:
        raise LabError(f"{path}: cannot be read ({e}); {cure}") from e
    except (ValueError, RecursionError) as e:
        raise LabError(f"{path}:{number}: a row that cannot be read ({type(e).__name__}); {cure}") from e
    return rows


GZ = ".gz"


def rows_file(path: Path) -> Path:
    """Where rows lie: `path`, or PATH.gz where they are packed (of the run that is shipped)."""
    packed = path.with_name(path.name + GZ)
    return packed if not path.exists() and packed.exists() else path


def pack_rows(path: Path) -> Path:
    """Let PATH.gz take the place of a file of rows: as it is, and the same bytes whenever the rows are the same."""
    packed = path.with_name(path.name + GZ)
    with disk_errors(packed):
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    return packed


def digest(value: Any) -> str:
    """Sixteen letters that change when plain data does: what JSON holds, dataclasses and paths."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=named).encode()).hexdigest()[:16]


def named(value: Any) -> str:
    """Dataclasses and paths as text, for `json.dumps(default=named)`; TypeError for anything else."""
    # An array's text leaves out its middle, a set's changes from process to process: no digest of those.
    if isinstance(value, Path) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return str(value)
    raise TypeError(f"settings are plain data; a {type(value).__name__} is not")


def plain(value: Any, where: str) -> Any:
    """Figures as strict JSON: single numbers of numpy and torch as Python's, None for a figure that the data do not
    define (nothing was measured, or nobody disagreed). LabError, with the path under `where`, for any other number that
    is not finite: also for the mean of values of which one is none."""
    if isinstance(value, dict):
        ends = [value.get(k) for k in ("mean", "low", "high")]
        if all(isinstance(x, float) and math.isnan(x) for x in ends) and (value.get("n") == 0 or "std" not in value):
            value = {**value, "mean": None, "low": None, "high": None}
        return {k: plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}.{i}") for i, v in enumerate(value)]
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise LabError(f"{where} is {value}, which no measurement gives; if the stage trains, lower its learning rate")
    return value
