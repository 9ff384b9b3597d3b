"""What all commands of the command line share: one-line errors, and options that mean the same everywhere."""

from __future__ import annotations

import errno
import io
import math
import os
import sys
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from llama2lab.annotation.store.address import hidden
from llama2lab.engine.errors import LabError
from llama2lab.engine.seeds import MAX_SEED
from llama2lab.engine.validation import shown

# What the disk or the permissions say, not a bug of ours.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
NAME_ERRORS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}  # what no file can be called
# typer carries click inside or beside it, depending on its version; this finds the right class in both.
UsageError: Any = typer.BadParameter.__base__
STORE_VARIABLE = "LLAMA2LAB_ANNOTATIONS"
WORDS = "llama2lab.words"  # in the context's meta: all words of the command line


class Commands(TyperGroup):
    """Turns the errors of all commands into one line and an exit code, and refuses values that mean nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for command in self.commands.values():
            for parameter in command.params:
                _refuse_nothing(parameter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta.setdefault(WORDS, []).extend(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # a file's name may hold what the terminal's encoding does not
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        words = [*ctx.meta.get(WORDS, ()), os.environ.get(STORE_VARIABLE, "")]
        try:
            return super().invoke(ctx)
        except LabError as e:
            _fail(str(e), words)
        except UsageError as e:
            command = e.ctx.command_path if e.ctx else "llama2lab"
            if not e.format_message().strip() or type(e).__name__ == "NoArgsIsHelpError":
                raise
            _fail(f"{e.format_message().rstrip('.')}; see: {command} --help", words)
        except OSError as e:
            if e.errno in NAME_ERRORS:
                _fail(f"{shown(os.fsdecode(e.filename or ''))}: {e.strerror}; give another path", words)
            if e.errno not in DISK_ERRORS:
                raise
            _fail(
                f"{e.filename or 'the disk'}: {e.strerror}; free some space or mend the permissions, then give the "
                "same command again: nothing already made is lost",
                words,
            )
        except KeyboardInterrupt:
            if _may_speak():
                typer.echo("\nstopped; give the same command again to go on", err=True)
            raise typer.Exit(130) from None


def _refuse_nothing(parameter: Any) -> None:
    """Let the parameter refuse "", which is what a shell makes of a variable that is not set and would be read as this
    folder or as not given at all, and NaN and infinities, which pass every limit. A prompt may be empty."""
    process = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        given = value if isinstance(value, list | tuple) else [value]
        if parameter.name != "prompt" and any(isinstance(v, str) and not v.strip() for v in given):
            raise typer.BadParameter("is empty; is a variable of your shell not set?", ctx, parameter)
        found = process(ctx, value)
        if isinstance(found, float) and not math.isfinite(found):
            raise typer.BadParameter(f"must be a finite number, not {found}", ctx, parameter)
        return found

    parameter.process_value = process_value


def _fail(message: str, words: list[str]) -> None:
    # One line, whatever a file name or a library put in it; and no password of a database's URL among the words given.
    line = " ".join(hidden(message, words).split())
    if _may_speak():
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(2)


def _may_speak() -> bool:
    """Of several processes that torchrun started, one says what went wrong in all."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from llama2lab.engine.distributed import first_to_speak  # heavy

    return first_to_speak()


Seed = Annotated[int, Option(min=0, max=MAX_SEED, help="The same seed gives the same run.")]
Store = Annotated[
    str,
    Argument(help="An annotation store: a file (labels.db) or postgresql://...", metavar="URL", envvar=STORE_VARIABLE),
]
