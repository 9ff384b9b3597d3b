"""How long notebooks take: what is stored is what their heads, the README and notebook 00 say, and within the limits;
what is measured is held against it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from notebook_demo import demo
from typer.testing import CliRunner

from llama2lab.cli import notebooks, timing
from llama2lab.cli.notebooks import NAMES, NOTEBOOKS, read
from llama2lab.cli.timing import Held, Result
from llama2lab.engine.errors import LabError
from llama2lab.lab import run_all
from llama2lab.lab.finished import LIVE, RUN, SHIPPED
from llama2lab.lab.run_all import LIMITS, NOT_MEASURED, Times, in_all, in_table, in_words, read_times, with_seconds
from llama2lab.lessons.n00_start import figures

MARK = "**Takes** <!-- evidence: seconds -->{}<!-- /evidence -->"
MACHINE = {
    "cpu": "abacus",
    "cores": 2,
    "threads": 2,
    "precision": "bf16",
    "gflops": {"fp32": 200, "bf16": 500},
    "torch": "2",
}
SLOW = {**MACHINE, "precision": "fp32"}
FAST = Times(MACHINE, "2026-11-30", {"00_a": 12.4, "02_b": 27.5}, {"00_a": 1.0, "02_b": 8.0}, {"00_a": 20, "02_b": 40})
WITHOUT = replace(FAST, machine=SLOW, first={"00_a": 31.0, "02_b": 88.0})
BOTH = {"bf16": FAST, "fp32": WITHOUT}


# ---- what is stored, and what is said ----------------------------------------------------------------------------


def test_every_notebook_is_measured_and_within_its_limit() -> None:
    """Cure: python -m llama2lab.cli.notebooks time --write, with nothing else on the machine."""
    stored = read_times()
    assert stored, f"no seconds are stored: {run_all.COMMAND}"
    for kind, times in stored.items():
        assert times.machine["cores"] == run_all.CORES and times.machine["precision"] == kind
        for part in (times.first, times.again, times.solved):
            assert sorted(part) == sorted(NAMES)
        slow = {name: seconds for name, seconds in times.first.items() if seconds > LIMITS[kind]}
        assert not slow, f"Run All in {kind} takes more than {LIMITS[kind]} seconds: {slow}"


@pytest.mark.parametrize("name", NAMES)
def test_a_head_says_what_is_stored(name) -> None:
    """A figure that is changed by hand fails here."""
    head = read(NOTEBOOKS / f"{name}.ipynb").cells[0].source
    assert head == with_seconds(head, in_words(name, read_times()), name)
    rest = run_all.HEAD.sub("", head)
    assert not re.search(r"\bseconds?\b|\d+ minutes? on", rest), "a time of computing outside of the mark"


def test_notebook_00_shows_what_is_stored(monkeypatch) -> None:
    shown = {file.removesuffix(".ipynb"): time for file, _, time, _ in figures.notebooks()}
    assert shown == {name: in_table(name, read_times()) for name in NAMES}
    monkeypatch.setattr(figures, "read_times", lambda: {"bf16": replace(FAST, first={NAMES[2]: 44.0})})
    assert {time for _, _, time, _ in figures.notebooks()} == {"45 seconds", "not measured"}


def test_seconds_are_rounded_to_five_and_never_to_nothing() -> None:
    assert [run_all.rounded(s) for s in (0.2, 7.4, 7.5, 12.4, 12.5, 60.0)] == [5, 5, 10, 10, 15, 60]


def test_words_tell_each_kind_of_machine() -> None:
    assert in_words("02_b", BOTH) == "about 30 seconds on two cores with fast bfloat16 (90 without), 10 the next time"
    assert in_words("02_b", {"bf16": FAST}) == "about 30 seconds on two cores with fast bfloat16, 10 the next time"
    assert (
        in_words("02_b", {"fp32": WITHOUT}) == "about 90 seconds on two cores without fast bfloat16, 10 the next time"
    )
    assert in_words("03_c", BOTH) == NOT_MEASURED == in_words("02_b", {})
    assert [in_table("02_b", s) for s in (BOTH, {"bf16": FAST}, {"fp32": WITHOUT}, {})] == [
        "30 seconds (90 without fast bfloat16)",
        "30 seconds",
        "90 seconds (without fast bfloat16)",
        "not measured",
    ]
    assert in_all(BOTH).endswith(
        "*Run All* takes 10 to 30 seconds on two cores with fast bfloat16 (30 to 90 without), the next 5 to 10."
    )
    assert in_all({"bf16": FAST}).endswith("takes 10 to 30 seconds on two cores with fast bfloat16, the next 5 to 10.")
    assert "not measured" in in_all({})


def test_a_head_wants_its_mark_once() -> None:
    head = f"# 02\n\n{MARK.format('about 5 seconds')};\nreading"
    assert with_seconds(head, "a \\1 day", "02") == head.replace("about 5 seconds", "a \\1 day")
    for text in ("# 02", head + head, head.replace("**Takes** ", "")):
        with pytest.raises(LabError, match=r"^02: its first cell wants its time once"):
            with_seconds(text, "", "02")


def test_what_is_stored_is_read_again(tmp_path) -> None:
    path = tmp_path / run_all.FILE
    assert read_times(path) == {}
    path.write_text(json.dumps(run_all.as_json(BOTH)))
    assert read_times(path) == BOTH
    for text, words in (('{"fp16": {}}', "machine"), ("{", r":1: broken JSON"), ("[]", "remove it and measure anew")):
        path.write_text(text)
        with pytest.raises(LabError, match=words):
            read_times(path)
    path.write_text(json.dumps({"fp16": run_all.as_json(BOTH)["fp32"]}))
    with pytest.raises(LabError, match="'fp16' is no precision of bf16, fp32"):
        read_times(path)


# ---- held against what is stored ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"gflops": {"bf16": 340}}, ""),
        ({"gflops": {"bf16": 330}}, "at 500 GFLOP/s, and here at 330"),
        ({"gflops": {"bf16": 760}}, "at 500 GFLOP/s, and here at 760"),
        ({"cores": 4}, "of 2 cores, and here are 4"),
        ({"precision": "fp32"}, "none are stored for a machine without fast bfloat16"),
    ],
)
def test_only_machines_of_one_kind_are_compared(change, words) -> None:
    why = run_all.unlike({"bf16": FAST}, {**MACHINE, **change})
    assert words in why and bool(words) == bool(why)
    held = timing.held("solved", {**MACHINE, **change}, {"bf16": FAST})
    assert held.why_not == why and bool(held.stored) != bool(why)


def test_seconds_beyond_a_factor_of_two_are_wrong() -> None:
    held = Held({"02_b": 20.0})
    assert [bool(held.wrong(Result("02_b", s))) for s in (9.9, 10.0, 40.0, 40.1)] == [True, False, False, True]
    assert not Held({"02_b": 2.0}).wrong(Result("02_b", 6.9)), "what the rounded words do not tell"
    assert "90 s, and 20 s are stored" in held.wrong(Result("02_b", 90.0))[0]
    assert "not stored" in held.wrong(Result("03_c", 20.0))[0]
    assert held.wrong(Result("02_b", 90.0, wrong=["cell 3 failed"])) == [], "it did not come to its end"
    off = Held(why_not="the moon")
    assert off.wrong(Result("02_b", 90.0)) == [] and str(off) == "seconds are not held: the moon"


def test_execution_holds_only_what_is_done_as_it_was_stored(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(LIVE, str(tmp_path / "live"))
    monkeypatch.setenv(RUN, str(SHIPPED))
    monkeypatch.setattr(timing, "held", lambda kind: Held({kind: 1.0}))
    ours = [NOTEBOOKS / "00_a.ipynb"]

    def why(paths=ours, solved=True, jobs=2):
        return timing.held_in_execution(paths, NOTEBOOKS, solved, jobs).why_not

    assert timing.held_in_execution(ours, NOTEBOOKS, True, 2) == Held({"solved": 1.0})
    assert "--solutions --jobs 2" in why(solved=False) and "--solutions --jobs 2" in why(jobs=1)
    assert "not all of them lie in" in why([tmp_path / "00_a.ipynb"])
    monkeypatch.setenv(RUN, str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    assert "do not open the shipped run" in why()
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "measured.json").write_text("{}")
    assert "measured already" in why()


def test_a_notebook_is_executed_with_a_store_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(LIVE, "another")
    notebook = demo()
    notebook.cells = notebook.cells[:1] + notebook.cells[-2:-1]
    notebook.cells[1].source = f"import os\nos.environ[{LIVE!r}]"
    nbformat.write(notebook, tmp_path / "02_b.ipynb")
    result = notebooks.execute(tmp_path / "02_b.ipynb", tmp_path / "out", more={LIVE: "here"})
    assert result.wrong == [] and result.seconds > 0
    assert read(tmp_path / "out" / "02_b.ipynb").cells[1].outputs[0]["data"]["text/plain"] == "'here'"


def test_what_took_too_long_is_executed_once_more_alone(tmp_path, monkeypatch) -> None:
    seconds, stores = [90.0], []

    def execute(path, out, solved=False, jobs=1, more=None):
        stores.append((more or {}).get(LIVE))
        return Result(path.stem, seconds.pop(0))

    def call():
        return CliRunner().invoke(notebooks.app, ["execute", "--solutions", "--out", str(tmp_path)])

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "find", lambda names: [tmp_path / "02_b.ipynb"])
    monkeypatch.setattr(timing, "held_in_execution", lambda *_: Held({"02_b": 20.0}))
    seconds[1:] = [30.0]
    assert call().exit_code == 0 and stores[0] is None and stores[1]
    seconds += [90.0, 80.0]
    assert (said := call()).exit_code == 1 and "02_b, once more: 80 s, and 20 s are stored" in said.output


# ---- measured and written ----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two notebooks on a quiet machine of two cores, and what was executed there; a first Run All takes
    12 s, the next 3, solved 20."""
    root = tmp_path / "checkout"
    for folder in ("data", "notebooks"):
        (root / folder).mkdir(parents=True)
    for name in ("00_a", "02_b"):
        notebook = demo()
        notebook.cells[0].source = f"# {name}\n\n{MARK.format('long')};"
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
    ran = []

    def execute(path, out, solved=False, jobs=1, more=None):
        store = Path(more[LIVE])
        first = not (store / path.stem).exists()
        store.mkdir(exist_ok=True)
        (store / path.stem).touch()
        ran.append((path.stem, solved, jobs, more[RUN]))
        return Result(path.stem, 20.0 if solved else 12.0 if first else 3.0, (0, 0.0), list(wrong))

    wrong: list[str] = []
    for module, name, value in (
        (notebooks, "NOTEBOOKS", root / "notebooks"),
        (notebooks, "ROOT", root),
        (notebooks, "NAMES", ("00_a", "02_b")),
        (notebooks, "execute", execute),
        (notebooks, "find", lambda names=(): [root / "notebooks" / f"{n}.ipynb" for n in names or ("00_a", "02_b")]),
        (timing, "cores", lambda: 2),
        (timing, "beside", lambda: 0.3),
        (timing, "describe_machine", lambda: MACHINE),
        (timing, "read_times", lambda: read_times(root / "data" / run_all.FILE)),
        (timing, "write_pages", lambda root: []),
    ):
        monkeypatch.setattr(module, name, value)

    def call(*words, code=0):
        said = CliRunner().invoke(notebooks.app, ["time", *words, "--out", str(tmp_path / "out")])
        assert said.exit_code == code, said.output
        return " ".join(said.output.split())

    call.root, call.ran, call.wrong, call.patch = root, ran, wrong, monkeypatch.setattr
    return call


def head(root, name="02_b"):
    return read(root / "notebooks" / f"{name}.ipynb").cells[0].source


def test_times_are_stored_and_written_where_they_are_told(checkout) -> None:
    said = checkout("--write")
    stored = read_times(checkout.root / "data" / run_all.FILE)
    assert stored["bf16"].first == {"00_a": 12.0, "02_b": 12.0} and stored["bf16"].machine == MACHINE
    assert set(stored["bf16"].again.values()) == {3.0} and set(stored["bf16"].solved.values()) == {20.0}
    assert checkout.ran[:4] == [(n, False, 1, str(SHIPPED)) for n in ("00_a", "00_a", "02_b", "02_b")]
    assert sorted(checkout.ran[4:]) == [(n, True, 2, str(SHIPPED)) for n in ("00_a", "02_b")]
    assert "about 10 seconds on two cores with fast bfloat16, 5 the next time<!-- /evidence -->;" in head(checkout.root)
    assert said.count("written anew") == 2
    assert "written anew" not in checkout("--write"), "the same again"
    assert "held within a factor of 2" in checkout("02_b")


def test_some_of_them_are_stored_beside_the_others_of_one_kind_of_machine(checkout) -> None:
    assert "none are stored for a machine with fast bfloat16" in (said := checkout("02_b", "--write", code=2))
    assert "give no names" in said and not checkout.ran
    checkout("--write")
    path = checkout.root / "data" / run_all.FILE
    whole = read_times(path)
    path.write_text(json.dumps(run_all.as_json({"bf16": replace(whole["bf16"], first={"00_a": 50.0, "02_b": 50.0})})))
    checkout("02_b", "--write")
    assert read_times(path)["bf16"].first == {"00_a": 50.0, "02_b": 12.0}
    checkout.patch(timing, "describe_machine", lambda: {**MACHINE, "gflops": {"bf16": 100}})
    assert "here at 100; give no names" in checkout("02_b", "--write", code=2)
    checkout.patch(timing, "describe_machine", lambda: SLOW)
    checkout("--write")
    assert list(read_times(path)) == ["bf16", "fp32"] and "(10 without)" in head(checkout.root)


def test_nothing_is_stored_that_would_not_be_so(checkout) -> None:
    path = checkout.root / "data" / run_all.FILE
    checkout.patch(timing, "beside", lambda: 0.9)
    assert "other work runs beside (load 0.90, and 0.5 is quiet); wait" in checkout("--write", code=2)
    assert "seconds are not held: other work" in checkout()
    checkout.patch(timing, "cores", lambda: 8)
    assert "taskset -c 0,1" in checkout("--write", "--even-if-busy", code=2)
    checkout.patch(timing, "cores", lambda: 2)
    checkout.patch(timing, "describe_machine", lambda: {**MACHINE, "threads": 1})
    assert "1 threads here, and on 2 cores in 2: unset OMP_NUM_THREADS" in checkout("--write", "--even-if-busy", code=2)
    checkout.patch(timing, "describe_machine", lambda: MACHINE)
    checkout.wrong.append("cell 3: broken")
    assert "02_b: cell 3: broken" in checkout("--write", "--even-if-busy", code=1)
    assert not path.exists() and "long" in head(checkout.root)
    checkout.wrong.clear()
    checkout("--write", "--even-if-busy")
    assert path.exists()
    shutil.copy(checkout.root / "notebooks" / "02_b.ipynb", checkout.root / "03_c.ipynb")
    checkout.patch(notebooks, "find", lambda names=(): [checkout.root / "03_c.ipynb"])
    assert "is none of" in checkout("--write", "--even-if-busy", code=2)


def test_a_time_that_is_not_the_stored_one_fails(checkout) -> None:
    checkout("--write")
    path = checkout.root / "data" / run_all.FILE
    whole = read_times(path)
    path.write_text(json.dumps(run_all.as_json({"bf16": replace(whole["bf16"], first={"00_a": 12.0, "02_b": 30.0})})))
    assert "02_b: 12 s, and 30 s are stored: not within a factor of 2" in checkout(code=1)
