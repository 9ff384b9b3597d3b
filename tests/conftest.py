"""Annotation stores for tests: the same tests run on an SQLite file and on a real PostgreSQL server."""

import itertools

import pytest

from llama2lab.annotation.trial_server import find_programs, trial_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of the tests' own."""
    if find_programs() is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql), so its half is not tested")
    with trial_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """The URL of a new, empty store on each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "labels.db")
    return request.getfixturevalue("postgres").create(f"lab{next(_numbers)}")
