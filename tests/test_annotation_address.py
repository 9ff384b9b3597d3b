"""Addresses of stores: no secret of any of them comes out anywhere, and what is mistyped makes no file."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llama2lab.annotation.form import app
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store.address import FORM, hidden, meant_for_database, public
from llama2lab.annotation.store.engines import parse_url, public_url
from llama2lab.annotation.store.store import open_store
from llama2lab.cli import main as cli
from llama2lab.engine.errors import LabError

HOST = "127.0.0.1:1"  # nobody listens there
RIGHT = (
    "postgresql://boss:{escaped}@{host}/lab",
    "postgres://{escaped}@{host}/lab",  # a token as the user
    "postgresql+psycopg://boss:{escaped}@{host}/lab?sslmode=disable",
    "POSTGRESQL://boss:{escaped}@{host}/lab",
    "postgresql://{host}/lab?user=boss&password={escaped}",
    "postgresql://boss@{host}/lab?sslmode=disable&sslpassword={escaped}",
    "postgresql://boss@{host}/lab?passfile=/{escaped}",
    "postgresql://{host}/lab?service={escaped}",
    "postgresql://{host}/lab?options=-c%20x.y%3D{escaped}",
)
WRONG = (
    "postgresql:/boss:{raw}@{host}/lab",
    "postgresql:boss:{raw}@{host}/lab",
    "postgresql//boss:{raw}@{host}/lab",
    "boss:{raw}@{host}/lab",
    "//boss:{raw}@{host}/lab",
    "jdbc:postgresql://{host}/lab?user=boss&password={raw}",
    "host=127.0.0.1 password={raw} dbname=lab",
    "dbname=lab user='boss' password='{raw}'",
    "postgresql:/{host}/lab?password={raw}",
    "mysql://boss:{raw}@{host}/lab",
    "http://boss:{raw}@{host}/lab",
    "'postgresql://boss:{raw}@{host}/lab'",
    "postgresql://boss:{raw}@{host}:x/lab",
    "postgresql://{host}/lab?{raw}",
    "postgresql://{host}/lab?passwrd={raw}",
    "sqlite://boss:{raw}@{host}/lab",
    "postgresql://boss:{raw}@",
    "postgresql://",
    "postgresql://boss:p@{raw}@{host}/lab",
    "postgresql://boss:{raw}@p@{host}/lab",
    "postgresql://boss:{raw}/x@y@{host}/lab",
    "boss/{raw}@{host}/lab",
    "{raw}@{host}",
    "postgresql%3A%2F%2Fboss%3A{escaped}%40{host}%2Flab",
    "boss:{escaped}%40{host}",
    "postgresql://boss:{raw}@{host}/lab?sslmode={raw}",
    "{{'host': '{host}', 'password': '{raw}'}}",
)
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
PASSWORDS = st.text(LETTERS, min_size=4, max_size=6).flatmap(
    lambda a: st.text(LETTERS + "@:/?#%&+=!$-_~. ", max_size=6).flatmap(
        lambda b: st.text(LETTERS, min_size=4, max_size=6).map(lambda c: f"Q{a}{b}{c}Z")
    )
)


def address(form: str, password: str) -> str:
    return form.format(raw=password, escaped=quote(password, safe=""), host=HOST)


def parts_of(password: str) -> set[str]:
    """The password, as it is and escaped, and its ends, which are long enough to be no accident."""
    import re

    ends = [one for one in re.split(f"[^{LETTERS}]+", password) if len(one) > 4]
    return {password, quote(password, safe=""), *ends}


def quiet(text: str, password: str) -> None:
    assert not [one for one in parts_of(password) if one in text], text


@settings(suppress_health_check=list(HealthCheck))
@given(form=st.sampled_from(RIGHT + WRONG), password=PASSWORDS)
@example(form="sqlite://boss:{raw}@{host}/lab", password="Qabcd efghZ")
@example(form="postgresql:/boss:{raw}@{host}/lab", password="Q0000?0000Z")
@example(form="postgresql://boss:{raw}@{host}/lab", password="54321?0000Z")
@example(form="postgresql://boss:{raw}@{host}/lab", password="54321/0000Z")
def test_no_secret_of_any_address_comes_out(form: str, password: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    url, folder = address(form, password), tmp_path_factory.getbasetemp()
    os.chdir(folder)
    before = set(folder.iterdir())
    said = [public(url), public_url(url), hidden(f"could not open {url}: no such thing", [url])]
    with pytest.raises(LabError) as caught:
        open_store(url)
    said += [str(caught.value), *traceback.format_exception(caught.value)]
    form_ = AnnotationForm(url, "Ada")
    said += [repr(form_), json.dumps(form_.get_state(), default=str)]
    visited = app.Application(url)
    said += [repr(visited), json.dumps(visited.get_state(), default=str), visited._plain_text()]
    quiet("\n".join(said), password)
    assert set(folder.iterdir()) == before  # no folder, no file of that name


@settings(suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(RIGHT + WRONG),
    password=PASSWORDS,
    command=st.sampled_from(
        [
            ["agreement", "URL"],
            ["annotate", "URL"],
            ["labels", "export", "URL", "x.jsonl"],
            ["labels", "import", "URL", "f.jsonl"],
            ["labels", "add", "URL", "f.jsonl"],
            ["labels", "add", "l.db", "URL"],
            ["labels", "merge", "URL", "l.db"],
            ["labels", "merge", "l.db", "URL"],
            ["class", "logins", "URL", "names.txt"],
            ["class", "URL", "names.txt"],
            ["run", "--annotations", "URL", "--out", "r"],
            ["annotate", "l.db", "URL"],
            ["agreement"],
            ["labels", "merge"],
        ]
    ),
)
def test_no_command_prints_a_secret(
    form: str, password: str, command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url, folder = address(form, password), tmp_path_factory.getbasetemp()
    os.chdir(folder)
    Path("f.jsonl").write_text("")
    Path("names.txt").write_text("Ada\n")
    named = "URL" in command
    result = CliRunner().invoke(
        cli.app,
        [url if word == "URL" else word for word in command],
        env={"LLAMA2LAB_ANNOTATIONS": "l.db" if named else url},
    )
    assert result.exit_code == 2, result.output
    quiet(result.output, password)


@pytest.mark.parametrize(
    "text, database",
    [
        ("labels.db", False),
        ("./u:pw@h.db", False),
        ("/home/me@x/labels.db", False),
        (r"C:\Users\me@x\labels.db", False),
        ("sqlite:///labels.db", False),
        ("class/labels.db", False),
        ("postgres.db", False),
        ("u:pw@h/d", True),
        ("postgresql:/h/d", True),
        ("host=h dbname=d", True),
        ("postgresql://h/d", True),
    ],
)
def test_files_and_databases_are_told_apart(text: str, database: bool) -> None:
    assert meant_for_database(text) is database


def test_how_an_address_is_written_is_said_and_not_hidden() -> None:
    result = CliRunner().invoke(cli.app, ["agreement", "boss:geheim42@h/d"])
    assert FORM in result.output and "geheim42" not in result.output


def test_a_file_that_is_there_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = "me:you@home.db"
    with pytest.raises(LabError, match="meant for a database"):
        open_store(odd)
    Path(odd).touch()
    open_store(odd).close()
    assert parse_url(odd).database == str(tmp_path / odd)


@pytest.mark.parametrize(
    "url, shown",
    [
        ("postgresql://boss:pw@db.school:5432/lab?sslmode=require", "postgresql://db.school:5432/lab"),
        ("postgres://db/lab", "postgresql://db/lab"),
        ("postgresql://u:pw@[::1]:5432/lab", "postgresql://[::1]:5432/lab"),
        ("labels.db", "labels.db"),
    ],
)
def test_what_is_shown_still_says_where(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert public_url(parse_url(url)).endswith(shown)


def test_a_server_that_stops_is_named_without_its_password(postgres) -> None:
    url = postgres.create("stops")
    where = url.split("@")[1]
    for form in (url, f"postgresql://{where}?user={url.split('//')[1].split(':')[0]}&password={postgres.password}"):
        with open_store(form) as store:
            assert store.url == store.where == f"postgresql://{where}"
            assert postgres.password not in repr(store.engine) + repr(store.engine.url)
            postgres.ctl("-m", "fast", "stop")
            try:
                with pytest.raises(LabError, match=r"does not answer|connection") as caught:
                    store.annotator("Ada")
            finally:
                postgres.start()
            assert postgres.password not in "".join(traceback.format_exception(caught.value))
