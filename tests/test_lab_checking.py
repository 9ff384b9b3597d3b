"""What a check survives: code that hangs, crashes, prints, mutates, or changes what belongs to others."""

import os
import random
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patience import until

import llama2lab.model.attention
import llama2lab.model.network
from llama2lab.engine.errors import LabError
from llama2lab.lab import child
from llama2lab.lab.checking import Exercise, Level, Mistake, Outcome, run, solution, whose
from llama2lab.lab.compare import judge, read
from llama2lab.lessons.n02_transformer.exercises import RMS_NORM


def check_double(f):
    judge(read(f(torch.tensor([1.0, 2.0])), (2,)), [2.0, 4.0])


DOUBLE = Exercise(
    "99.double",
    "Double <b>it</b>",
    "Write double(x).",
    Level(difficulty=1, minutes=1, points=2),
    "none",
    ("Twice <i>x</i>.",),
    check_double,
    lambda x: 2 * x,
)


def spinning(seconds: float = 0.3) -> bool:
    """Whether some other thread keeps this process busy while it waits."""
    begin = time.process_time()
    time.sleep(seconds)
    return time.process_time() - begin > seconds / 2


def in_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    return results[0]


def endless(x):
    while True:
        pass


def swallowing(x):
    while True:
        try:
            while True:
                pass
        except:  # noqa: E722
            pass


def patient(x):
    try:
        while True:
            pass
    except Exception:
        return 2 * x


def late(x):
    try:
        while True:
            pass
    except BaseException:
        return 2 * x


@pytest.mark.parametrize("answer", [endless, swallowing, patient, late])
@pytest.mark.parametrize("where", [lambda work: work(), in_thread], ids=["main", "thread"])
def test_a_loop_without_end_is_stopped(answer, where) -> None:
    before = signal.getsignal(signal.SIGALRM)
    begin = time.monotonic()
    outcome = where(lambda: run(DOUBLE, answer, seconds=0.2))
    assert outcome.status == "stopped" and "0.2 seconds" in outcome.message and "restart" not in outcome.message
    assert time.monotonic() - begin < 60  # it never ends by itself
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert run(DOUBLE, lambda x: x + x).passed


def test_code_that_cannot_be_stopped_is_left_behind(monkeypatch) -> None:
    """Without a process: a thread that sleeps does not see the exception; the notebook goes on."""
    monkeypatch.setattr(child, "FORK", False)
    monkeypatch.setattr(child, "PATIENCE", 0.3)
    awake, asleep = threading.Event(), []

    def sleeps(x):
        asleep.append(threading.current_thread())
        awake.wait()

    try:
        outcome = in_thread(lambda: run(DOUBLE, sleeps, seconds=0.1))
        assert outcome.status == "stopped" and "restart the kernel" in outcome.message
    finally:
        awake.set()
    for thread in asleep:
        thread.join()


def test_somebody_elses_alarm_goes_on() -> None:
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        assert run(DOUBLE, lambda x: 2 * x).passed
        time.sleep(0.3)
        assert rang == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("answer", [endless, patient])
def test_a_loop_is_stopped_without_a_process_too(monkeypatch, answer) -> None:
    monkeypatch.setattr(child, "FORK", False)
    monkeypatch.setattr(child, "PATIENCE", 60.0)
    assert "restart" not in run(DOUBLE, answer, seconds=0.2).message
    assert run(DOUBLE, lambda x: x + x).passed


def raises_by_hand(x):
    y = x + 1
    raise NotImplementedError(f"todo {y}")


def docstring(x):
    """Double x."""


def dots(x): ...


def dots_returned(x):
    return ...


EMPTY = [None, ..., "", "  ", raises_by_hand, docstring, dots, dots_returned, lambda x: None]


@pytest.mark.parametrize("answer", EMPTY)
def test_not_attempted_is_no_error(answer) -> None:
    outcome = run(DOUBLE, answer)
    assert outcome.status == "not attempted" and outcome.points == 0
    assert "Not attempted" in repr(outcome)


def test_torchs_own_not_implemented_is_an_error() -> None:
    def wrong_type(x):
        return torch.ops.aten.softmax.int(x.bool(), 0)

    def library(x):
        raise_it = torch.nn.Module()
        return raise_it(x)

    assert run(DOUBLE, library).status == "error"
    assert run(DOUBLE, wrong_type).status == "error"


def test_forgotten_return_is_named() -> None:
    def forgot(x):
        y = 2 * x  # noqa: F841

    outcome = run(DOUBLE, forgot)
    assert outcome.status == "failed" and "`return` missing" in outcome.message


def test_an_error_shows_the_students_line() -> None:
    def helper(x):
        return x["key"]

    def crash(x):
        return helper({})

    outcome = run(DOUBLE, crash)
    assert outcome.status == "error"
    assert outcome.message.startswith("KeyError")
    assert outcome.code == 'return x["key"]'
    assert f"line {outcome.line}" in repr(outcome)

    def inside_torch(x):
        return torch.cat([x, x.reshape(1, 2)])

    assert run(DOUBLE, inside_torch).code == "return torch.cat([x, x.reshape(1, 2)])"


def test_a_cell_of_a_notebook_is_found_too() -> None:
    import linecache

    source = "def double(x):\n    y = x\n    return y.no_such_thing\n"
    linecache.cache["<cell 7>"] = (len(source), None, source.splitlines(True), "<cell 7>")
    scope: dict = {}
    exec(compile(source, "<cell 7>", "exec"), scope)
    outcome = run(DOUBLE, scope["double"])
    assert (outcome.line, outcome.code) == (3, "return y.no_such_thing")


@pytest.mark.parametrize("answer", [lambda: 1, lambda x, y: x, lambda x, *, z: x])
def test_other_arguments_than_asked_for(answer) -> None:
    outcome = run(DOUBLE, answer)
    assert outcome.status == "failed" and "called with 1 arguments" in outcome.message


@pytest.mark.parametrize("answer", [lambda x: exit(), lambda x: 1 / 0, lambda x: (lambda f: f(f))(lambda f: f(f))])
def test_crashes_are_outcomes(answer) -> None:
    assert run(DOUBLE, answer).status == "error"


@pytest.mark.parametrize("fork", [True, False])
def test_the_users_own_interrupt_goes_through(monkeypatch, tmp_path, fork) -> None:
    """The stop button of a notebook sends it to the notebook's process; one that the answer raises is the answer's."""
    monkeypatch.setattr(child, "FORK", fork and child.FORK)
    begun, notebook = tmp_path / "begun", os.getpid()

    def begins(x):
        begun.touch()
        endless(x)

    def press_stop():
        until(begun.exists, "the answer is asked for")
        os.kill(notebook, signal.SIGINT)

    stop = threading.Thread(target=press_stop)
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        run(DOUBLE, begins, seconds=600)
    stop.join()
    assert all(thread.name != "exercise" for thread in threading.enumerate()) and not spinning(), "it is ended too"

    def stopping(x):
        raise KeyboardInterrupt

    assert run(DOUBLE, stopping).status == "error"


@pytest.mark.parametrize(
    "value",
    [
        object(),
        "text",
        [1, "a"],
        {},
        torch,
        1j,
        [[1.0], [2.0, 3.0]],
        lambda: 1,
        torch.tensor([float("nan"), 1.0]),
        torch.zeros(3),
        torch.empty(0),
    ],
)
def test_any_type_may_come_back(value) -> None:
    outcome = run(DOUBLE, lambda x: value)
    assert outcome.status == "failed" and outcome.message


def test_prints_are_kept_and_cut(capsys) -> None:
    def loud(x):
        print("hello <script>")
        for _ in range(10000):
            print("x" * 1000)
        return 2 * x

    outcome = run(DOUBLE, loud)
    assert outcome.passed and outcome.printed.startswith("hello <script>") and outcome.printed.endswith("[...]")
    assert len(outcome.printed) < 2100
    assert "<script>" not in outcome._repr_html_()
    assert capsys.readouterr().out == ""


def test_changing_an_argument_is_named() -> None:
    outcome = run(DOUBLE, lambda x: x.mul_(2))
    assert outcome.status == "failed" and "argument number 1 in place" in outcome.message


def test_random_numbers_and_settings_of_later_cells_are_untouched() -> None:
    def disturb(x):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return 2 * x

    for seed in (3, 4):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = random.random(), np.random.rand(), torch.rand(1).item()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert run(DOUBLE, disturb).passed
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
        assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_a_check_is_the_same_every_time() -> None:
    def notes(x):
        print(random.random(), np.random.rand(), torch.rand(1).item())
        return 2 * x

    seen = []
    for _ in range(2):
        random.random(), np.random.rand(), torch.rand(1)
        seen.append(run(DOUBLE, notes).printed)
    assert seen[0] == seen[1] != ""


def change_name(x, weight, eps):
    llama2lab.model.attention.HIDDEN = 7.0
    return x


def change_method(x, weight, eps):
    llama2lab.model.network.RMSNorm.forward = lambda self, x: x
    return x


def change_dictionary(x, weight, eps):
    llama2lab.model.network.SIZES.clear()
    return x


@pytest.mark.parametrize(
    ("answer", "name"),
    [(change_name, "attention.HIDDEN"), (change_method, "RMSNorm.forward"), (change_dictionary, "network.SIZES")],
)
def test_the_library_is_put_back(answer, name) -> None:
    """Also before the answer is judged: whoever replaces the reference by their own mistake does not pass."""
    sizes, forward = dict(llama2lab.model.network.SIZES), llama2lab.model.network.RMSNorm.forward
    outcome = run(RMS_NORM, answer)
    assert outcome.status == "failed" and name in outcome.message and "put back" in outcome.message
    assert llama2lab.model.attention.HIDDEN == -1e4
    assert sizes == dict(llama2lab.model.network.SIZES)
    assert llama2lab.model.network.RMSNorm.forward is forward


def test_the_library_is_put_back_after_a_loop_without_end() -> None:
    def both(x, weight, eps):
        llama2lab.model.attention.HIDDEN = 7.0
        while True:
            pass

    assert run(RMS_NORM, both, seconds=0.2).status == "stopped"
    assert llama2lab.model.attention.HIDDEN == -1e4


@given(text=st.text(max_size=40), head=st.text(max_size=40))
def test_nothing_of_a_student_is_html(text, head) -> None:
    nasty = f"<img src=x onerror=alert(1)>{text}"
    outcome = Outcome("k", head + nasty, "error", nasty, 3, nasty, nasty, of=2)
    page = outcome._repr_html_()
    assert "<img" not in page and "Your code raised an error" in page
    assert set(re.findall(r"<(\w+)", page)) <= {"div", "strong", "p", "code", "details", "summary", "pre"}


def test_an_exercise_shows_itself() -> None:
    page = DOUBLE._repr_html_()
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;" in page
    assert "difficulty 1 of 5" in page and "2 points" in page and "Hint 1 of 1" in page
    assert "difficulty 1 of 5" in repr(DOUBLE)


@pytest.mark.parametrize("word", ["off", " OFF ", "0", "no"])
def test_a_teacher_can_switch_solutions_off(monkeypatch, word) -> None:
    assert run(DOUBLE, solution(DOUBLE)).passed
    monkeypatch.setenv("LLAMA2LAB_SOLUTIONS", word)
    with pytest.raises(LabError, match="switched off"):
        solution(DOUBLE)


def test_judge_names_the_place() -> None:
    with pytest.raises(Mistake, match=r"at \[0, 1\]: 5 instead of 2"):
        judge(torch.tensor([[1.0, 5.0]]), [[1.0, 2.0]])


# ---- answers that take what is no data ---------------------------------------------------------------------------


def with_a_list(answer, start, times):
    """What the answer makes of a list that it is given to change, which no message could carry."""
    grown = [start]
    said = [answer(grown) for _ in range(times)]
    return {"grown": grown, "said": said}


def check_grown(f):
    if f(1, 3)["grown"] != [1, 2, 4, 8]:
        raise Mistake("It does not double.")


GROW = Exercise(
    "99.grow", "Grow", "Write grow(list).", DOUBLE.level, "none", ("Append.",), check_grown, inside=with_a_list
)


def doubling(grown):
    grown.append(2 * grown[-1])


def raising(grown):
    return grown[0] / 0


def test_an_answer_may_take_what_is_no_data() -> None:
    assert run(GROW, doubling).passed
    assert run(GROW, lambda grown: grown.append(0)).message == "It does not double."
    outcome = run(GROW, raising)
    assert outcome.status == "error" and outcome.code == "return grown[0] / 0"
    assert run(GROW, lambda: 0).status == "error"
    assert run(GROW, endless, seconds=0.3).status == "stopped"

    def stub(grown):
        raise NotImplementedError

    assert [run(GROW, answer).status for answer in (stub, lambda grown: ..., None)] == ["not attempted"] * 3


def test_an_answer_is_used_where_it_is_right() -> None:
    def double(x):
        return x + x

    assert whose(DOUBLE, double) == (double, "yours")
    assert whose(DOUBLE, lambda x: x) == whose(DOUBLE, None) == (DOUBLE.solution, "the library's")


CELLS = [
    "from llama2lab.lessons.n02_transformer.exercises import RMS_NORM\nfrom llama2lab.lab.checking import run",
    "def hang(x, weight, eps):\n    while True:\n        try:\n            while True: pass\n        except: pass",
    "import threading\nprint(threading.current_thread() is threading.main_thread())\nrun(RMS_NORM, hang, seconds=0.3)",
    "import sys\ndef noisy(x, weight, eps):\n    print('seen'), print('warned', file=sys.stderr)\n"
    "    from IPython.display import display\n    display(x)\n    sys.stderr = None\n"
    "    return RMS_NORM.solution(x, weight, eps)\nrun(RMS_NORM, noisy)",
    "def asks(x, weight, eps):\n    return input('x? ')\nrun(RMS_NORM, asks)",
    "import os\nrun(RMS_NORM, lambda x, weight, eps: os._exit(1))",
    "def crash(x, weight, eps):\n    y = x.mean(-1)\n    return x / y * weight",
    "run(RMS_NORM, crash)",
    "print('still here')",
]


@pytest.mark.slow
def test_in_a_real_kernel() -> None:
    """The notebook's own main thread: the loop ends, the kernel lives, and an error is found in its cell."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook, timeout=600, startup_timeout=600, iopub_timeout=600, kernel_name="python3"
    ).execute()
    printed, stopped = notebook.cells[2].outputs
    assert printed.text == "True\n"
    assert "longer than 0.3 seconds" in stopped.data["text/plain"] and "Stopped" in stopped.data["text/html"]
    noisy, asks, leaves, crash, last = (cell.outputs for cell in notebook.cells[3:] if cell.outputs)
    shown = next(o.data["text/plain"] for o in noisy if "data" in o)
    assert "Passed" in shown and "seen" in shown and "tensor([[[" in shown
    assert any(o.get("name") == "stderr" and o.text == "warned\n" for o in noisy)
    assert "no keyboard" in asks[0].data["text/plain"]
    assert "ended Python itself" in leaves[0].data["text/plain"]
    assert "line 3: return x / y * weight" in crash[0].data["text/plain"]
    assert last[0].text == "still here\n"
