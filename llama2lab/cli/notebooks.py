"""The notebooks as files: which exercises they hold, solutions put in, and run to the end.

    python -m llama2lab.cli.notebooks check                              what is wrong with them, without running
    python -m llama2lab.cli.notebooks execute 02 --solutions --out DIR   run to the end; every check must then pass

An exercise is three or four cells, known by their metadata {"lab": {"exercise" | "check" | "compare": key}}: the
student's (a function or a name, empty as shipped), its check, and for a prediction the comparison after the run.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from nbformat import NotebookNode
from typer import Argument, Option

from llama2lab.cli.commands import Commands
from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import ROOT
from llama2lab.lab.checking import Exercise
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
    "11_evaluation_and_safety",
)
KINDS = ("exercise", "check", "compare")
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


def marks(notebook: NotebookNode) -> Iterator[tuple[int, str, str]]:
    """(number of the cell, kind, key) of every cell that belongs to an exercise."""
    for number, cell in enumerate(notebook.cells):
        for kind, key in cell.metadata.get("lab", {}).items():
            yield number, kind, key


def keys(notebook: NotebookNode) -> list[str]:
    """The exercises of a notebook, in their order."""
    return [key for _, kind, key in marks(notebook) if kind == "exercise"]


def student_name(notebook: NotebookNode, key: str) -> str:
    """What the student defines for an exercise, as its check names it: `check(RMS_NORM, rms_norm)`."""
    for number, kind, marked in marks(notebook):
        if (kind, marked) == ("check", key):
            found = re.search(r"(?:^|\n)(?:check|predict)\(\s*\w+,\s*(\w+)\s*\)\s*$", notebook.cells[number].source)
            if found:
                return found[1]
    raise LabError(f"{key}: no cell of the notebook checks a name")


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
    for number, kind, key in marks(notebook):
        if kind == "exercise":
            place, name = places()[key], student_name(notebook, key)
            notebook.cells[number].source = (
                f"from llama2lab.lab.checking import solution\n{name} = solution({place.constant})"
                if is_code(place.exercise)
                else f"{name} = {answer_of(place.exercise)!r}"
            )
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
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as e:
        found.append(f"not a valid notebook: {str(e)[:200]}")

    where: dict[str, dict[str, list[int]]] = {}
    for at, kind, key in marks(notebook):
        where.setdefault(key, {}).setdefault(kind, []).append(at)
    for key in places():
        if key.startswith(number) and key not in where:
            found.append(f"{key} is in the catalogue and not in the notebook")
    for key, cells_of in where.items():
        if key not in places():
            found.append(f"{key} is no exercise of the catalogue")
        else:
            found += [f"{key}: {what}" for what in _exercise_problems(notebook, places()[key], cells_of)]
    return found


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    if cell.cell_type == "code" and (cell.outputs or cell.execution_count):
        yield "outputs are stored"
    if re.search(r"/(work|home|Users|tmp)/|\bshared/", cell.source):
        yield "names a folder of somebody's machine"
    for kind in cell.metadata.get("lab", {}):
        if kind not in KINDS:
            yield f"unknown mark {kind!r}"


def _exercise_problems(notebook: NotebookNode, place: Place, where: dict[str, list[int]]) -> Iterator[str]:
    prediction = isinstance(place.exercise, Prediction)
    wanted = KINDS if prediction else KINDS[:2]
    if sorted(where) != sorted(wanted) or any(len(numbers) != 1 for numbers in where.values()):
        yield f"has the cells {where}, and needs one each of {', '.join(wanted)}"
        return
    order = [where[kind][0] for kind in wanted]
    if order != sorted(order):
        yield f"the cells {', '.join(wanted)} stand in the order {order}"
    code = [cell.source for cell in notebook.cells[: order[0]] if cell.cell_type == "code"]
    if not any(source.strip().split("\n")[-1].strip() == place.constant for source in code):
        yield f"no cell before it shows the task ({place.constant})"
    calls = {"check": ("predict" if prediction else "check", r"\w+"), "compare": ("compare", ".+")}
    for kind in wanted[1:]:
        (call, argument), source = calls[kind], notebook.cells[where[kind][0]].source
        if not re.search(rf"(?s)(^|\n){call}\(\s*{place.constant},\s*{argument}\s*\)\s*$", source):
            yield f"the last line of its {kind} cell is not {call}({place.constant}, ...)"
        elif kind == "check" and not is_empty_answer(
            notebook.cells[order[0]].source, name := student_name(notebook, place.exercise.key)
        ):
            yield f"its cell does not hold an empty {name}"


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


@dataclass
class Result:
    """A notebook that was run: seconds, the slowest cell, and what went wrong."""

    name: str
    seconds: float
    slowest: tuple[int, float] = (0, 0.0)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        (cell, longest), verdict = self.slowest, "   WRONG" if self.wrong else ""
        head = f"{self.name:<28}{self.seconds:7.1f} s   slowest: cell {cell}, {longest:.1f} s{verdict}"
        return "\n".join([head, *(f"    {what}" for what in self.wrong)])


def execute(path: Path, out: Path, solved: bool = False, timeout: float = CELL_SECONDS, jobs: int = 1) -> Result:
    """Run a notebook in a kernel of its own, beside itself as a student does, and write it with its outputs to `out`.
    The progress it makes goes to a fresh folder there, and tells which checks passed. Where it is one of several `jobs`
    at once, it takes its share of the cores."""
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
    env = {**os.environ, FOLDER: str(progress.resolve())}
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
    for key in keys(notebook):
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
        found = problems(read(path), path.stem[:2])
        print("\n".join([f"{path.stem:<28}{'well' if not found else ''}", *(f"    {what}" for what in found)]))
        bad |= bool(found)
    raise typer.Exit(int(bad))


@app.command("execute")
def execute_command(
    names: Names = None,
    solutions: Annotated[bool, Option("--solutions", help="Solve every exercise first.")] = False,
    jobs: Annotated[int, Option(min=1, help="So many at once; the seconds then say less.")] = 1,
    out: Annotated[Path, Option(help="Where they go with their outputs.")] = Path("runs/notebooks"),
) -> None:
    """Run notebooks to their end."""
    begin, wrong = time.perf_counter(), False
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda path: execute(path, out, solutions, jobs=jobs), find(names or ())):
            print(result, flush=True)
            wrong |= bool(result.wrong)
    print(f"{'together':<28}{time.perf_counter() - begin:7.1f} s")
    raise typer.Exit(int(wrong))


if __name__ == "__main__":
    app(prog_name="python -m llama2lab.cli.notebooks")
