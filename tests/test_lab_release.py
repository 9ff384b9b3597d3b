"""`llama2lab class release`: what it writes, and nbgrader's round trip with it."""

import ast
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
from notebook_demo import demo, write_demo
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.cli.notebooks import find, places, read
from llama2lab.cli.release import as_assignment, graded, quiet_run, release, with_region
from llama2lab.engine.errors import LabError
from llama2lab.lessons.catalogue import all_exercises
from llama2lab.lessons.n02_transformer.exercises import GQA_LOSS, RMS_NORM, WHY_ROOT

POINTS = {
    "02.rms_norm": RMS_NORM.level.points,
    "02.why_root": WHY_ROOT.level.points,
    "02.gqa_loss": GQA_LOSS.level.points,
}
runner = CliRunner()


# ---- what is written ---------------------------------------------------------------------------------------------


def test_an_assignment_has_points_solutions_and_locked_checks():
    notebook, exercises = as_assignment(demo())
    assert [e.key for e in exercises] == list(POINTS)
    cells = [c for c in notebook.cells if "nbgrader" in c.metadata]
    assert notebook.cells[-3].source.endswith('sealed(GQA_LOSS, measured, "what shows it")')  # behind its two cells
    assert "ask(WHY_ROOT)" not in nbformat.writes(notebook) and WHY_ROOT.task[:30] in nbformat.writes(notebook)
    assert [c.metadata.nbgrader["grade"] for c in cells] == [False, True] * 3
    assert len({c.metadata.nbgrader["grade_id"] for c in cells}) == len(cells)
    for cell in cells:
        mark = cell.metadata.nbgrader
        assert mark["schema_version"] == 3 and mark["locked"] == mark["grade"] != mark["solution"]
        assert ("BEGIN HIDDEN TESTS" in cell.source) == mark["grade"]
        assert ("BEGIN SOLUTION" in cell.source) == mark["solution"]
        ast.parse(cell.source)
    assert [c.metadata.nbgrader["points"] for c in cells[1::2]] == list(POINTS.values())
    assert "nbgrader" not in demo().cells[2].metadata


def emptied(source):
    """As nbgrader takes a solution out."""
    lines, inside = [], False
    for line in source.split("\n"):
        if "BEGIN SOLUTION" in line:
            lines.append(line[: len(line) - len(line.lstrip())] + "...")
        inside = inside or "BEGIN SOLUTION" in line
        if not inside:
            lines.append(line)
        inside = inside and "END SOLUTION" not in line
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("02.rms_norm", "def rms_norm(x, weight, eps):\n    ..."),
        ("02.rms_norm", "def rms_norm(x, weight, eps): ..."),
        ("02.rms_norm", 'def rms_norm(x, weight, eps):\n    """Says it."""'),
        (
            "02.rms_norm",
            'def rms_norm(x, weight, eps):\n    """Says it."""\n    # and how\n    raise NotImplementedError',
        ),
        ("02.rms_norm", "import torch\n\ndef rms_norm(\n    x, weight,\n    eps,\n):\n    pass  # here\n\nother = 1"),
        ("02.why_root", 'why_root = ...  # "a", "b" or "c"'),
        ("02.why_root", "# think\nwhy_root = None\n"),
        ("02.gqa_loss", "gqa_loss = ..."),
    ],
)
def test_a_solution_is_put_in_and_taken_out_again(key, source):
    place, name = places()[key], key[3:]
    full = with_region(source, place, name)
    for text, status in ((full, "passed"), (emptied(full), "not attempted")):
        room = {place.constant: place.exercise}
        exec(text, room)
        assert quiet_run(place.exercise, room[name]).status == status, text
    for comment in ("# here", "# and how", '# "a", "b" or "c"', "# think", "other = 1"):
        assert (comment in source) == (comment in emptied(full))


def test_every_notebook_becomes_an_assignment(tmp_path):
    released = release(find(), tmp_path)
    assert sum(r.points for r in released) == sum(e.level.points for e in all_exercises())
    for one in released:
        nbformat.validate(read(one.path))


def test_what_a_teacher_changed_is_kept(tmp_path):
    path = write_demo(tmp_path)
    target = tmp_path / "course" / "source" / "02_demo" / "02_demo.ipynb"
    assert release([path], tmp_path / "course", "cs-1")[0].path == target
    config = tmp_path / "course" / "nbgrader_config.py"
    assert "'cs-1'" in config.read_text()
    target.write_text("changed")
    config.write_text("mine")
    with pytest.raises(LabError, match="--force"):
        release([path], tmp_path / "course")
    assert target.read_text() == "changed"
    release([path], tmp_path / "course", force=True)
    assert "BEGIN SOLUTION" in target.read_text() and config.read_text() == "mine"
    with pytest.raises(LabError, match="letters"):
        release([path], tmp_path / "other", "../x")


def test_a_check_is_an_error_only_where_nbgrader_runs(monkeypatch):
    assert graded(RMS_NORM, ...).status == "not attempted"
    assert graded(GQA_LOSS, 0.1).status == "noted"
    for program in ("validate", "autograde"):
        monkeypatch.setenv("NBGRADER_EXECUTION", program)
        assert graded(RMS_NORM, RMS_NORM.solution).passed and graded(GQA_LOSS, 0.1).passed
        for exercise, answer in ((RMS_NORM, ...), (WHY_ROOT, "a"), (GQA_LOSS, ...), (GQA_LOSS, 1000)):
            with pytest.raises(AssertionError, match=exercise.title[:20]):
                graded(exercise, answer)


@pytest.mark.filterwarnings("ignore:a warning")
def test_a_warning_is_no_failure(capsys):
    def noisy(x, weight, eps):
        warnings.warn("a warning", stacklevel=1)
        print("to stderr", file=sys.stderr)
        return RMS_NORM.solution(x, weight, eps)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert quiet_run(RMS_NORM, noisy).passed
    assert capsys.readouterr().err == ""


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_and_the_call_of_old(tmp_path):
    done = runner.invoke(app, ["class", "release", str(write_demo(tmp_path)), "--out", str(tmp_path / "course")])
    assert done.exit_code == 0 and f"3 exercises, {sum(POINTS.values())} points" in done.stdout, done.output
    assert "generate_assignment" in done.stdout
    again = runner.invoke(app, ["class", "release", str(tmp_path / "02_demo.ipynb"), "--out", str(tmp_path / "course")])
    assert again.exit_code == 2 and "--force" in again.stderr
    help_text = runner.invoke(app, ["class", "--help"]).stdout
    assert "release" in help_text and "logins" in help_text
    roster = tmp_path / "roster.csv"
    roster.write_text("Ada\n")
    for call in (["class", "logins"], ["class"]):
        wrong = runner.invoke(app, [*call, str(tmp_path / "labels.db"), str(roster)])
        assert wrong.exit_code == 2 and "PostgreSQL" in wrong.stderr, wrong.output


# ---- nbgrader ----------------------------------------------------------------------------------------------------


class Course:
    """A course folder, and nbgrader's commands in it."""

    def __init__(self, folder: Path, notebook: Path):
        self.folder, self.name = folder, notebook.stem
        release([notebook], folder)
        with (folder / "nbgrader_config.py").open("a") as config:  # a busy machine is slow to start and to say
            config.write("c.Execute.startup_timeout = c.Execute.iopub_timeout = 600\n")
        # A folder of settings of its own, so that the person's nbgrader is not touched.
        # It calls `alembic` by its name: its scripts must be found, as in an activated environment.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.env = {**os.environ, "PATH": path, "HOME": str(folder), "JUPYTER_CONFIG_DIR": str(folder / "jupyter")}

    def nbgrader(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    def notebook(self, *folder: str) -> Path:
        return self.folder.joinpath(*folder, self.name, f"{self.name}.ipynb")

    def submit(self, student: str, version: Path) -> None:
        target = self.notebook("submitted", student)
        target.parent.mkdir(parents=True)
        shutil.copy(version, target)

    def scores(self) -> dict[str, dict[str, tuple[float, float]]]:
        """{student: {cell: (score, of)}}, from nbgrader's own database."""
        with sqlite3.connect(self.folder / "gradebook.db") as db:
            rows = db.execute(
                "select a.student_id, b.name, g.auto_score, c.max_score from grade g join submitted_notebook n on "
                "g.notebook_id = n.id join submitted_assignment a on n.assignment_id = a.id join grade_cells c on "
                "g.cell_id = c.id join base_cell b on c.id = b.id"
            ).fetchall()
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for student, cell, score, of in rows:
            found.setdefault(student, {})[cell] = (score, of)
        return found


def round_trip(folder: Path, notebook: Path) -> None:
    """Full points for the solution, none for the empty one."""
    course = Course(folder, notebook)
    assert "Success" in course.nbgrader("validate", str(course.notebook("source")))
    course.nbgrader("generate_assignment", course.name)
    student = read(course.notebook("release"))
    text = nbformat.writes(student)
    assert "BEGIN SOLUTION" not in text and "HIDDEN TESTS" not in text and "solution(" not in text
    assert "VALIDATION FAILED" in course.nbgrader("validate", str(course.notebook("release")))
    course.submit("ada", course.notebook("source"))
    course.submit("nobody", course.notebook("release"))
    course.nbgrader("autograde", course.name)
    scores = course.scores()
    _, exercises = as_assignment(read(notebook))
    want = {f"check_{e.key.replace('.', '_')}": float(e.level.points) for e in exercises}
    assert scores["ada"] == {cell: (points, points) for cell, points in want.items()}
    assert scores["nobody"] == {cell: (0.0, points) for cell, points in want.items()}
    for cell in read(course.notebook("autograded", "nobody")).cells:
        if cell.cell_type == "code" and not cell.metadata.get("nbgrader", {}).get("grade"):
            errors = [o for o in cell.outputs if o.output_type == "error"]
            assert not errors, f"the empty one runs to its end: {errors}"


@pytest.mark.long
@pytest.mark.slow
def test_nbgraders_round_trip_of_a_small_notebook(tmp_path):
    pytest.importorskip("nbgrader")
    round_trip(tmp_path / "course", write_demo(tmp_path))


@pytest.mark.slow
def test_nbgraders_round_trip_of_a_real_notebook(tmp_path):
    pytest.importorskip("nbgrader")
    round_trip(tmp_path / "course", find(["00"])[0])
