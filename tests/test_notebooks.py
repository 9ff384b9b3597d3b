"""The notebooks as files, and what reads, solves and runs them. `.ci/run` runs all of them to their end."""

import ast
import builtins
import importlib
import itertools
import re
import textwrap
import time
from dataclasses import replace
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell
from notebook_demo import demo, marked, write_demo
from typer.testing import CliRunner

from llama2lab.cli import notebooks
from llama2lab.cli.notebooks import NAMES, NOTEBOOKS, execute, find, problems, read, with_solutions
from llama2lab.engine.errors import LabError
from llama2lab.lab.checking import Level, run
from llama2lab.lab.finished import SHIPPED
from llama2lab.lab.predictions import Prediction
from llama2lab.lessons.catalogue import all_exercises, all_experiments

THERE = sorted(NOTEBOOKS.glob("*.ipynb"))
CLAIMS = 28


def texts(path, kind):
    return [cell.source for cell in read(path).cells if cell.cell_type == kind]


# ---- the notebooks that are shipped ------------------------------------------------------------------------------


def test_all_are_there():
    assert tuple(path.stem for path in THERE) == NAMES


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_every_exercise_stands_in_its_notebook(path):
    assert problems(read(path), path.stem[:2]) == []


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_what_it_links_to_is_there(path):
    for link in re.findall(r"\]\(([^)\s#]+)", "\n".join(texts(path, "markdown"))):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_logic_is_in_the_library(path):
    """Functions and classes are written in a notebook only as exercises; one that only returns is no logic."""
    for cell in read(path).cells:
        if cell.cell_type == "code" and "exercise" not in cell.metadata.get("lab", {}):
            own = [
                node.name
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not (len(node.body) == 1 and isinstance(node.body[0], ast.Return))
            ]
            assert not own, f"{own} belongs into the library"


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_what_a_notebook_asks_of_its_modules_is_there(path):
    """A function that a lesson loses is missed here, not only where the whole notebook is run."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    line = re.match(r"from (llama2lab\.notebooks\.\w+) import \*", code[0].splitlines()[0])
    modules = {name: m for name, m in vars(importlib.import_module(line[1])).items() if isinstance(m, ModuleType)}
    asked = [
        (node.value.id, node.attr)
        for source in code
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]
    assert asked or not modules.keys() & set(importlib.import_module(line[1]).__all__)
    assert [f"{name}.{attr}" for name, attr in asked if not hasattr(modules[name], attr)] == []


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_one_line_brings_all_that_it_calls_and_nothing_else(path):
    """An exercise may import what its code needs."""
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    code, ours = [cell.source for cell in cells], [cell.source for cell in cells if "lab" not in cell.metadata]
    line = re.match(r"from (llama2lab\.notebooks\.n(\d\d)_\w+) import \*\n", code[0])
    assert line and line[2] == path.stem[:2], code[0][:80]
    assert not re.search(r"(?m)^\s*(import|from) ", "\n".join(ours)[line.end() :]), "a second import"
    brought = set(importlib.import_module(line[1]).__all__)
    nodes = [node for source in code for node in ast.walk(ast.parse(source))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {a.arg for a in nodes if isinstance(a, ast.arg)}
    made |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.alias)}
    called = {n.id for n in names if isinstance(n.ctx, ast.Load)} - made - vars(builtins).keys() - {"display"}
    assert called == brought, f"missing: {called - brought}; never called: {brought - called}"


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_sums_of_money_are_not_typeset_as_mathematics(path):
    """Two dollar signs make a formula of the sentence between them."""
    for text in texts(path, "markdown"):
        plain = re.sub(r"`[^`]*`|\\text\{[^}]*\}|\$\$.*?\$\$", "", text, flags=re.DOTALL)
        sentences = [m for m in re.findall(r"\$([^$]+)\$", plain) if re.search(r"(?<!\\)\b[a-z]{3,} +[a-z]{3,}\b", m)]
        assert sentences == [] and plain.count("$") % 2 == 0, sentences


@pytest.mark.parametrize("path", THERE, ids=lambda p: p.stem)
def test_its_head_says_what_a_reader_wants_to_know(path):
    head = read(path).cells[0].source
    for word in ("section", "Run All"):  # how long it takes is held by tests/test_run_all.py
        assert re.search(word, head, re.IGNORECASE), f"the first cell does not say: {word}"


def test_every_claim_has_its_place():
    headings = "\n".join(re.findall(r"(?m)^#+ .*$", "\n".join(t for p in THERE for t in texts(p, "markdown"))))
    named = {
        int(number)
        for group in re.findall(r"Claims? ((?:\d+(?:, | and )?)+)", headings)
        for number in re.findall(r"\d+", group)
    }
    assert named == set(range(1, CLAIMS + 1))


def test_what_they_show_as_measured_with_the_run_is_shipped_with_it():
    """Else Run All would measure it anew. Cure: llama2lab experiments data/run NAME."""
    code = "\n".join(t for p in THERE for t in texts(p, "code"))
    named = set(re.findall(r"lab\.measured\((?:\w+\.)*(\w+)\)", code))
    assert named <= set(all_experiments())
    missing = {name for name in named if not (SHIPPED / "experiments" / f"{name}.json").is_file()}
    assert named and not missing


def test_each_leads_to_the_next():
    for path, after in itertools.pairwise(THERE):
        assert after.name in "\n".join(texts(path, "markdown")[-2:]), f"{path.name} does not link to {after.name}"


@pytest.mark.parametrize(("name", "function"), [("02_transformer", "plain_attention"), ("08_ppo", "plain_iteration")])
def test_what_a_student_reads_is_what_is_tested(name, function):
    """Long code is shown from its source, never copied."""
    assert f"source({function})" in texts(NOTEBOOKS / f"{name}.ipynb", "code")


# ---- what is wrong with a notebook is found ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def three_exercises(monkeypatch, request):
    """For the demo, the catalogue holds the demo's exercises alone."""
    if "demo" in request.node.name:
        three = {
            key: place
            for key, place in notebooks.places().items()
            if key in ("02.rms_norm", "02.why_root", "02.gqa_loss")
        }
        monkeypatch.setattr(notebooks, "places", lambda: three)


def test_nothing_is_wrong_with_the_demo():
    assert problems(demo(), "02") == []


CODE, QUESTION, PREDICTION = 2, 3, 4  # the cells of the demo's exercises


def put(at, old, new):
    """A change of the demo: other words in one cell."""

    def change(notebook):
        assert old in notebook.cells[at].source
        notebook.cells[at].source = notebook.cells[at].source.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n.cells.pop(0), "not a title"),
        (lambda n: n.cells.pop(1), "finished run"),
        (lambda n: n.cells.pop(QUESTION), "02.why_root of the catalogue stands in 0 cells"),
        (lambda n: n.cells.append(n.cells[QUESTION]), "02.why_root of the catalogue stands in 2 cells"),
        (lambda n: n.cells.append(marked("ask(OTHER)", "02.other")), "02.other is no exercise"),
        (put(CODE, "def rms_norm", "def norm"), "an empty rms_norm"),
        (put(CODE, "    ...", "    return x"), "an empty rms_norm"),
        (put(CODE, "check(RMS_NORM, rms_norm)", "check(ROPE, rms_norm)"), r"not check\(RMS_NORM, a name\)"),
        (put(CODE, "check(RMS_NORM, rms_norm)", "check(RMS_NORM, rms_norm)\n1"), "last line"),
        (put(CODE, "# RMSNorm", "# Norm"), "does not begin with its task"),
        (put(QUESTION, "ask(WHY_ROOT)", 'ask(WHY_ROOT, "b")'), r"not ask\(WHY_ROOT\)"),
        (put(PREDICTION, "sealed(GQA_LOSS", "sealed(WHY_ROOT"), r"not sealed\(GQA_LOSS"),
        (put(PREDICTION, 'sealed(GQA_LOSS, measured, "what shows it")', "sealed(GQA_LOSS)"), r"not sealed\(GQA_LOSS"),
        (lambda n: n.cells[CODE].metadata.lab.update(check="02.rms_norm"), "unknown mark 'check'"),
        (lambda n: n.cells[2].update(execution_count=3), "outputs are stored"),
        (lambda n: n.cells[2].update(source="open('/home/ada/x')"), "somebody's machine"),
        (lambda n: n.cells.pop(), "summary"),
        (lambda n: n.cells.extend([new_markdown_cell("more")] * 50), "57 cells, and an hour has room for 55"),
        (lambda n: n.metadata.kernelspec.update(name="julia"), "kernel"),
    ],
)
def test_what_is_wrong_is_named_in_the_demo(change, words):
    notebook = demo()
    change(notebook)
    found = "\n".join(problems(notebook, "02"))
    assert re.search(words, found), found


def test_every_exercise_can_be_solved_or_filled_in():
    for exercise in all_exercises():
        place = notebooks.places()[exercise.key]
        assert place.exercise is exercise
        if isinstance(exercise, Prediction):
            assert run(exercise, notebooks.answer_of(exercise)).passed
        elif not notebooks.is_code(exercise):
            assert run(exercise, ast.literal_eval(repr(notebooks.answer_of(exercise)))).passed, exercise.key


def test_notebooks_are_found_by_number_name_and_path(tmp_path):
    for name in ("00_start", "02_demo"):
        nbformat.write(demo(), tmp_path / f"{name}.ipynb")
    assert [p.stem for p in find(folder=tmp_path)] == ["00_start", "02_demo"]
    assert [p.stem for p in find(["02"], tmp_path)] == ["02_demo"] == [p.stem for p in find(["02_demo"], tmp_path)]
    assert find([str(tmp_path / "00_start.ipynb")], tmp_path) == [tmp_path / "00_start.ipynb"]
    with pytest.raises(LabError, match=r"no notebook '03'.*00_start, 02_demo"):
        find(["03"], tmp_path)
    with pytest.raises(LabError, match="no notebooks in"):
        find(folder=tmp_path / "none")


def test_the_command_takes_names_before_and_after_its_options(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        notebooks,
        "execute",
        lambda path, out, solved, jobs: (
            ran.append((path.stem, solved, jobs))
            or notebooks.Result(path.stem, 1.0, wrong=["cell 3: x"] if path.stem == "b" else [])
        ),
    )
    for name in ("a", "b"):
        nbformat.write(demo(), tmp_path / f"{name}.ipynb")
    a, b = str(tmp_path / "a.ipynb"), str(tmp_path / "b.ipynb")
    first = CliRunner().invoke(notebooks.app, ["execute", a, "--solutions", "--jobs", "2", "--out", str(tmp_path)])
    second = CliRunner().invoke(notebooks.app, ["execute", "--out", str(tmp_path), a, b])
    assert (first.exit_code, second.exit_code) == (0, 1), first.output
    assert ran == [("a", True, 2), ("a", False, 1), ("b", False, 1)] and "cell 3: x" in second.output


# ---- running -----------------------------------------------------------------------------------------------------


def test_the_demo_runs_as_shipped_and_solved(tmp_path):
    path = write_demo(tmp_path)
    shipped, solved = execute(path, tmp_path / "a"), execute(path, tmp_path / "b", solved=True)
    assert (shipped.wrong, solved.wrong) == ([], [])
    assert shipped.seconds > shipped.slowest[1] > 0
    done, as_shipped = read(tmp_path / "b" / path.name), read(tmp_path / "a" / path.name)
    assert "Passed: RMSNorm" in text_of(done, CODE) and "Not attempted yet" in text_of(as_shipped, CODE)
    assert "Passed: " in text_of(done, QUESTION) and "Passed: " not in text_of(as_shipped, QUESTION)
    assert "measured is 0.02" in text_of(done, PREDICTION) and "0.02" not in text_of(as_shipped, PREDICTION)
    assert text_of(as_shipped, PREDICTION + 1) == "0.02"
    assert "3 of 3" in text_of(done, -1)
    assert not list(tmp_path.glob("lab-progress*"))
    assert with_solutions(demo()).cells[CODE].source != demo().cells[CODE].source


def text_of(notebook, at):
    return notebook.cells[at].outputs[0]["data"]["text/plain"]


def test_tasks_are_written_anew_and_code_is_kept(tmp_path):
    path = write_demo(tmp_path)
    notebook = read(path)
    put(CODE, "# RMSNorm", "# Norm")(notebook)
    put(CODE, "    ...", "    return x  # mine")(notebook)
    nbformat.write(notebook, path)
    assert CliRunner().invoke(notebooks.app, ["tasks", str(path)]).exit_code == 0
    cell = read(path).cells[CODE].source
    assert cell.startswith(notebooks.task_lines(notebooks.places()["02.rms_norm"].exercise) + "\ndef rms_norm")
    assert "return x  # mine" in cell and "# Norm" not in cell
    before = path.read_bytes()
    CliRunner().invoke(notebooks.app, ["tasks", str(path)])
    assert path.read_bytes() == before


def test_an_hour_of_the_demo_holds_an_hour_of_exercises(monkeypatch):
    key, places = "02.rms_norm", notebooks.places()
    slow = replace(places[key].exercise, level=Level(difficulty=1, minutes=61, points=2))
    for extra, words in ((False, "minutes of exercises that are not marked as extra"), (True, "")):
        place = replace(places[key], exercise=replace(slow, extra=extra))
        monkeypatch.setattr(notebooks, "places", lambda place=place: {**places, key: place})
        found = [p for p in problems(demo(), "02") if "task" not in p]
        assert bool(found) == bool(words) and all(words in p for p in found), found


def test_check_says_how_long_a_notebook_is(tmp_path):
    said = CliRunner().invoke(notebooks.app, ["check", str(write_demo(tmp_path))])
    assert re.search(r"02_demo +7 cells, +3 exercises, +1 of them code: +\d+ minutes", said.output), said.output


def test_a_wrong_answer_and_a_cell_that_fails_are_found_in_the_demo(tmp_path):
    notebook = demo()
    notebook.cells[QUESTION].source = "ask(WHY_ROOT, 'a')"
    nbformat.write(notebook, tmp_path / "02_wrong.ipynb")
    assert execute(tmp_path / "02_wrong.ipynb", tmp_path / "out").wrong == ["02.why_root: failed, as it is shipped"]
    notebook.cells[PREDICTION].source = "1 / 0"
    nbformat.write(notebook, tmp_path / "02_wrong.ipynb")
    assert execute(tmp_path / "02_wrong.ipynb", tmp_path / "out").wrong == [
        "cell 4: ZeroDivisionError: division by zero"
    ]


# ---- the stop button ---------------------------------------------------------------------------------------------

TRAINING = textwrap.dedent("""
    import time
    import torch
    from pathlib import Path
    from llama2lab.engine.device import Machine
    from llama2lab.model.network import Llama, ModelConfig
    from llama2lab.engine.optim import Optim
    from llama2lab.engine.packing import pack
    from llama2lab.stages.pretrain import fit_packed

    def train(folder, pause=0.0):
        model = Llama(ModelConfig(32, 16, 1, 2, 1, 24, max_seq_len=32), seed=1)
        data = pack([([i % 32] * 9, [1] * 9) for i in range(64)], 32, 0, 3)
        def on_step(step):
            print(f"step {step}", flush=True)
            time.sleep(pause if step < 9 else 50 * pause)  # long enough for a stop button that is slow
        fit_packed(model, data, 4, 32, Optim(1e-3), 0, Machine(torch.device("cpu"), "fp32"), folder,
                   on_step=on_step)
        return sum(p.double().sum().item() for p in model.parameters())
""")


class Kernel:
    """A kernel as JupyterLab starts it, with its stop button."""

    def __init__(self):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(startup_timeout=300, kernel_name="python3")

    def run(self, code, stop_after=None):
        """(what it printed, the error's name or ''); `stop_after` is a line at which the stop button is pressed."""
        request, printed, error = self.client.execute(code), "", ""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                printed += content["text"]
                if stop_after and stop_after in printed.split("\n"):
                    self.manager.interrupt_kernel()
                    stop_after = None
            elif message["msg_type"] == "error":
                error = content["ename"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed, error
        raise AssertionError(f"the kernel did not come to an end: {printed[-300:]}")

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def steps(printed):
    return [int(n) for n in re.findall(r"step (\d+)", printed)]


def test_the_stop_button_keeps_the_work_and_the_next_run_goes_on(tmp_path):
    kernel = Kernel()
    try:
        kernel.run(TRAINING)
        printed, error = kernel.run(f"print('end', train(Path({str(tmp_path)!r}), 0.03))", "step 9")
        before = steps(printed)
        assert error == "KeyboardInterrupt" and before[0] == 0 and 9 <= before[-1] < 60
        printed, error = kernel.run(f"print('end', train(Path({str(tmp_path)!r}), 0.0))")
        assert error == "" and steps(printed)[0] == before[-1] + 1, "it goes on where it was"
        undisturbed, _ = kernel.run("print('end', train(None, 0.0))")
        assert before + steps(printed) == steps(undisturbed) and len(steps(undisturbed)) >= 64
        assert printed.split("end ")[1] == undisturbed.split("end ")[1]
    finally:
        kernel.close()
