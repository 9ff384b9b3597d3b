"""What a student's code may do to a check, and does not: every line of the tables is run as the body of the function
that a check asks. Afterwards the notebook is as it was, its next check is right, and nothing runs on."""

# ruff: noqa: E501  (a misdeed a line)
import ast
import asyncio
import atexit
import builtins
import contextlib
import decimal
import gc
import json
import locale
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import until

import llama2lab.model.attention
import llama2lab.model.network
from llama2lab.lab import child
from llama2lab.lab.checking import Exercise, Level, plain, run
from llama2lab.lab.compare import judge, read
from llama2lab.lab.progress import Progress, compare, predict
from llama2lab.lessons.n00_start.exercises import COSTS, FIRST_TALK

LINUX = pytest.mark.skipif(not child.FORK, reason="a process of its own needs Linux")


torch.use_deterministic_algorithms(False)  # imports much the first time, which leaves its own marks


def check_double(f):
    for number in (1.0, 3.0):
        judge(read(f(torch.tensor([number, 2.0])), (2,)), [2 * number, 4.0])


DOUBLE = Exercise(
    "99.double", "Double", "Write double(x).", Level(1, 1, 2), "none", ("Twice.",), check_double, lambda x: 2 * x
)
IMPORTS = """
import asyncio, atexit, builtins, contextlib, ctypes, decimal, faulthandler, gc, inspect, itertools, json, locale, logging, os
import random, re, signal, socket, subprocess, sys, threading, time, traceback, types, warnings
import numpy as np, torch
import llama2lab.model.network
"""


def student(body, answer="2 * x"):
    """A function with this body, which then gives the answer."""
    source = IMPORTS + "def double(x):\n" + textwrap.indent(textwrap.dedent(body), "    ") + f"\n    return {answer}\n"
    ast.parse(source)
    room = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), room)
    return room["double"]


def children():
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that ends just now
            found |= set((task / "children").read_text().split())
    return found


def running(word):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes() and "Z" not in (process / "stat").read_text():
                found.append(process.name)
        except OSError:
            pass
    return found


def state():
    """All of the notebook that a later cell would stumble over."""
    hooks = torch.nn.modules.module
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "print": dict(vars(torch._tensor_str.PRINT_OPTS)),
        "matmul": torch.get_float32_matmul_precision(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "denormal": torch.tensor([1e-310], dtype=torch.float64).mul(1.0).item(),
        "generators": (
            hash(random.getstate()),
            np.random.get_state()[1].tobytes(),
            np.random.get_state()[2:],
            torch.get_rng_state().numpy().tobytes(),
        ),
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        ),
        "mkldnn": torch.backends.mkldnn.enabled,
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "always warn": torch.is_warn_always_enabled(),
        "sdp": torch.backends.cuda.flash_sdp_enabled(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "hooks": [len(v) for k, v in sorted(vars(hooks).items()) if k.startswith("_global") and hasattr(v, "__len__")],
        "functions": (torch.allclose, torch.equal, torch.Tensor.__eq__, torch.Tensor.double, np.allclose, time.sleep),
        "library": (
            llama2lab.model.attention.HIDDEN,
            llama2lab.model.network.RMSNorm.forward,
            dict(llama2lab.model.network.SIZES),
        ),
        "numpy": (np.geterr(), np.get_printoptions()["precision"]),
        "builtins": dict(vars(builtins)),
        "modules": [name in sys.modules for name in ("torch", "numpy", "json", "llama2lab", "signal")],
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__),
        "path": list(sys.path),
        "files": [os.fstat(n).st_ino for n in range(3)],
        "python": (
            sys.excepthook,
            sys.displayhook,
            sys.unraisablehook,
            threading.excepthook,
            sys.gettrace(),
            sys.getprofile(),
            sys.getrecursionlimit(),
            sys.get_int_max_str_digits(),
            sys.getswitchinterval(),
            list(sys.meta_path),
            list(sys.argv),
            atexit._ncallbacks(),
        ),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environ": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "cwd": os.getcwd(),
        "umask": (os.umask(0o22), os.umask(0o22))[1],
        "nice": os.nice(0),
        "signals": (
            [
                signal.getsignal(n)
                for n in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGSEGV)
            ],
            signal.getitimer(signal.ITIMER_REAL),
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        ),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": decimal.getcontext().prec,
        "gc": (gc.isenabled(), gc.get_threshold(), len(gc.callbacks)),
        "logging": (logging.root.level, logging.root.manager.disable, list(logging.root.handlers)),
        "socket": socket.getdefaulttimeout(),
        "loop": asyncio.get_event_loop_policy().__class__,
        "running": threading.active_count(),
        "children": children(),
    }


@pytest.fixture
def nothing_happened():
    before = state()
    yield
    after = state()
    assert {k for k in before if before[k] != after[k]} == set()


SETTINGS = [
    "torch.set_default_device('meta')",
    "torch.set_num_threads(7)",
    "with contextlib.suppress(RuntimeError): torch.set_num_interop_threads(5)",
    "torch.use_deterministic_algorithms(True)",
    "torch.use_deterministic_algorithms(True, warn_only=True)",
    "torch.set_printoptions(precision=1, sci_mode=True)",
    "torch.set_float32_matmul_precision('medium')",
    "torch.set_autocast_enabled('cpu', True)",
    "torch.autocast('cpu', torch.bfloat16).__enter__()",
    "torch.set_autocast_cache_enabled(False)",
    "torch.autograd.set_detect_anomaly(True)",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_grad_enabled(False)",
    "torch.inference_mode().__enter__()",
    "random.seed(1), np.random.seed(1), torch.manual_seed(1)",
    "torch.set_flush_denormal(True)",
    "torch.backends.cudnn.benchmark = True",
    "torch.backends.cudnn.deterministic = True",
    "torch.backends.cudnn.enabled = False",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.mkldnn.enabled = False",
    "torch._C._set_mkldnn_enabled(False)",
    "torch.utils.deterministic.fill_uninitialized_memory = False",
    "torch.set_warn_always(True)",
    "torch.backends.cuda.enable_flash_sdp(False)",
    "torch.set_default_tensor_type(torch.DoubleTensor)",
    "torch.nn.modules.module.register_module_forward_hook(lambda *a: 1 / 0)",
    "torch.nn.modules.module.register_module_full_backward_hook(lambda *a: None)",
    "class M(torch.overrides.TorchFunctionMode):\n"
    "    def __torch_function__(self, f, t, a=(), k=None): return f(*a, **k or {})\nM().__enter__()",
    "from torch.utils._python_dispatch import TorchDispatchMode\nclass M(TorchDispatchMode):\n"
    "    def __torch_dispatch__(self, f, t, a=(), k=None): return f(*a, **k or {})\nM().__enter__()",
    "np.seterr(all='raise')",
    "np.set_printoptions(precision=1)",
    "warnings.simplefilter('error')",
    "warnings.filters.clear()",
    "sys.path.clear()",
    "sys.modules.pop('torch', 0)",
    "sys.modules.pop('numpy', 0)",
    "for n in list(sys.modules): n.startswith(('json', 'llama2lab', 'torch.')) and sys.modules.pop(n)",
    "sys.stdout = None",
    "sys.stderr = None",
    "sys.stdin and sys.stdin.close(); sys.stdin = None",
    "sys.stdout.close(), sys.stderr.close()",
    "sys.__stdout__ = sys.__stderr__ = None",
    "os.closerange(0, 3)",
    "sys.excepthook = sys.displayhook = sys.unraisablehook = None",
    "threading.excepthook = None",
    "sys.settrace(lambda *a: None)",
    "sys.setprofile(lambda *a: None)",
    "threading.settrace(lambda *a: None)",
    "sys.setrecursionlimit(80)",
    "sys.set_int_max_str_digits(640)",
    "sys.setswitchinterval(9)",
    "sys.meta_path.clear()",
    "sys.argv.clear()",
    "atexit.register(print)",
    "os.environ.clear()",
    "os.environ['PATH'] = 'x'",
    "os.chdir('/')",
    "os.umask(0o777)",
    "os.nice(5)",
    "signal.signal(signal.SIGALRM, signal.SIG_IGN)",
    "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "signal.setitimer(signal.ITIMER_REAL, 50)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
    "signal.set_wakeup_fd(-1)",
    "locale.setlocale(locale.LC_ALL, 'C')",
    "decimal.getcontext().prec = 3",
    "gc.disable()",
    "gc.set_threshold(1, 1, 1)",
    "gc.callbacks.append(lambda *a: None)",
    "logging.disable(50)",
    "logging.root.setLevel(1)",
    "logging.basicConfig(force=True)",
    "socket.setdefaulttimeout(0.001)",
    "asyncio.set_event_loop_policy(None)",
    "time.sleep = random.random = None",
    "warnings.showwarning = None",
]
BROKEN = [  # the answer does not always come back from these, but nothing else does either
    "builtins.print = builtins.len = builtins.isinstance = None",
    "vars(builtins).clear()",
    "builtins.__import__ = None",
    "json.dumps = torch.Tensor.detach = None",
    "inspect.signature = None",
    "torch.Tensor.double = torch.Tensor.__eq__ = np.array = None",
    "sys.modules.clear()",
    "os.closerange(0, 99)",
    "traceback.print_exc = sys.exc_info = None",
    "gc.get_objects()[0].clear() if isinstance(gc.get_objects()[0], dict) else None",
    "sys.getrecursionlimit = None; sys.setrecursionlimit(60)",
]


@LINUX
@pytest.mark.parametrize("body", SETTINGS)
def test_what_is_set_in_a_check_stays_in_it(nothing_happened, body) -> None:
    assert run(DOUBLE, student(body)).passed


@LINUX
@pytest.mark.parametrize("body", BROKEN)
def test_what_is_broken_in_a_check_stays_in_it(nothing_happened, body) -> None:
    assert run(DOUBLE, student(body)).status in ("passed", "error", "failed")
    assert run(DOUBLE, lambda x: x + x).passed
    assert run(DOUBLE, lambda x: x + 1).status == "failed"


RAISED = [
    ("class Own(BaseException): pass\nraise Own('mine')", "Own: mine"),
    ("raise GeneratorExit", "GeneratorExit"),
    ("raise asyncio.CancelledError('c')", "CancelledError: c"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("sys.exit()", "SystemExit"),
    ("raise StopIteration", "StopIteration"),
    ("raise BaseExceptionGroup('g', [KeyboardInterrupt()])", "BaseExceptionGroup: g"),
    ("raise MemoryError", "MemoryError"),
    ("class E(Exception):\n    def __str__(self): raise KeyError\nraise E", "E: its text cannot be shown"),
    ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "E: its text cannot be shown"),
    ("class E(Exception):\n    def __str__(self): return 7\nraise E", "E: its text cannot be shown"),
    ("class E(Exception):\n    def __str__(self): return 10**6 * 'long '\nraise E", "E: long long"),
    ("class E(Exception):\n    __traceback__ = property(lambda self: 1 / 0)\nraise E('t')", "E: t"),
    ("class M(type):\n    __name__ = property(lambda self: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E", ""),
    ("class E(KeyboardInterrupt):\n    def __del__(self): raise SystemExit\nraise E('d')", "E: d"),
    ("raise ValueError('\\ud800 half')", "ValueError: ? half"),
    ("raise ValueError('\\0\\x1b')", "ValueError"),
    ("from llama2lab.lab.checking import Mistake\nraise Mistake('passed')", "Mistake: passed"),
    ("from llama2lab.lab.call import Fault\nraise Fault('passed')", "Fault: "),
    ("return bytearray(10**14)", "MemoryError"),
    ("return torch.zeros(10**13)", "RuntimeError"),
    ("return np.ones(2**30).repeat(8)", "MemoryError"),
    ("return input('x? ')", "EOFError"),
    ("return sys.stdin.read(1)[0]", "IndexError"),
    ("import tempfile; tempfile.TemporaryFile().write(bytes(2**28))", "OSError"),
    ("return torch.ones(2**25)", "shape (33554432,)"),
    ("return [0.5] * 2**25", "33,554,432"),
    ("return 'w' * 10**8", "longer than 32 MB"),
    ("raise TimeoutError('mine')", "TimeoutError: mine"),
    ("raise BrokenPipeError", "BrokenPipeError"),
    ("def r(n): return r(n + 1) + r(n + 2)\nr(0)", "RecursionError"),
]
ENDED = [
    "os._exit(0)",
    "os._exit(3)",
    "os.abort()",
    "ctypes.string_at(0)",
    "os.kill(os.getpid(), signal.SIGKILL)",
    "signal.raise_signal(signal.SIGTERM)",
    "os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)",
    "sys.setrecursionlimit(10**9)\nf = lambda: f()\nclass L:\n    def __getattr__(self, n): return getattr(self, n + 'a')\n"
    "ctypes.memset(id(None), 0, 64)",
    "faulthandler._sigsegv()",
    "os.execv('/bin/true', ['true'])",
    "threading.Timer(0.05, lambda: os._exit(1)).start(); time.sleep(9)",
    "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass",
]


@LINUX
@pytest.mark.parametrize(("body", "words"), RAISED)
def test_whatever_is_raised_is_an_outcome(nothing_happened, body, words) -> None:
    outcome = run(DOUBLE, student(body), seconds=120)
    assert outcome.status == "error" and words in outcome.message and len(outcome.message) < 700, outcome
    outcome._repr_html_().encode()


@LINUX
@pytest.mark.parametrize("body", ENDED)
def test_a_process_that_ends_is_an_outcome(nothing_happened, body) -> None:
    outcome = run(DOUBLE, student(body), seconds=120)
    assert outcome.status == "error" and "ended Python itself" in outcome.message, outcome


FIND = """s = [int(n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n)
     and 'socket' in os.readlink('/proc/self/fd/' + n)][0]
"""
ENDLESS = [
    "while True: pass",
    "time.sleep(99)",
    "x = 10**10**9",
    "re.match('(a+)+$', 'a' * 60 + 'b')",
    "sum(itertools.count())",
    "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "signal.setitimer(signal.ITIMER_REAL, 0)\nsignal.signal(signal.SIGALRM, lambda *a: None)\nwhile True: pass",
    "for n in range(1, 32):\n    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "def on():\n    try:\n        while True: pass\n    except BaseException: on()\n    finally: on()\non()",
    "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
    "class E(Exception):\n    def __str__(self):\n        while True:\n            try: time.sleep(1)\n            except BaseException: pass\nraise E",
    "class N:\n    def __len__(self):\n        while True: pass\n    __getitem__ = __len__\nreturn N()",
    "class N(list):\n    def __iter__(self): return itertools.count()\nreturn N([1])",
    "class N(float):\n    def __float__(self):\n        while True: pass\nreturn N(1)",
    "class N:\n    def __del__(self):\n        while True: pass\nN()",
    "class N:\n    @property\n    def __class__(self):\n        while True: pass\nreturn N()",
    "os.kill(os.getpid(), signal.SIGSTOP)",
    "os.setsid() if os.getpid() != os.getsid(0) else None\ntime.sleep(99)",
    "threading.Thread(target=time.sleep, args=(99,)).start(); threading.Event().wait()",
    "while True: print('x' * 1000)",
    "while True: os.write(1, b'x' * 1000)",
    "while True: warnings.warn('w')",
    FIND + "while True: os.write(s, b'{\"kind\": ')",
    FIND + 'while True: os.write(s, b\'{"kind": "printed", "text": "x"}\\n\')',
    "if os.fork() == 0: time.sleep(99)\nelse: time.sleep(99)",
    "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "os.kill(os.getppid(), signal.SIGSTOP); time.sleep(99)",
    "asyncio.run(asyncio.sleep(99))",
    "os.system('sleep 99')",
    "sys.settrace(None)\nsys.setswitchinterval(1e9)\nwhile True: pass",
]


@LINUX
@pytest.mark.parametrize("body", ENDLESS)
def test_the_time_limit_holds(nothing_happened, body) -> None:
    begin = time.monotonic()
    outcome = run(DOUBLE, student(body), seconds=0.4)
    assert outcome.status == "stopped" and "0.4 seconds" in outcome.message, outcome
    assert "restart" not in outcome.message and time.monotonic() - begin < 60  # the code would take 99, or for ever


LEFT = [  # each leaves a process behind
    "subprocess.Popen(['sleep', '98765.4'])",
    "subprocess.Popen(['sleep', '98765.4'], start_new_session=True)",
    "os.system('sleep 98765.4 & disown')",
    "os.system('setsid nohup sleep 98765.4 > /dev/null &')",
    "if os.fork() == 0: os.execvp('sleep', ['sleep', '98765.4'])",
    "os.fork()",
    "os.fork(); os.fork()",
    "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: os.execvp('sleep', ['sleep', '98765.4'])\n    os._exit(0)",
    "if os.fork(): os._exit(0)",
    "import multiprocessing as m; m.get_context('fork').Process(target=time.sleep, args=(99,)).start()",
    "subprocess.Popen(['sleep', '98765.4'], start_new_session=True); os._exit(0)",
    "threading.Thread(target=time.sleep, args=(99,)).start()",
    "threading.Thread(target=os.fork).start()",
]


@LINUX
@pytest.mark.parametrize("body", LEFT)
def test_nothing_is_left_running(nothing_happened, monkeypatch, body) -> None:
    monkeypatch.setattr(child, "PATIENCE", 60.0)
    own = f"98765.{os.getpid()}"  # no other tests on this machine start it
    assert run(DOUBLE, student(body.replace("98765.4", own))).status in ("passed", "error")
    assert not running(own)


CHEATS = [
    ("torch.allclose = lambda *a, **k: True", "x"),
    ("np.allclose = np.array_equal = lambda *a, **k: True", "x"),
    ("torch.equal = torch.isclose = lambda *a, **k: True", "x"),
    ("torch.Tensor.__eq__ = torch.Tensor.__le__ = lambda *a: torch.tensor(True)", "x"),
    ("torch.Tensor.double = lambda self: torch.ones(2)", "x"),
    ("torch.as_tensor = lambda *a, **k: x", "x"),
    ("builtins.all = builtins.bool = lambda *a: True", "x"),
    ("builtins.abs = lambda v: 0", "x"),
    ("import llama2lab.lab.compare as c\nc.close = lambda *a, **k: True", "x"),
    ("import llama2lab.lab.compare as c\nc.judge = lambda *a, **k: None", "x"),
    ("import llama2lab.lab.checking as c\nc.run = c.Mistake = c.unpack = None", "x"),
    (
        "class T(torch.Tensor):\n    @classmethod\n    def __torch_function__(c, f, t, a=(), k=None): return True",
        "x.as_subclass(T)",
    ),
    (
        "class T(torch.Tensor):\n    def double(self): return 2 * x.double()\n    detach = cpu = lambda self: self",
        "x.as_subclass(T)",
    ),
    ("class T(torch.Tensor):\n    __eq__ = lambda *a: torch.tensor([True, True])", "x.as_subclass(T)"),
    ("class N(np.ndarray):\n    __eq__ = __le__ = lambda *a: True", "x.numpy().view(N)"),
    ("class F(float):\n    __eq__ = __le__ = __sub__ = lambda *a: F(0)", "[F(1), F(1)]"),
    ("class L(list):\n    __eq__ = lambda *a: True", "L([1.0, 1.0])"),
    ("class O:\n    __eq__ = __le__ = __sub__ = lambda *a: True\n    shape = (2,)", "O()"),
    ("import test_lab_misdeeds as t\nobject.__setattr__(t.DOUBLE, 'check', print)", "x"),
    ("f = sys._getframe()\nwhile f.f_back: f = f.f_back; f.f_globals.update(judge=print, check_double=print)", "x"),
    (FIND + "os.write(s, json.dumps({'kind': 'passed'}).encode() + b'\\n')", "x"),
    (FIND + "os.write(s, b'{' * 10**5 + b'\\n')", "x"),
    (FIND + "os.write(s, b'\\n' * 10**5)", "x"),
    (FIND + 'os.write(s, b\'{"kind": "returned", "result": {"tensor": "int64", "shape": [9], "data": ""}}\\n\')', "x"),
    (FIND + 'os.write(s, b\'{"kind": "returned", "result": {"pickle": "x"}, "args": [1]}\\n\')', "x"),
    ("b = torch.tensor([2, 4], dtype=torch.uint8).view(torch.bool)", "b"),
    ("torch.save = torch.load = None", "(2 * x).to(torch.complex64) + 1j"),
]


@LINUX
@pytest.mark.parametrize(("body", "answer"), CHEATS)
def test_a_wrong_answer_does_not_pass(nothing_happened, body, answer) -> None:
    outcome = run(DOUBLE, student(body, answer))
    assert outcome.status in ("failed", "error") and outcome.points == 0, outcome
    assert run(DOUBLE, lambda x: x + x).passed


@pytest.mark.parametrize(
    "owner, name, cheat",
    [
        (torch, "allclose", lambda *a, **k: True),
        (torch, "equal", lambda *a: True),
        (np, "allclose", lambda *a, **k: True),
        (np, "array_equal", lambda *a, **k: True),
        (np, "isclose", lambda *a, **k: True),
        (torch.Tensor, "double", lambda self: torch.zeros(2)),
        (torch.Tensor, "__eq__", lambda *a: torch.tensor(True)),
    ],
)
def test_a_function_replaced_in_a_cell_does_not_judge(monkeypatch, owner, name, cheat) -> None:
    monkeypatch.setattr(owner, name, cheat)
    assert run(DOUBLE, lambda x: x).status == "failed"


class Evil:
    """A value, as an answer to a question, whose methods do what this function does."""

    def __init__(self, act):
        object.__setattr__(self, "act", act)

    def __getattribute__(self, name):
        return object.__getattribute__(self, "act")()

    def __str__(self):
        return object.__getattribute__(self, "act")()

    __repr__ = __float__ = __iter__ = __len__ = __eq__ = __hash__ = __index__ = __format__ = __bool__ = __str__


class EvilText(str):
    __eq__ = __contains__ = lambda self, other: True
    __hash__ = str.__hash__
    strip = lower = encode = lambda self, *a: "b"


def endless():
    while True:
        pass


def leave():
    raise SystemExit


LAYER = torch.nn.Linear(1, 1)
ANSWERS = [  # made only in the test: pytest would look at them for their names
    (lambda: Evil(endless), "stopped"),
    (lambda: Evil(leave), "error"),
    (lambda: Evil(lambda: os._exit(1)), "error"),
    (lambda: Evil(int), "error"),
    (lambda: [Evil(leave)], "error"),
    (lambda: {"a": Evil(leave)}, "error"),
    (lambda: 10**5000, "failed"),
    (lambda: [10**5000], "failed"),
    (lambda: EvilText("a"), "failed"),
    (lambda: b"b", "failed"),
    (lambda: np.str_("b"), "passed"),
    (lambda: ["b"], "failed"),
    (lambda: "\ud800", "failed"),
    (lambda: LAYER, "failed"),
    (lambda: np.array(["b"]), "failed"),
    (lambda: lambda: "b", "failed"),
    (lambda: EvilText, "failed"),
]


@LINUX
@pytest.mark.parametrize(("make", "status"), ANSWERS)
def test_an_answer_that_is_no_function_may_be_anything_too(nothing_happened, make, status) -> None:
    outcome = run(COSTS, make(), seconds=0.4 if status == "stopped" else 60)
    assert outcome.status == status and not (outcome.points and status != "passed"), outcome
    outcome._repr_html_().encode()


@LINUX
@pytest.mark.parametrize(
    "make",
    [
        lambda: Evil(leave),
        lambda: Evil(lambda: os._exit(1)),
        lambda: Evil(int),
        lambda: [Evil(leave)],
        lambda: 10**5000,
        lambda: EvilText("b"),
        object,
        lambda: print,
        lambda: torch.ones(3),
        lambda: "\ud800",
    ],
)
def test_predictions_may_be_anything_too(nothing_happened, tmp_path, make) -> None:
    progress, answer = Progress(tmp_path), make()
    assert predict(FIRST_TALK, answer, progress).status == "failed"
    assert predict(FIRST_TALK, np.float32(0.5), progress).status == "noted"
    assert compare(FIRST_TALK, answer, progress).status == "failed"
    assert compare(FIRST_TALK, torch.tensor(0.5), progress).passed
    json.loads(progress.path.read_text())


def test_values_are_plain_or_made_plain() -> None:
    deep = []
    deep.append(deep)
    assert plain("a") == "a" and plain([1, "b"]) == [1, "b"]
    if child.FORK:
        assert plain({"a": torch.ones(1)}) == {"a": torch.ones(1)}
        assert run(COSTS, deep).status in ("failed", "error")


# ---- without a process -------------------------------------------------------------------------------------------


@pytest.fixture
def no_fork(monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.setattr(child, "FORK", False)


HELD_HERE = [
    body
    for body in SETTINGS
    if body.startswith(
        (
            "torch.set_d",
            "torch.set_num_threads",
            "torch.use",
            "torch.set_print",
            "torch.set_float",
            "torch.set_auto",
            "torch.autoc",
            "torch.autog",
            "torch.set_grad",
            "torch.inf",
            "random",
            "sys.std",
        )
    )
    and "tensor_type" not in body
    and "close" not in body
]


@pytest.mark.parametrize("body", HELD_HERE)
def test_in_a_thread_settings_are_put_back(no_fork, nothing_happened, body) -> None:
    assert run(DOUBLE, student(body)).status == "passed"


@pytest.mark.parametrize(
    ("body", "words"), [r for r in RAISED if "import" not in r[0] and "return" not in r[0] and "open(" not in r[0]]
)
def test_in_a_thread_whatever_is_raised_is_an_outcome(no_fork, nothing_happened, body, words) -> None:
    outcome = run(DOUBLE, student(body))
    assert outcome.status == "error" and words in outcome.message, outcome


@pytest.mark.parametrize(("body", "answer"), CHEATS[11:18])
def test_in_a_thread_an_answer_is_plain_data_too(no_fork, body, answer) -> None:
    assert run(DOUBLE, student(body, answer)).status in ("failed", "error")


@pytest.mark.parametrize("refusal", [BlockingIOError(11, "no more processes"), PermissionError(1, "not allowed")])
def test_where_the_system_refuses_a_process_there_is_a_thread(monkeypatch, refusal) -> None:
    def refuse():
        raise refusal

    monkeypatch.setattr(os, "fork", refuse)
    assert run(DOUBLE, lambda x: 2 * x).passed and run(DOUBLE, lambda x: x).status == "failed"


# ---- threads and forks -------------------------------------------------------------------------------------------


@LINUX
@pytest.mark.parametrize("threads", [0, 2])
def test_torch_works_in_the_process_whatever_the_notebook_has_used(threads) -> None:
    """The pool of OpenMP does not survive a fork: whoever enters it afterwards waits for ever."""

    def learns(x):
        if threads:
            torch.set_num_threads(threads)
        weight = torch.randn(400, 400, requires_grad=True)
        ((weight @ weight).softmax(-1).sum() + weight.exp().mean()).backward()
        assert weight.grad is not None and np.linalg.inv(np.random.rand(200, 200) + np.eye(200) * 99).any()
        return 2 * x

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            (torch.randn(600, 600, requires_grad=True) @ torch.randn(600, 600)).exp().sum().backward()
            assert run(DOUBLE, learns, seconds=60).passed
    finally:
        torch.set_num_threads(before)


@LINUX
def test_the_process_ends_with_the_notebook(tmp_path) -> None:
    """Killed in the middle of a check, the notebook leaves nothing behind."""
    own = f"87654.{os.getpid()}"
    code = (
        "import os\nfrom llama2lab.lessons.n02_transformer.exercises import RMS_NORM\nfrom llama2lab.lab.checking import run\n"
        f"def f(x, w, e):\n    os.execvp('sleep', ['sleep', '{own}'])\n"
        "run(RMS_NORM, f, 999)"
    )
    notebook = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    until(lambda: running(f"sleep\x00{own}"), "the code sleeps")
    notebook.kill()
    notebook.wait()
    until(lambda: not running(f"sleep\x00{own}"), "nothing is left")
