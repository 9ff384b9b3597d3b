"""Annotation stores for tests: the same tests run on an SQLite file and on a real PostgreSQL server. And the run
that is shipped with the project, for tests of what notebooks show."""

import itertools
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from trial_server import find_programs, trial_server

# Where tests run in the background of a shell, Ctrl-C is ignored, and programs that they start inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Examples of whatever there may be: a few each time, many where somebody asks for them (make long-test does). None has
# a time limit: a busy machine is slow, not wrong.
EXAMPLES = int(os.environ.get("LLAMA2LAB_EXAMPLES", "25"))
settings.register_profile("lab", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lab")

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of the tests' own."""
    if find_programs() is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql), so its half is not tested")
    with trial_server() as server:
        yield server


def pytest_terminal_summary(terminalreporter):
    """What tests have measured, for people, by `record_property`; what tests print in other processes is lost."""
    for report in terminalreporter.getreports("passed"):
        for _, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """The URL of a new, empty store on each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.db")
    return request.getfixturevalue("postgres").create(f"lab{next(_numbers)}")


@pytest.fixture(scope="session")
def lab():
    """The run shipped with the project, or the one that LLAMA2LAB_RUN names."""
    from llama2lab.lab.finished import RUN, SHIPPED, Finished

    return Finished(Path(os.environ.get(RUN) or SHIPPED))


@pytest.fixture(autouse=True)
def nothing_is_kept(tmp_path_factory, monkeypatch):
    """What notebooks would keep beside themselves goes into a folder of the test's own."""
    folder = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("LLAMA2LAB_LIVE", str(folder / "live"))
    monkeypatch.setenv("LLAMA2LAB_PROGRESS", str(folder))
