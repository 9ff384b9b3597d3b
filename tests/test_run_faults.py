"""A run whose file system fails, or whose process dies, at every call in turn: nothing finished is lost or built again.
And one writer at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from file_faults import at_call, disk_full

from llama2lab.engine import folders
from llama2lab.engine.errors import LabError
from llama2lab.engine.runs import Run
from llama2lab.engine.stagefiles import finished_stages, stage_folder

IDENTITY = {"preset": "smoke", "seed": 0}


def work(path: Path, built: Path, lr: float = 1.0, order: tuple[str, ...] = ("base", "sft")) -> None:
    """base -> sft, both measured; each build leaves a line in the file `built`."""
    with Run(path, IDENTITY, say=lambda line: None) as run:
        for name in order:

            def build(folder: Path, name: str = name) -> dict:
                with open(built, "a") as f:
                    f.write(f"{name} {lr if name == 'sft' else 1.0}\n")
                (folder / "resume").mkdir(exist_ok=True)
                (folder / "resume" / "state").write_text("half")
                (folder / "reference").mkdir(exist_ok=True)
                (folder / "reference" / "out.txt").write_text("reference")
                (folder / "out.txt").write_text(f"{name} {lr}")
                return {"lr": lr}

            run.stage(name, build, {"lr": lr if name == "sft" else 1.0}, [] if name == "base" else ["base"])
            run.note(name, lambda: {"measured": 1.0}, {"n": 1})
        run.results({})


def whole(path: Path) -> dict[str, str]:
    """Fingerprints of the stages that are finished, in their place or beside it."""
    return {
        str(p.parent.relative_to(path)): json.loads(p.read_text())["fingerprint"]
        for p in path.glob("*/stage.json")
        if p.parent.suffix in ("", ".partial")
    }


def check(path: Path, built: Path, before: dict[str, str], lr: float) -> None:
    """The same command again: what was finished is not built again, and nothing is left beside the stages."""
    lines = built.read_text().splitlines() if built.exists() else []
    work(path, built, lr)
    now = whole(path)
    for name in ("base", "sft"):
        kept = now[name] in [before.get(name), before.get(f"{name}.partial")]
        new = built.read_text().splitlines()[len(lines) :]
        assert [line.split()[0] for line in new].count(name) == (0 if kept else 1), (name, before)
    assert (path / "sft" / "out.txt").read_text() == f"sft {lr}" and (path / "sft" / "reference" / "out.txt").exists()
    left = sorted(p.name for p in path.iterdir() if p.name != folders.LOCK)
    assert left == ["base", "results.json", "run.json", "sft"]
    assert sorted(p.name for p in (path / "sft").iterdir()) == ["notes.json", "out.txt", "reference", "stage.json"]
    for name in ("base", "sft"):
        stage_folder(path, name)  # its sums are right


def calls(tmp_path: Path, lr: float, exchange: bool) -> list[str]:
    """The calls that `work` makes, the second time with other settings for sft."""
    path, built = tmp_path / "calls", tmp_path / "made"
    if lr != 1.0:
        work(path, built)
    with at_call(path, 0, disk_full, exchange) as seen:
        work(path, built, lr)
    return list(seen)


@pytest.mark.parametrize("lr, exchange", [(1.0, True), (2.0, True), (2.0, False)])
def test_a_disk_that_fails_at_any_call_loses_nothing_finished(tmp_path, lr, exchange):
    names = calls(tmp_path, lr, exchange)
    assert {"open", "write", "fsync", "replace", "unlink", "rmdir", "mkdir"} <= set(names)
    for number in range(1, len(names) + 1):
        path, built = tmp_path / f"run{number}", tmp_path / f"built{number}"
        if lr != 1.0:
            work(path, built)
        with at_call(path, number, disk_full, exchange):
            try:
                work(path, built, lr)
            except LabError as e:
                assert "No space left" in str(e) and "nothing already made is lost" in str(e)
        if lr != 1.0:
            assert set(finished_stages(path)) == {"base", "sft"}, names[number - 1]  # old or new, at every instant
        check(path, built, whole(path), lr)


@pytest.mark.parametrize("lr, exchange", [(1.0, True), (2.0, True), (2.0, False)])
def test_a_disk_that_is_full_from_a_call_on_loses_nothing_finished(tmp_path, lr, exchange):
    """What would make up for the first failure fails, too; the next start, with room again, makes up for it."""
    names = calls(tmp_path, lr, exchange)
    for number in range(1, len(names) + 1):
        path, built = tmp_path / f"run{number}", tmp_path / f"built{number}"
        if lr != 1.0:
            work(path, built)
        with at_call(path, number, disk_full, exchange, on=True):
            try:
                work(path, built, lr)
            except LabError as e:
                assert "No space left" in str(e) and "nothing already made is lost" in str(e)
        if lr != 1.0 and exchange:
            assert set(finished_stages(path)) == {"base", "sft"}, names[number - 1]
        check(path, built, whole(path), lr)


@pytest.mark.parametrize(
    "lr, back, then", [(1.0, True, 1.0), (2.0, True, 2.0), (2.0, False, 2.0), (2.0, True, 1.0), (2.0, False, 1.0)]
)
def test_a_disk_that_is_full_at_the_last_rename_of_a_stage_costs_nothing(tmp_path, monkeypatch, lr, back, then):
    """The stage is whole, stage.json and all, and only cannot take its place: neither in one step nor in two; `back`
    says whether the one that stood there can at least have its place again, `then` which settings come next."""
    path, built = tmp_path / "run", tmp_path / "built"
    if lr != 1.0:
        work(path, built)
    place, real, failed = path / "sft", os.replace, []

    def replace(source: str | Path, target: str | Path) -> None:
        if Path(target) == place and (Path(source) == path / "sft.partial" or not back):
            failed.append(Path(source).name)
            disk_full("replace")
        real(source, target)

    with monkeypatch.context() as full:
        full.setattr(folders, "exchange", lambda a, b: False)
        full.setattr(os, "replace", replace)
        with pytest.raises(LabError, match=r"^cannot write .*sft\.partial: No space.*nothing already made is lost"):
            work(path, built, lr)
    assert failed == ["sft.partial", *(["sft.old"] if lr != 1.0 and not back else [])]
    assert json.loads((path / "sft.partial" / "stage.json").read_text())["metrics"] == {"lr": lr}
    assert place.exists() == (lr != 1.0 and back)
    made = built.read_text()
    work(path, built, then)
    check(path, built, whole(path), lr)
    assert built.read_text() == made  # nothing was built again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("lr, exchange", [(1.0, True), (2.0, True), (2.0, False)])
def test_a_process_that_dies_at_any_call_loses_nothing_finished(tmp_path, lr, exchange):
    """At os._exit nothing is cleared up, and the lock is free."""
    names = calls(tmp_path, lr, exchange)
    for number in range(1, len(names) + 1):
        path, built = tmp_path / f"run{number}", tmp_path / f"built{number}"
        if lr != 1.0:
            work(path, built)
        child = os.fork()
        if child == 0:
            with at_call(path, number, lambda name: os._exit(9), exchange):
                work(path, built, lr)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, names[number - 1]
        if lr != 1.0 and exchange:
            assert set(finished_stages(path)) == {"base", "sft"}, names[number - 1]
        check(path, built, whole(path), lr)


def test_settings_that_change_back_find_the_stage_that_stood_and_the_one_that_did_not_yet(tmp_path):
    """Killed between stage.json and its place, then asked for the old settings, then for the new ones again."""
    path, built = tmp_path / "run", tmp_path / "built"
    work(path, built)
    with at_call(path, calls(tmp_path, 2.0, True).index("exchange") + 1, disk_full), pytest.raises(LabError):
        work(path, built, 2.0)
    assert (path / "sft.partial" / "stage.json").exists()
    work(path, built)
    work(path, built, 2.0)
    assert built.read_text().splitlines() == ["base 1.0", "sft 1.0", "sft 2.0"]


# ---- one writer ----------------------------------------------------------------------------------------------

OPENS = """
import sys, time
from llama2lab.engine.runs import Run
run = Run(sys.argv[1], {"preset": "smoke", "seed": 0})
print("open", flush=True)
exec(sys.argv[2])
"""


def other(path: Path, then: str = "time.sleep(600)") -> subprocess.Popen:
    """Another process that holds the run open."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPENS, str(path), then], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def test_a_second_process_is_told_of_the_first_in_one_line_and_a_dead_one_holds_nothing(tmp_path):
    process = other(tmp_path / "run")
    try:
        with pytest.raises(LabError, match=rf"in use by process {process.pid} on .* since 20.*-c.*; wait for it") as e:
            Run(tmp_path / "run", IDENTITY)
        assert "\n" not in str(e.value) and "free some space" not in str(e.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    work(tmp_path / "run", tmp_path / "built")


@pytest.mark.parametrize(
    "then",
    [
        "",
        'run.close(); print("free", flush=True); time.sleep(600)',
        'del run; print("free", flush=True); time.sleep(600)',
        "raise OSError",
        "sys.exit(3)",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os._exit(1)",
    ],
)
def test_the_lock_is_released_on_every_exit(tmp_path, then):
    process = other(tmp_path / "run", then)
    try:
        if "sleep" in then:  # it lives on, without the run
            assert process.stdout.readline() == "free\n" and process.poll() is None
        else:
            process.wait(120)
        work(tmp_path / "run", tmp_path / "built")
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_neither_writes_nor_takes_the_lock_with_it(tmp_path):
    run = Run(tmp_path / "run", IDENTITY, say=lambda line: None)
    child = os.fork()
    if child == 0:
        try:
            for attempt in (lambda: run.stage("base", lambda f: {}, {}), lambda: Run(tmp_path / "run", IDENTITY)):
                try:
                    attempt()
                except LabError:
                    continue
                os._exit(1)
            run.close()
        except BaseException:
            os._exit(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    second = subprocess.run([sys.executable, "-c", OPENS, str(tmp_path / "run"), ""], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in second.stderr
    run.stage("base", lambda f: {}, {})


def test_one_thread_may_open_a_run_twice_another_may_not(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    first, second = Run(tmp_path / "run", IDENTITY), Run(tmp_path / "run", IDENTITY)
    first.close()
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(LabError, match="another thread of this process"):
            pool.submit(Run, tmp_path / "run", IDENTITY).result()
        with pytest.raises(LabError, match="is closed"):
            first.stage("base", lambda f: {}, {})
        second.close()
        pool.submit(lambda: Run(tmp_path / "run", IDENTITY).close()).result()


def test_reading_needs_no_lock(tmp_path):
    work(tmp_path / "run", tmp_path / "built")
    process = other(tmp_path / "run")
    try:
        assert stage_folder(tmp_path / "run", "sft").is_dir()
    finally:
        process.kill()
        process.wait()


def test_where_the_file_system_knows_no_locks_it_is_said(tmp_path, monkeypatch, capsys):
    import errno

    def acquire(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folders.FileLock, "acquire", acquire)
    work(tmp_path / "run", tmp_path / "built")
    assert "no locks" in capsys.readouterr().err


def test_a_kill_while_a_run_is_opened_first_does_not_lock_its_folder_out(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (folders.LOCK, folders.WRITER, "run.json.0a1b2c3d.tmp"):
        (tmp_path / "run" / name).write_text("")
    work(tmp_path / "run", tmp_path / "built")
    assert not list((tmp_path / "run").glob("*.tmp"))
