"""The notebooks as assignments of nbgrader: `llama2lab class release all --out course`.

A code exercise becomes a function whose solution is taken out, a question or prediction a value in parentheses; its
check becomes a locked cell that earns the exercise's points. A prediction earns them for being made, right or wrong.
Nothing here imports nbgrader: it is needed where the course is graded.
"""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import disk_errors
from llama2lab.lab.checking import Exercise, Outcome, run
from llama2lab.lab.predictions import Prediction
from llama2lab.lab.progress import check, predict

if TYPE_CHECKING:
    from llama2lab.cli.notebooks import Place

CONFIG = '''"""Settings of nbgrader for this course; give its commands in this folder."""
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = {course!r}
c.ClearSolutions.code_stub = {{"python": "..."}}  # what stands where a solution was: not attempted is no error
c.Execute.timeout = 600  # seconds; some cells train
'''


@dataclass(frozen=True)
class Released:
    """An assignment that was written."""

    path: Path
    exercises: int
    points: int


def release(notebooks: Sequence[Path], out: Path, course: str = "llama2lab", force: bool = False) -> list[Released]:
    """Write OUT/source/NAME/NAME.ipynb for every notebook, and OUT/nbgrader_config.py where there is none. Assignments
    that are there already are left as they are, unless `force`: a teacher may have changed them."""
    import nbformat

    from llama2lab.cli.notebooks import read

    if not re.fullmatch(r"[A-Za-z0-9_-]+", course):
        raise LabError(f"a course is named with letters, digits, _ and - alone, not {course!r}")
    targets = {path: out / "source" / path.stem / path.name for path in notebooks}
    there = [target for target in targets.values() if target.exists()]
    if there and not force:
        raise LabError(f"{there[0]} is there already; --force writes it anew")
    released = []
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "nbgrader_config.py").exists():
            (out / "nbgrader_config.py").write_text(CONFIG.format(course=course), encoding="utf-8")
        for path, target in targets.items():
            assignment, exercises = as_assignment(read(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(assignment, target)
            for picture in sorted(set(re.findall(r"pictures/[\w.-]+", nbformat.writes(assignment)))):
                (target.parent / "pictures").mkdir(exist_ok=True)
                shutil.copy(path.parent / picture, target.parent / picture)
            released.append(Released(target, len(exercises), sum(e.level.points for e in exercises)))
    return released


def as_assignment(notebook: Any) -> tuple[Any, list[Exercise]]:
    """The teacher's version of a notebook, and the exercises in it. The one cell of an exercise becomes a cell for the
    answer and one that checks it; that of a prediction stays behind them, and shows its result to who has predicted."""
    import nbformat

    from llama2lab.cli.notebooks import marks, places

    notebook, exercises, cells = nbformat.from_dict(notebook), [], []
    places_of = {number: places()[key] for key, number in marks(notebook).items()}
    for number, cell in enumerate(notebook.cells):
        if place := places_of.get(number):
            exercises.append(place.exercise)
            cells += _answer_and_check(cell, place)
        if not place or isinstance(place.exercise, Prediction):
            cells.append(cell)
    notebook.cells = cells
    return notebook, exercises


def _answer_and_check(cell: Any, place: Place) -> list[Any]:
    """Two cells for nbgrader: the answer with the solution in it, and what it earns."""
    import nbformat

    from llama2lab.cli.notebooks import is_code, student_name, task_lines

    exercise, key = place.exercise, place.exercise.key.replace(".", "_")
    if is_code(exercise):
        name = student_name(cell.source, place)
        empty = cell.source[: cell.source.rindex("check(")].rstrip()
    else:
        name = place.constant.lower()
        options = "".join(f"# {line}\n" for line in getattr(exercise.check, "lines", ()))
        empty = f"{task_lines(exercise)}\n{options}{name} = ..."
    checks = (
        "from llama2lab.cli.release import graded\n\n"
        f"graded({place.constant}, {name})\n"
        "### BEGIN HIDDEN TESTS\n"
        f"from {place.module} import {place.constant} as exercise\n"
        "from llama2lab.cli.release import quiet_run\n\n"
        f"outcome = quiet_run(exercise, {name})\n"
        "assert outcome.passed, outcome\n"
        "### END HIDDEN TESTS"
    )
    made = []
    for kind, source in (("exercise", with_region(empty, place, name)), ("check", checks)):
        grade = kind == "check"
        grading = {"schema_version": 3, "grade_id": f"{kind}_{key}", "task": False}
        grading |= {"grade": grade, "locked": grade, "solution": not grade}
        grading |= {"points": exercise.level.points} if grade else {}
        made.append(nbformat.v4.new_code_cell(source, metadata={"nbgrader": grading}))
    return made


def with_region(source: str, place: Place, name: str) -> str:
    """A student's empty cell with the solution in it, between the marks that nbgrader knows."""
    from llama2lab.cli.notebooks import answer_of, definition

    node = definition(source, name)
    if node is None:
        raise LabError(f"{place.exercise.key}: its cell does not define {name}")
    lines = source.split("\n")
    if isinstance(node, ast.Assign):
        begin, end = lines[node.lineno - 1][: node.value.col_offset], lines[(node.end_lineno or node.lineno) - 1]
        region = _region("    ", repr(answer_of(place.exercise)))
        answer = [f"{begin}(", *region, ")" + end[node.value.end_col_offset :]]
        return "\n".join([*lines[: node.lineno - 1], *answer, *lines[node.end_lineno or node.lineno :]])
    brought = "from llama2lab.lab.checking import solution"
    if isinstance(node, ast.ClassDef):
        return "\n".join([source, *_region("", f"{brought}\n{name} = solution({place.constant})")])
    arguments = ", ".join(a.arg for a in [*node.args.posonlyargs, *node.args.args])
    empty = node.body[1:] if ast.get_docstring(node) is not None else node.body
    region = _region(" " * (node.col_offset + 4), f"{brought}\nreturn solution({place.constant})({arguments})")
    if not empty:
        return "\n".join([*lines[: node.end_lineno], *region, *lines[node.end_lineno :]])
    first, last = empty[0], empty[-1]
    kept = [
        lines[first.lineno - 1][: first.col_offset].rstrip(),  # def f(x): ... on one line
        lines[(last.end_lineno or last.lineno) - 1][last.end_col_offset :],
    ]  # a comment behind it
    kept[1] = kept[1] and " " * (node.col_offset + 4) + kept[1].strip()
    return "\n".join([*lines[: first.lineno - 1], *filter(None, kept), *region, *lines[last.end_lineno :]])


def _region(indent: str, code: str) -> list[str]:
    return [indent + line for line in ("### BEGIN SOLUTION", *code.split("\n"), "### END SOLUTION")]


# ---- what the assignments call -----------------------------------------------------------------------------------


def graded(exercise: Exercise, answer: Any) -> Outcome:
    """Check an answer, or keep a prediction, as in the lab. Under `nbgrader validate` and `autograde` what has not
    passed is an error, which is how nbgrader knows."""
    if os.environ.get("NBGRADER_EXECUTION") not in ("validate", "autograde"):
        return predict(exercise, answer) if isinstance(exercise, Prediction) else check(exercise, answer)
    outcome = quiet_run(exercise, answer)
    assert outcome.passed, outcome
    return outcome


def quiet_run(exercise: Exercise, answer: Any) -> Outcome:
    """`run` without what the answer writes to stderr: nbgrader takes a warning for a failure. A prediction passes if
    its value can be."""
    with redirect_stderr(io.StringIO()):
        return run(exercise, answer)
