"""The notebooks as files: which exercises they hold, solutions put in, and run to the end.

    python -m llama2lab.cli.notebooks check                              what is wrong with them, without running
    python -m llama2lab.cli.notebooks execute 02 --solutions --out DIR   run to the end; every check must then pass
    python -m llama2lab.cli.notebooks time --write                       how long Run All takes, on a quiet machine

An exercise is one cell, known by its metadata {"lab": {"exercise": key}} and by its last line: code ends with
`check(GAE, gae)` below the task (comments, written by `tasks`) and an empty function; a question is `ask(WHY_ROOT)`; a
prediction ends with `sealed(FIRST_LOSS, measured, what shows it)`.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from nbformat import NotebookNode
from typer import Argument, Option

from llama2lab.cli import timing
from llama2lab.cli.commands import Commands
from llama2lab.cli.timing import Held, Result
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_atomic
from llama2lab.engine.paths import ROOT
from llama2lab.lab.checking import Exercise
from llama2lab.lab.finished import LIVE
from llama2lab.lab.predictions import Guess, Pick, Prediction, Ranking
from llama2lab.lab.progress import FOLDER, Progress
from llama2lab.lessons.catalogue import MODULES

NOTEBOOKS = ROOT / "notebooks"
NAMES = (
    "00_start_here",
    "01_tokenizer_and_data",
    "02_transformer",
    "03_pretraining",
    "04_supervised_finetuning",
    "05_preferences",
    "06_reward_models",
    "07_rejection_sampling",
    "08_ppo",
    "09_ghost_attention",
    "10_five_rounds",
    "11_evaluation",
    "12_safety",
    "13_what_it_would_take",
)
MOST_CELLS, MOST_MINUTES = 55, 60  # what an hour has room for; minutes of exercises that are not extra
CELL_SECONDS = 600  # a cell that takes longer hangs


@dataclass(frozen=True)
class Place:
    """Where an exercise is defined: `from MODULE import CONSTANT`."""

    exercise: Exercise
    module: str
    constant: str


@cache
def places() -> dict[str, Place]:
    """Every exercise by its key."""
    found: dict[str, Place] = {}
    for module in MODULES:
        names = {id(value): name for name, value in vars(module).items() if isinstance(value, Exercise)}
        found |= {e.key: Place(e, module.__name__, names[id(e)]) for e in module.EXERCISES}
    return found


def find(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Notebooks by their number, name or path; all of them without names."""
    there = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not there:
        raise LabError(
            f"there are no notebooks in {folder}; they come with a checkout of the project, not with its wheel"
        )
    found = []
    for name in names:
        path = Path(name)
        if path.suffix == ".ipynb" and path.is_file():
            found.append(path)
            continue
        hits = [p for stem, p in there.items() if path.stem in (stem, stem[:2])]
        if not hits:
            raise LabError(f"there is no notebook {name!r}; choose one of {', '.join(there)}")
        found += hits
    return found or list(there.values())


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """Only if it changed: what is written differs from the file in nothing else."""
    if notebook != read(path):
        write_atomic(path, nbformat.writes(notebook) + "\n")


def marks(notebook: NotebookNode) -> dict[str, int]:
    """{key: number of its cell} of the exercises of a notebook, in their order."""
    found = {number: cell.metadata.get("lab", {}).get("exercise") for number, cell in enumerate(notebook.cells)}
    return {key: number for number, key in found.items() if key}


# The last line of an exercise's cell, after which nothing stands.
CHECK = r"(?:^|\n)check\(\s*{},\s*(\w+)\s*\)\s*$"
ASK = r"^ask\(\s*{}\s*\)\s*$"
SEALED = r"(?s)(?:^|\n)sealed\(\s*{},\s*.+\)\s*$"


def student_name(source: str, place: Place) -> str:
    """What the student defines in a cell of code, as its check names it: `check(RMS_NORM, rms_norm)`."""
    found = re.search(CHECK.format(place.constant), source)
    if not found:
        raise LabError(f"{place.exercise.key}: the last line of its cell is not check({place.constant}, a name)")
    return found[1]


def task_lines(exercise: Exercise) -> str:
    """The task as the comments that stand above the student's code."""
    head = f"{exercise.title}. {exercise.task}"
    lines = textwrap.wrap(head, 98, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in [*lines, f"({exercise.facts}; run the cell for hints)"])


def without_task(source: str) -> str:
    """A cell's source without the comments at its head."""
    return re.sub(r"\A(?:#[^\n]*\n)+", "", source)


def answer_of(exercise: Exercise) -> Any:
    """What solves a question, as a plain value; of a prediction an answer that could be."""
    form = exercise.check
    if isinstance(form, Guess):
        return (form.low + form.high) / 2
    if isinstance(form, Pick):
        return next(iter(form.options))
    if isinstance(form, Ranking):
        return list(form.options)
    return list(exercise.solution) if isinstance(exercise.solution, tuple) else exercise.solution


def is_code(exercise: Exercise) -> bool:
    return callable(exercise.solution)


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy in which every exercise is solved, and every prediction made."""
    notebook = nbformat.from_dict(notebook)
    for key, number in marks(notebook).items():
        cell, place = notebook.cells[number], places()[key]
        answer = answer_of(place.exercise)
        if isinstance(place.exercise, Prediction):
            made = f"from llama2lab.lab.progress import predict\n\npredict({place.constant}, {answer!r})"
            cell.source = f"{made}\n{cell.source}"
        elif is_code(place.exercise):
            name = student_name(cell.source, place)
            done = f"from llama2lab.lab.checking import solution\n\n{name} = solution({place.constant})"
            cell.source = f"{done}\n\ncheck({place.constant}, {name})"
        else:
            cell.source = f"ask({place.constant}, {answer!r})"
    return notebook


# ---- what is wrong, without running ------------------------------------------------------------------------------


def problems(notebook: NotebookNode, number: str) -> list[str]:
    """What is wrong with the notebook of this number ("02"), a sentence each."""
    found = [f"cell {at}: {what}" for at, cell in enumerate(notebook.cells) for what in _cell_problems(cell)]
    cells = notebook.cells
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        found.append("the first cell is not a title with what the notebook teaches")
    if len(cells) < 2 or cells[1].cell_type != "code" or "finished_run(" not in cells[1].source:
        found.append("the second cell does not import and open the finished run")
    if "Progress().summary(" not in "".join(c.source for c in cells if c.cell_type == "code"):
        found.append("there is no Progress().summary() at its end")
    if len(cells) > MOST_CELLS:
        found.append(f"{len(cells)} cells, and an hour has room for {MOST_CELLS}")
    if (minutes := sum(e.level.minutes for e in exercises_of(notebook) if not e.extra)) > MOST_MINUTES:
        found.append(f"{minutes} minutes of exercises that are not marked as extra, in an hour")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as e:
        found.append(f"not a valid notebook: {str(e)[:200]}")

    where = [cell.metadata.get("lab", {}).get("exercise") for cell in cells]
    for key, place in places().items():
        if key.startswith(number) and where.count(key) != 1:
            found.append(f"{key} of the catalogue stands in {where.count(key)} cells, and needs one")
        elif key in where:
            found += [f"{key}: {what}" for what in _exercise_problems(cells[where.index(key)].source, place)]
    return found + [f"{key} is no exercise of the catalogue" for key in where if key and key not in places()]


def exercises_of(notebook: NotebookNode) -> list[Exercise]:
    return [places()[key].exercise for key in marks(notebook) if key in places()]


def counted(notebook: NotebookNode) -> str:
    """How long a notebook is, in words."""
    exercises = exercises_of(notebook)
    code, extra = sum(map(is_code, exercises)), sum(e.level.minutes for e in exercises if e.extra)
    minutes = sum(e.level.minutes for e in exercises) - extra
    more = f" and {extra} extra" if extra else ""
    return (
        f"{len(notebook.cells):3} cells, {len(exercises):2} exercises, {code:2} of them code: {minutes:2} minutes{more}"
    )


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    if cell.cell_type == "code" and (cell.outputs or cell.execution_count):
        yield "outputs are stored"
    if re.search(r"/(work|home|Users|tmp)/|\bshared/", cell.source):
        yield "names a folder of somebody's machine"
    for kind in cell.metadata.get("lab", {}):
        if kind != "exercise":
            yield f"unknown mark {kind!r}"


def _exercise_problems(source: str, place: Place) -> Iterator[str]:
    constant = place.constant
    if isinstance(place.exercise, Prediction):
        if not re.search(SEALED.format(constant), source):
            yield f"the last line of its cell is not sealed({constant}, what was measured, ...)"
    elif not is_code(place.exercise):
        if not re.search(ASK.format(constant), source):
            yield f"its cell is not ask({constant})"
    elif not (named := re.search(CHECK.format(constant), source)):
        yield f"the last line of its cell is not check({constant}, a name)"
    else:
        if not is_empty_answer(source, named[1]):
            yield f"its cell does not hold an empty {named[1]}"
        if not source.startswith(f"{task_lines(place.exercise)}\n"):
            yield "its cell does not begin with its task; `python -m llama2lab.cli.notebooks tasks` writes it anew"


def definition(source: str, name: str) -> ast.FunctionDef | ast.ClassDef | ast.Assign | None:
    """What defines `name` at the top of a cell."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return None
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node
    return None


def is_empty_answer(source: str, name: str) -> bool:
    node = definition(source, name)
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant) and node.value.value in (..., None)
    return node is not None and all(
        isinstance(s, ast.Pass | ast.Raise) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in node.body
    )


# ---- run to the end ----------------------------------------------------------------------------------------------


def execute(
    path: Path,
    out: Path,
    solved: bool = False,
    timeout: float = CELL_SECONDS,
    jobs: int = 1,
    more: Mapping[str, str] | None = None,
) -> Result:
    """Run a notebook in a kernel of its own, beside itself as a student does, and write it with its outputs to `out`.
    The progress it makes goes to a fresh folder there, and tells which checks passed. Where it is one of several `jobs`
    at once, it takes its share of the cores. `more` variables are set in its environment."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = with_solutions(read(path)) if solved else read(path)
    progress = out / "progress" / path.stem
    shutil.rmtree(progress, ignore_errors=True)
    progress.mkdir(parents=True)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        startup_timeout=timeout,
        iopub_timeout=timeout,
        resources={"metadata": {"path": str(path.parent.resolve())}},
    )
    env = {**os.environ, **(more or {}), FOLDER: str(progress.resolve())}
    if jobs > 1:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    result = Result(path.stem, 0.0)
    begin = time.perf_counter()
    try:
        client.execute(env=env)
    except CellExecutionError as e:
        result.wrong.append(f"{_failed_cell(notebook)}: {e.ename}: {str(e.evalue)[:300]}")
    except (CellTimeoutError, DeadKernelError) as e:
        result.wrong.append(f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
    result.seconds = time.perf_counter() - begin
    times = [seconds_of(cell) for cell in notebook.cells] or [0.0]
    result.slowest = (times.index(max(times)), max(times))
    nbformat.write(notebook, out / path.name)
    if not result.wrong:
        result.wrong += checks_that_went_wrong(notebook, Progress(progress), solved)
    return result


def _failed_cell(notebook: NotebookNode) -> str:
    for n, cell in enumerate(notebook.cells):
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            return f"cell {n}"
    return "a cell"


def seconds_of(cell: NotebookNode) -> float:
    """How long a cell ran, from the times that nbclient notes."""
    times = cell.metadata.get("execution", {})
    begin, end = times.get("iopub.status.busy"), times.get("iopub.status.idle")
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() if begin and end else 0.0


def checks_that_went_wrong(notebook: NotebookNode, progress: Progress, solved: bool) -> list[str]:
    """Solved, every exercise must have passed and every prediction have met its measurement; as shipped, nothing may be
    noted at all: an exercise that nobody attempted leaves no mark."""
    entries = progress.read()
    if not solved:
        return [f"{key}: {entry['status']}, as it is shipped" for key, entry in entries.items()]
    wrong = []
    for key in marks(notebook):
        entry = entries.get(key, {})
        prediction = isinstance(places()[key].exercise, Prediction)
        if prediction and not ("measured" in entry and entry["points"]):
            wrong.append(f"{key}: its prediction was not compared with a measurement")
        if not prediction and entry.get("status") != "passed":
            wrong.append(f"{key}: {entry.get('status', 'not attempted')}, with its solution")
    return wrong


app = typer.Typer(
    cls=Commands,
    help="The notebooks as files: check them, or run them to their end.",
    add_completion=False,
    rich_markup_mode=None,
)
Names = Annotated[
    list[str] | None,
    Argument(metavar="NOTEBOOK...", help="Number, name or path.  [default: all]"),
]


@app.command("check")
def check_command(names: Names = None) -> None:
    """What is wrong with notebooks, without running them."""
    bad = False
    for path in find(names or ()):
        notebook = read(path)
        found = problems(notebook, path.stem[:2])
        print("\n".join([f"{path.stem:<28}{counted(notebook)}", *(f"    {what}" for what in found)]))
        bad |= bool(found)
    raise typer.Exit(int(bad))


@app.command("tasks")
def tasks_command(names: Names = None) -> None:
    """Write the task of each code exercise anew above its code, from the catalogue."""
    for path in find(names or ()):
        notebook = read(path)
        for key, number in marks(notebook).items():
            place = places()[key]
            if is_code(place.exercise):
                cell = notebook.cells[number]
                cell.source = f"{task_lines(place.exercise)}\n{without_task(cell.source)}"
        write(notebook, path)


@app.command("execute")
def execute_command(
    names: Names = None,
    solutions: Annotated[bool, Option("--solutions", help="Solve every exercise first.")] = False,
    jobs: Annotated[int, Option(min=1, help="So many at once; the seconds then say less.")] = 1,
    out: Annotated[Path, Option(help="Where they go with their outputs.")] = Path("runs/notebooks"),
) -> None:
    """Run notebooks to their end. Done as .ci/run does it, their seconds are held against the stored ones; what took
    too long is executed once more, since anything may have run beside it."""
    paths = find(names or ())
    held = timing.held_in_execution(paths, NOTEBOOKS, solutions, jobs)
    begin, results = time.perf_counter(), []
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda path: execute(path, out, solutions, jobs=jobs), paths):
            results.append(result)
            print(result, flush=True)
    print(f"{'together':<28}{time.perf_counter() - begin:7.1f} s\n{held}")
    wrong = [result.name for result in results if result.wrong]
    for path, result in zip(paths, results, strict=True):
        if held.wrong(result):
            with tempfile.TemporaryDirectory() as store:
                again = execute(path, Path(store, "out"), solutions, jobs=jobs, more={LIVE: store})
            for what in again.wrong + held.wrong(again):
                print(f"{again.name}, once more: {what}")
                wrong.append(again.name)
    raise typer.Exit(int(bool(wrong)))


@app.command("time")
def time_command(
    names: Names = None,
    write: Annotated[
        bool, Option("--write", help="Store the seconds, and write them anew in the heads, the README and so on.")
    ] = False,
    even_if_busy: Annotated[bool, Option("--even-if-busy", help="Store them although other work runs beside.")] = False,
    out: Annotated[Path, Option(help="Where they go with their outputs.")] = Path("runs/notebooks/shipped"),
) -> None:
    """How long Run All takes: each notebook as it is shipped, alone, with nothing measured before, and once more. To
    store it, also as .ci/run executes them. Else held against what is stored.

    Where bfloat16 is fast, ONEDNN_MAX_CPU_ISA=AVX512_CORE before the command measures as if it were not."""
    paths, stored, busy = find(names or ()), timing.read_times(), timing.too_busy()
    if write:
        timing.check_storable(paths, NOTEBOOKS, NAMES, stored)
        if busy and not even_if_busy:
            raise LabError(f"nothing is measured: {busy}; wait for its end, or give --even-if-busy")
    held = Held(why_not="they are stored anew") if write else Held(why_not=busy) if busy else timing.held("first")
    times, results = timing.measure(paths, execute, out, write, lambda line: print(line, flush=True))
    wrong = [f"{result.name}: {what}" for result in results for what in (*result.wrong, *held.wrong(result))]
    print("\n".join([*wrong, str(held)]))
    if write and not wrong:
        for path in timing.write(timing.stored_with(times, stored), ROOT):
            print(f"written anew: {path}")
    raise typer.Exit(int(bool(wrong)))


if __name__ == "__main__":
    app(prog_name="python -m llama2lab.cli.notebooks")
