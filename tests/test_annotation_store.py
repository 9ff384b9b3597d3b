"""The annotation store: what it keeps, its schema, and what it says when the database is in trouble."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from patience import until

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.store import migrations, queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.engines import BUSY_SECONDS, parse_url
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import open_store
from llama2lab.engine import scale
from llama2lab.engine.errors import LabError

NASTY = (
    "a\x00b\x1a0041 \ud800 \u202e \u2028 \x1b[31m <script>alert(1)</script> 'quoted\"; DROP TABLE labels; -- %s %(x)s"
)


def pairs(count, kind="helpfulness", start=0, **more):
    return [
        {
            "kind": kind,
            "prompt": [{"role": "user", "content": f"Question {n}?"}],
            "answers": [f"Answer {n}.", f"Another {n}."],
            "models": ["sft", "base"],
            **more,
        }
        for n in range(start, start + count)
    ]


def labelled(url, count=3):
    store = open_store(url)
    add_pairs(store, pairs(count))
    me = store.annotator("Anna")
    for _ in range(count):
        task = queue.next_task(store, me)
        queue.submit(store, me, task.item_id, "left", "better")
    return store, me


def test_positions_go_from_left_to_right():
    assert scale.POSITIONS[0] == ("left", "significantly") and scale.POSITIONS[7] == ("right", "significantly")
    assert scale.POSITIONS[3:5] == (("left", "negligibly"), ("right", "negligibly"))
    assert len(set(scale.POSITIONS)) == 8


def test_annotating_imports_no_torch(tmp_path):
    code = (
        "import sys; from llama2lab.annotation.files import adding, exporting, importing, merging; "
        "from llama2lab.annotation.store import classroom, queue, store; "
        "store.open_store('labels.db'); "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def test_any_text_comes_back_as_it_was(store_url):
    with open_store(store_url) as store:
        version = store.add_guidelines("helpfulness", NASTY)
        assert store.guidelines("helpfulness") == (version, NASTY)
        add_pairs(
            store,
            [
                {
                    "kind": "helpfulness",
                    "prompt": [{"role": "user", "content": NASTY}],
                    "answers": [NASTY, NASTY * 2],
                    "prompt_id": NASTY,
                    "meta": {NASTY: [NASTY, None]},
                }
            ],
        )
        me = store.annotator("Anna")
        task = queue.next_task(store, me)
        assert {task.left_text, task.right_text} == {NASTY, NASTY * 2}
        assert task.prompt == [{"role": "user", "content": NASTY}]
        queue.submit(store, me, task.item_id, "left", "better", comment=NASTY)
        (label,) = store.labels()
        assert label["comment"] == NASTY and label["guidelines"] == version and label["prompt_id"] == NASTY


def test_guidelines_have_versions_and_the_newest_are_in_force(store_url):
    with open_store(store_url) as store:
        assert store.guidelines("safety") == ("", "")
        first, second = store.add_guidelines("safety", "one"), store.add_guidelines("safety", "two")
        assert first != second and store.guidelines("safety") == (second, "two")
        assert store.add_guidelines("safety", "one") == first and store.guidelines("safety") == (first, "one")
        with pytest.raises(LabError, match="helpfulness or safety"):
            store.add_guidelines("beauty", "x")


def test_an_annotator_is_one_person_whatever_blanks_the_name_has(store_url):
    with open_store(store_url) as store:
        first = store.annotator("Zoë  Müller ")
        assert store.annotator("Zoe\u0308 Mu\u0308ller") == first != store.annotator("Zoë")


@pytest.mark.parametrize("name", ["", "  \n", "a\x00b", "x" * 201, "evil\u202ename", "\ud800", "be\x07ll"])
def test_names_that_are_none(name):
    with pytest.raises(LabError):
        clean_name(name)


@pytest.mark.parametrize(
    "url, words",
    [
        ("", "empty"),
        ("mysql://host/x", "no annotation store"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql://a:b:c:d/e", "cannot be read|does not answer"),
        ("http://host/labels", "no annotation store"),
    ],
)
def test_urls_that_are_none(url, words):
    with pytest.raises(LabError, match=words):
        open_store(url)


def test_urls_are_understood(tmp_path):
    assert parse_url("postgres://h/d").drivername == parse_url("postgresql://h/d").drivername == "postgresql+psycopg"
    assert parse_url(f"sqlite:///{tmp_path}/x.db").database == str(tmp_path / "x.db")
    odd = tmp_path / "odd ? # % name.db"
    open_store(odd).close()
    assert odd.stat().st_size > 0 and stat.S_IMODE(odd.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == [odd.name]


def test_the_database_refuses_to_change_or_to_remove_labels(store_url):
    store, _ = labelled(store_url)
    for statement in ("UPDATE labels SET grade = 'slightly'", "DELETE FROM labels"):
        with pytest.raises((StoreError, sa.exc.IntegrityError, sa.exc.ProgrammingError)), store.begin() as conn:
            conn.exec_driver_sql(statement)
    assert [label["grade"] for label in store.labels()] == ["better"] * 3


# Schema


def test_tables_are_what_the_migrations_make(store_url):
    with open_store(store_url) as store, store.begin() as conn:
        assert migrations.revisions()[0] == t.SCHEMA
        context = MigrationContext.configure(conn, opts={"version_table": t.VERSION_TABLE, "compare_type": False})
        assert compare_metadata(context, t.metadata) == []


def test_a_store_of_an_old_version_is_upgraded_and_keeps_its_labels(store_url):
    parsed = parse_url(store_url)
    if parsed.get_backend_name() == "sqlite":
        sqlite3.connect(store_url).close()
    engine = sa.create_engine(parsed)
    moment = t.now()
    with engine.begin() as conn:
        migrations.upgrade(conn, "0001")
        assert "members" not in sa.inspect(conn).get_table_names()
        conn.execute(t.annotators.insert().values(id="a", name="Anna", kind="person", vendor=""))
        conn.execute(
            t.items.insert().values(
                id="i",
                kind="helpfulness",
                prompt=[{"role": "user", "content": "Q"}],
                answer_1="x",
                answer_2="y",
                prompt_id="",
                overlap=1,
                position=1,
            )
        )
        conn.execute(t.secrets.insert().values(item_id="i"))
        conn.execute(
            t.slots.insert().values(
                item_id="i", number=1, position=1, annotator_id="a", left=2, state="leased", leased_until=moment
            )
        )
        conn.execute(
            t.labels.insert().values(
                id="l", item_id="i", annotator_id="a", choice=1, grade="better", left=2, created_at=moment
            )
        )
    engine.dispose()
    with open_store(store_url) as store:
        (label,) = store.labels()
        assert (label["label_id"], label["choice"], label["left"], label["created_at"]) == ("l", 1, 2, moment)
        assert queue.history(store, "a")[0].label.side == "right"
        with store.begin() as conn:
            assert conn.exec_driver_sql(f"SELECT version_num FROM {t.VERSION_TABLE}").scalar() == t.SCHEMA
            assert "members" in sa.inspect(conn).get_table_names()


def test_a_store_of_a_newer_version_is_left_alone(store_url):
    with open_store(store_url) as store, store.begin() as conn:
        conn.exec_driver_sql(f"UPDATE {t.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer llama2lab.*9999.*pip install -U") as caught:
        open_store(store_url)
    assert not caught.value.retry


def test_many_who_open_a_new_store_at_once_all_get_it(store_url):
    failures = []

    def work():
        try:
            open_store(store_url).close()
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# Faults of SQLite


def test_another_programs_file_is_left_alone(tmp_path):
    other = tmp_path / "browser.db"
    with sqlite3.connect(other) as conn:
        conn.execute("CREATE TABLE bookmarks (url TEXT)")
    before = other.read_bytes()
    with pytest.raises(StoreError, match="holds other tables"):
        open_store(other)
    assert other.read_bytes() == before


def test_no_database_at_all(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello " * 1000)
    with pytest.raises(StoreError, match="no SQLite database"):
        open_store(text)
    with pytest.raises(StoreError, match="is a folder"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="no annotation store at"):
        open_store(tmp_path / "missing.db", create=False)
    with pytest.raises(StoreError, match="cannot be made"):
        open_store("/proc/nowhere/labels.db")
    assert not (tmp_path / "missing.db").exists()


def test_a_vanished_file_is_noticed_and_saving_works_again_when_it_is_back(tmp_path):
    file = tmp_path / "labels.db"
    store, me = labelled(file)
    add_pairs(store, pairs(2, start=10))
    task = queue.next_task(store, me)
    file.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError, match="vanished") as caught:
        queue.submit(store, me, task.item_id, "left", "better", label_id="mine")
    assert caught.value.retry and not file.exists()
    (tmp_path / "elsewhere.db").rename(file)
    assert queue.submit(store, me, task.item_id, "left", "better", label_id="mine") == "mine"
    assert len(store.labels()) == 4


def test_a_file_that_is_replaced_while_it_is_written_to_is_noticed(tmp_path):
    file = tmp_path / "labels.db"
    store, _ = labelled(file)

    def replace(conn):
        conn.execute(t.annotators.insert().values(id="x", name="x", kind="person", vendor=""))
        shutil.copy(file, tmp_path / "copy.db")
        os.replace(tmp_path / "copy.db", file)

    with pytest.raises(StoreError, match=r"moved away or replaced|vanished|disk|locked") as caught:
        store.write(replace)
    assert caught.value.retry


def test_a_locked_file_is_waited_for_and_then_named(tmp_path, monkeypatch):
    file = tmp_path / "labels.db"
    monkeypatch.setattr("llama2lab.annotation.store.engines.BUSY_SECONDS", 0.1)
    store, me = labelled(file)
    add_pairs(store, pairs(1, start=10))
    task = queue.next_task(store, me)
    assert BUSY_SECONDS == 30
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another program") as caught:
        queue.submit(store, me, task.item_id, "left", "better", label_id="mine")
    assert caught.value.retry
    monkeypatch.setattr("llama2lab.annotation.store.engines.BUSY_SECONDS", 30)
    release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    release.start()
    assert queue.submit(store, me, task.item_id, "left", "better", label_id="mine") == "mine"
    release.join()


def test_nobody_starves_where_others_write_all_the_time(tmp_path, monkeypatch):
    """A lock that is free for a moment ten times a second: whoever asks ten times a second may never meet it."""
    file = tmp_path / "labels.db"
    store, _ = labelled(file)
    monkeypatch.setattr("llama2lab.annotation.store.engines.BUSY_SECONDS", 15)
    monkeypatch.setattr("llama2lab.annotation.store.store.ATTEMPTS", 1)
    over, failures = threading.Event(), []

    def hold():
        other = sqlite3.connect(file, isolation_level=None, timeout=30)
        while not over.is_set():
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(0.095)
            other.execute("ROLLBACK")
            time.sleep(0.005)
        other.close()

    def work(number):
        try:
            store.annotator(f"Annotator {number}")
            store.guidelines("safety")
        except StoreError as e:
            failures.append(str(e))

    holder = threading.Thread(target=hold)
    writers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in (holder, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    holder.join()
    assert failures == []


def test_a_full_disk_is_named_and_nothing_is_half_saved(tmp_path):
    store, me = labelled(tmp_path / "labels.db")
    add_pairs(store, pairs(1, start=10))
    task = queue.next_task(store, me)

    @sa.event.listens_for(store.engine, "connect")
    def shrink(connection, _):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    with pytest.raises(StoreError, match="disk is full") as caught:
        queue.submit(store, me, task.item_id, "left", "better", comment="long " * 20000, label_id="mine")
    assert caught.value.retry
    sa.event.remove(store.engine, "connect", shrink)
    assert queue.progress(store, me).done == 3
    assert queue.submit(store, me, task.item_id, "left", "better", comment="long " * 20000, label_id="mine") == "mine"


def test_a_read_only_store_can_be_read_and_says_so_when_written_to(tmp_path):
    store, _ = labelled(tmp_path / "labels.db")

    @sa.event.listens_for(store.engine, "connect")
    def read_only(connection, _):  # root may write to anything, so the mode of the file would not do
        connection.execute("PRAGMA query_only=ON")

    assert len(store.labels()) == 3
    with pytest.raises(StoreError, match="read-only; mend the permissions"):
        store.annotator("Bert")


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "labels.db"
    store, me = labelled(file, 30)
    size = file.stat().st_size
    with file.open("r+b") as raw:
        raw.seek(4096)
        raw.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreError, match="damaged") as caught:
        queue.next_task(store, me)
    assert not caught.value.retry


# Faults of PostgreSQL


@pytest.mark.parametrize(
    "part, words, retry",
    [
        ({"password": "wrong"}, "refuses this name and password", False),
        ({"username": "nobody"}, "refuses this", False),
        ({"database": "nowhere"}, "no database of this name", False),
        ({"port": 1}, "does not answer", True),
        ({"host": "no-such-host.invalid"}, "does not answer", True),
    ],
)
def test_a_wrong_url_of_a_server(postgres, part, words, retry):
    with pytest.raises(StoreError, match=words) as caught:
        open_store(parse_url(postgres.url()).set(**part).render_as_string(hide_password=False))
    assert caught.value.retry is retry
    assert postgres.password not in str(caught.value)


def test_a_database_in_an_encoding_that_cannot_hold_every_text(postgres):
    postgres.create("unused")
    import psycopg

    with psycopg.connect(postgres.url(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(StoreError, match="LATIN1"):
        open_store(postgres.url("latin"))


def test_a_server_that_goes_away_and_comes_back(postgres):
    url = postgres.create("goes_away")
    store, me = labelled(url)
    add_pairs(store, pairs(1, start=10))
    task = queue.next_task(store, me)
    postgres.ctl("-m", "fast", "stop")
    try:
        with pytest.raises(StoreError) as caught:
            queue.submit(store, me, task.item_id, "left", "better", label_id="mine")
        assert caught.value.retry
    finally:
        postgres.start()
    assert queue.submit(store, me, task.item_id, "left", "better", label_id="mine") == "mine"
    assert len(store.labels()) == 4


def test_a_connection_cut_by_the_server_is_made_anew(postgres):
    store, _ = labelled(postgres.create("cut"))
    admin = open_store(postgres.url("cut"))
    others = "FROM pg_stat_activity WHERE datname = 'cut' AND pid <> pg_backend_pid()"

    def connections():
        with admin.begin(read=True) as conn:
            return conn.exec_driver_sql(f"SELECT count(*) {others}").scalar()

    with admin.begin() as conn:
        conn.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {others}")
    until(lambda: connections() == 0, "the connection is cut")
    assert len(store.labels()) == 3


def test_a_store_that_rests_holds_no_connection(postgres, monkeypatch):
    """Dozens of pages lie open in a class: those that nobody touches take no place on the server."""
    store, me = labelled(postgres.create("resting"))

    def connections():
        with postgres_admin.begin(read=True) as conn:
            return conn.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = 'resting' AND pid <> pg_backend_pid()"
            ).scalar()

    postgres_admin = open_store(postgres.url("resting"))
    for _ in range(2):
        for seconds, left in ((600.0, 1), (0.5, 0)):
            monkeypatch.setattr("llama2lab.annotation.store.engines.IDLE_SECONDS", seconds)
            assert queue.progress(store, me).done == 3
            until(lambda left=left: connections() == left, f"after {seconds} s of rest {left} are left")
