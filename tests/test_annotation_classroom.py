"""A class on PostgreSQL: what an annotator's own login can do, and what the database itself refuses it."""

import csv
import itertools
import os
import stat
import threading

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect
from test_annotation_queue import answer
from test_annotation_store import pairs

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.merging import merge
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.classroom import TEACHER, create_class
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.roster import read_roster
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError

ROSTER = ["Anna", "Zoë Müller", "Robert'); DROP TABLE labels;--", 'quo"ted $$ %s \\ name', "李雷", "Bert, the second"]
numbers = itertools.count()


class Class:
    """A class with labels of two people, and everybody's URL."""

    def __init__(self, server, folder):
        self.admin_url = server.create(f"class{next(numbers)}")
        self.roster, self.file = folder / "roster.txt", folder / "urls.csv"
        self.roster.write_text("\n".join(ROSTER) + "\n", encoding="utf-8")
        self.admin = open_store(self.admin_url)
        self.admin.add_guidelines("helpfulness", "be fair")
        add_pairs(self.admin, pairs(8, models=["secret-model", "other-model"]), overlap=2)
        add_pairs(self.admin, pairs(3, start=20, gold={"choice": 1}))
        self.report = create_class(self.admin_url, self.roster, self.file)
        self.urls = dict(list(csv.reader(self.file.open(newline="", encoding="utf-8")))[1:])

    def open(self, name):
        return open_store(self.urls[name])


@pytest.fixture
def room(postgres, tmp_path):
    made = Class(postgres, tmp_path)
    yield made
    made.admin.close()


def test_everybody_of_the_roster_can_label_with_the_ordinary_code(room):
    assert room.report.created == ROSTER and room.report.known == []
    for name in ROSTER[:3]:
        with room.open(name) as store:
            assert store.login() == name
            me = store.annotator(name)
            assert store.guidelines("helpfulness")[1] == "be fair"
            before = queue.progress(store, me)
            gold = answer(store, me, 2, gold_first=True)
            answer(store, me, 2, side="right")
            task = queue.next_task(store, me)
            assert queue.renew(store, me, task.item_id)
            queue.skip(store, me, task.item_id, "no")
            edit = f"edit{ROSTER.index(name)}"
            for _ in range(2):
                assert queue.submit(store, me, gold[0], "right", "slightly", comment="edited", label_id=edit) == edit
            past = queue.history(store, me)
            assert len(past) == 5 and past[0].label.comment == "edited" and past[0].label.side == "right"
            found = queue.qualify(store, me)
            assert (found.done, found.wanted) == (queue.qualify(room.admin, me).done, 3) and found.done >= 2
            after = queue.progress(store, me)
            assert (after.done, after.skipped, after.open) == (4, 1, before.open - 5)
            assert queue.progress(store, me, "helpfulness") == after  # as with `annotate --kind`
            assert queue.qualify(store, me, "helpfulness") == found
            assert queue.next_task(store, me, kind="helpfulness").item_id == queue.next_task(store, me).item_id
    assert {label["annotator"] for label in room.admin.labels()} == set(ROSTER[:3])


def test_a_class_that_labels_at_once_under_its_own_logins(room):
    add_pairs(room.admin, pairs(20, start=100), overlap=3)
    made, failures = [], []

    def label(name):
        try:
            with room.open(name) as store:
                me = store.annotator(name)
                while task := queue.next_task(store, me):
                    made.append(queue.submit(store, me, task.item_id, "left", "better"))
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=label, args=(name,)) for name in ROSTER]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = room.admin.labels()
    assert failures == [] and sorted(made) == sorted(label["label_id"] for label in labels)
    assert len(labels) == 8 * 2 + 3 * len(ROSTER) + 20 * 3  # as wanted, and gold by everybody
    assert len({(label["item_id"], label["annotator"]) for label in labels}) == len(labels)


def test_the_file_of_urls_is_for_the_teacher_alone(room):
    assert stat.S_IMODE(room.file.stat().st_mode) == 0o600
    assert list(room.urls) == [TEACHER, *ROSTER]
    assert len({parse_url(url).password for url in room.urls.values()}) == len(room.urls)
    assert [p.name for p in room.file.parent.iterdir() if p.name.startswith(".")] == []


def test_a_longer_roster_adds_only_the_new_and_old_urls_still_work(room):
    again = create_class(room.admin_url, room.roster, room.file)
    assert again.created == [] and again.known == ROSTER
    assert dict(list(csv.reader(room.file.open(newline="", encoding="utf-8")))[1:]) == room.urls
    room.roster.write_text("\n".join([*ROSTER, "New Nora"]), encoding="utf-8")
    assert create_class(room.admin_url, room.roster, room.file).created == ["New Nora"]
    urls = dict(list(csv.reader(room.file.open(newline="", encoding="utf-8")))[1:])
    assert list(urls.items())[:-1] == list(room.urls.items())
    for url in (urls["New Nora"], urls["Anna"]):
        with open_store(url) as store:
            assert queue.next_task(store, store.annotator(store.login())) is not None


def test_a_lost_url_is_renewed_and_the_old_one_is_dead(room):
    report = create_class(room.admin_url, room.roster, room.file, renew=["Anna", TEACHER])
    assert report.renewed == ["Anna"]
    urls = dict(list(csv.reader(room.file.open(newline="", encoding="utf-8")))[1:])
    for name in ("Anna", TEACHER):
        with pytest.raises(StoreError, match="refuses this name and password"):
            room.open(name)
        open_store(urls[name]).close()
    with pytest.raises(LabError, match="'Nobody' has no login"):
        create_class(room.admin_url, room.roster, room.file, renew=["Nobody"])


@pytest.fixture(scope="module")
def spied_room(postgres, tmp_path_factory):
    """One class for all that is only tried."""
    made = Class(postgres, tmp_path_factory.mktemp("spied"))
    yield made
    made.admin.close()


@pytest.fixture(scope="module")
def spied(spied_room):
    """Anna's bare connection to the database, after Zoë has labelled."""
    room = spied_room
    with room.open("Zoë Müller") as store:
        answer(store, store.annotator("Zoë Müller"), 4)
    with room.open("Anna") as store:
        anna = store.annotator("Anna")
        answer(store, anna, 2)
        queue.next_task(store, anna)
    zoe = room.admin.annotator("Zoë Müller")
    with psycopg.connect(room.urls["Anna"], autocommit=True) as conn:
        yield conn, anna, zoe


def test_a_login_sees_its_own_rows_only(spied, spied_room):
    conn, anna, zoe = spied
    assert conn.execute("SELECT count(*) FROM labels").fetchone() == (2,)
    assert conn.execute("SELECT count(*) FROM labels WHERE annotator_id = %s", [zoe]).fetchone() == (0,)
    assert conn.execute("SELECT DISTINCT annotator_id FROM slots").fetchall() == [(anna,)]
    assert conn.execute("SELECT name FROM annotators").fetchall() == [("Anna",)]
    assert conn.execute("SELECT count(*) FROM items").fetchone() == (3,)
    assert len(spied_room.admin.labels()) == 6


REFUSED = [
    "SELECT * FROM secrets",
    "SELECT gold FROM secrets",
    "SELECT model_1 FROM secrets",
    "SELECT * FROM members",
    "SELECT * FROM items",
    "SELECT overlap FROM items",
    "SELECT position FROM items",
    "SELECT * FROM slots",
    "SELECT number FROM slots",
    "SELECT passwd FROM pg_shadow",
    "COPY labels TO PROGRAM 'cat'",
    "UPDATE labels SET grade = 'better'",
    "UPDATE labels SET comment = 'x' WHERE annotator_id = '{anna}'",
    "DELETE FROM labels",
    "DELETE FROM labels WHERE annotator_id = '{anna}'",
    "TRUNCATE labels",
    "UPDATE slots SET state = 'free'",
    "UPDATE slots SET annotator_id = '{anna}'",
    "DELETE FROM slots",
    "INSERT INTO slots (item_id, number, position, state) SELECT id, 9, 9, 'free' FROM items LIMIT 1",
    "UPDATE items SET answer_1 = 'x'",
    "DELETE FROM items",
    "UPDATE annotators SET name = 'x'",
    "INSERT INTO annotators (id, name, kind, vendor, created_at) VALUES ('x', 'x', 'person', '', now())",
    "INSERT INTO members VALUES ('x', '{zoe}')",
    "UPDATE members SET annotator_id = '{zoe}'",
    "INSERT INTO guidelines VALUES ('x', 'helpfulness', 'x', now())",
    "UPDATE guidelines SET text = 'x'",
    'INSERT INTO labels (id, item_id, annotator_id, choice, grade, comment, flag, seconds, "left", created_at) '
    "SELECT 'forged', item_id, '{zoe}', 1, 'better', '', false, 0, 1, now() FROM slots LIMIT 1",
    "SELECT llama2lab_claim('{zoe}', '0', 900, NULL, false)",
    "SELECT llama2lab_waiting('{zoe}', NULL)",
    "SELECT llama2lab_gold('{zoe}', NULL)",
    "SELECT llama2lab_renew('{zoe}', 'x', 900)",
    "SELECT llama2lab_free('{zoe}', NULL)",
    "SELECT llama2lab_allow('{zoe}')",
    "DROP TABLE labels",
    "ALTER TABLE labels DISABLE ROW LEVEL SECURITY",
    "DROP POLICY llama2lab_select ON labels",
    "ALTER TABLE labels DISABLE TRIGGER ALL",
    "CREATE TABLE mine (x int)",
    "CREATE ROLE x",
    "SET ROLE teacher_admin",
    "SET SESSION AUTHORIZATION teacher_admin",
    "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_the_database_refuses_a_login_what_is_not_its_own(spied, spied_room, statement):
    conn, anna, zoe = spied
    before = spied_room.admin.labels()
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState)):
        conn.execute(statement.format(anna=anna, zoe=zoe))
    assert spied_room.admin.labels() == before


def insert(conn, label_id, item_id, who, **more):
    values = {
        "id": label_id,
        "item_id": item_id,
        "annotator_id": who,
        "choice": 1,
        "grade": "better",
        "comment": "",
        "flag": False,
        "seconds": 0,
        "left": 1,
        "created_at": "1999-01-01T00:00:00Z",
        "supersedes": None,
    } | more
    names = ", ".join(f'"{name}"' for name in values)
    conn.execute(f"INSERT INTO labels ({names}) VALUES ({', '.join(['%s'] * len(values))})", list(values.values()))


def test_a_login_can_label_only_what_it_was_given_and_supersede_only_its_own(spied, spied_room):
    conn, anna, _ = spied
    theirs = next(x for x in spied_room.admin.labels() if x["annotator"] == "Zoë Müller")
    mine = next(x for x in spied_room.admin.labels() if x["annotator"] == "Anna")
    with spied_room.admin.begin() as admin:
        never_given = admin.execute(
            sa.text("SELECT id FROM items WHERE id NOT IN (SELECT item_id FROM slots WHERE annotator_id = :who)"),
            {"who": anna},
        ).scalar()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(conn, "forged", never_given, anna)
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(conn, "forged", mine["item_id"], anna, supersedes=theirs["label_id"])
    with pytest.raises(psycopg.errors.UniqueViolation):
        insert(conn, theirs["label_id"], mine["item_id"], anna)
    for wrong in ({"label_id": "a b"}, {"seconds": "NaN"}, {"seconds": -1}, {"grade": "best"}, {"choice": 3}):
        with pytest.raises(psycopg.errors.CheckViolation):
            insert(conn, wrong.pop("label_id", "odd"), mine["item_id"], anna, **wrong)
    side = 3 - mine["left"]
    insert(conn, "honest", mine["item_id"], anna, supersedes=mine["label_id"], left=side)
    stored = next(x for x in spied_room.admin.labels() if x["label_id"] == "honest")
    assert stored["left"] == mine["left"] != side  # side and time are the server's, whatever was sent
    assert stored["created_at"].year > 2000
    assert theirs in spied_room.admin.labels()


def test_a_login_cannot_break_the_reports_rule_on_safety(room):
    add_pairs(room.admin, pairs(1, kind="safety", start=60))
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        item = queue.next_task(store, me, kind="safety").item_id
    with psycopg.connect(room.urls["Anna"], autocommit=True) as conn:
        for choice, safe_1, safe_2 in ((1, False, True), (2, True, False), (1, None, None)):
            with pytest.raises(psycopg.errors.CheckViolation):
                insert(conn, "odd", item, me, choice=choice, safe_1=safe_1, safe_2=safe_2)
        insert(conn, "good", item, me, choice=2, safe_1=False, safe_2=False)


def test_a_login_cannot_pose_as_another(room):
    with room.open("Anna") as store:
        with pytest.raises(LabError, match="this URL is Anna's"):
            store.annotator("Zoë Müller")
        other = room.admin.annotator("Zoë Müller")
        with pytest.raises(LabError, match="no annotator"):
            queue.next_task(store, other)
        with pytest.raises(StoreError, match="may not do that"):
            queue.progress(store, other)
        with pytest.raises(StoreError, match="may not do that"):
            queue.qualify(store, other)
        assert queue.history(store, other) == []
        with pytest.raises(StoreError, match="may not do that"):
            store.labels()
        with pytest.raises(StoreError, match="may not do that"):
            store.add_guidelines("helpfulness", "mine")


def test_the_teachers_login_reads_everything_and_changes_no_label(room):
    with room.open("Anna") as store:
        answer(store, store.annotator("Anna"), 2)
    with room.open(TEACHER) as store:
        assert store.login() is None
        assert store.labels() == room.admin.labels() and store.labels()[0]["models"]
        assert add_pairs(store, pairs(2, start=50)) == 2
        store.add_guidelines("helpfulness", "newer")
        with open_store(room.file.with_name("other.db")) as other:
            add_pairs(other, pairs(3))
            answer(other, other.annotator("At Home"), 3)
        assert merge(store, [room.file.with_name("other.db")]).labels == 3
        for statement in ("UPDATE labels SET grade = 'slightly'", "DELETE FROM labels", "DELETE FROM items"):
            with pytest.raises(StoreError, match="may not do that"), store.begin() as conn:
                conn.exec_driver_sql(statement)
        with pytest.raises(StoreError, match="administrator's URL"):
            create_class(room.urls[TEACHER], room.roster, room.file.with_name("other.csv"))
    assert not room.file.with_name("other.csv").exists()


def test_a_student_of_one_class_is_nobody_in_another(room, postgres, tmp_path):
    (tmp_path / "b").mkdir()
    other = Class(postgres, tmp_path / "b")
    url = parse_url(room.urls["Anna"]).set(database=parse_url(other.admin_url).database)
    with pytest.raises(StoreError, match="may not do that"):
        open_store(url.render_as_string(hide_password=False))
    with (
        psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False)) as conn,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        conn.execute("SELECT count(*) FROM labels")
    other.admin.close()


def test_an_outdated_database_is_not_upgraded_by_a_student(room):
    with room.admin.begin() as conn:
        conn.exec_driver_sql("UPDATE llama2lab_version SET version_num = '0001'")
    with pytest.raises(StoreError, match="not set up for this version"):
        room.open("Anna")


def test_when_the_file_cannot_be_written_no_login_is_made(postgres, tmp_path):
    url = postgres.create(f"class{next(numbers)}")
    roster = tmp_path / "roster.txt"
    roster.write_text("Anna\n")
    for bad in (tmp_path / "no" / "urls.csv", roster):
        with pytest.raises(LabError, match=r"cannot be written|no file of a class's URLs"):
            create_class(url, roster, bad)
    assert roster.read_text() == "Anna\n"
    with open_store(url) as store, store.begin() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM members").scalar() == 0
    assert create_class(url, roster, tmp_path / "urls.csv").created == ["Anna"]


def test_when_the_server_fails_the_file_is_as_before(room, monkeypatch):
    before = room.file.read_bytes()
    room.roster.write_text("Late Lea\n")
    wrote = []
    commit = DefaultDialect.do_commit

    def fail(dialect, connection):
        if b"Late Lea" not in room.file.read_bytes():
            return commit(dialect, connection)
        wrote.append(connection)
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(DefaultDialect, "do_commit", fail)
    with pytest.raises(StoreError, match="does not answer"):
        create_class(room.admin_url, room.roster, room.file)
    assert wrote and room.file.read_bytes() == before
    monkeypatch.undo()
    assert create_class(room.admin_url, room.roster, room.file).created == ["Late Lea"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no name"),
        ("\n# only a comment\n", "no name"),
        ("Anna\nB\x07ob\n", "line 2: .*U.0007"),
        ("Anna\n\nanna\n", "line 3: 'anna' is in line 1 already"),
        ("=cmd()\n", "line 1: .*begins with"),
        ("id,name\n1,Anna\n2,\n", "line 3: .*needs a name"),
        ("id,name\n1,Anna\n2\n", "line 3: .*needs a name"),
        ('name\n"Anna\nBert', "is no CSV"),
        ("x" * 300, "line 1: .*longer than"),
        ("evil\u202ename\n", "line 1: .*U.202E"),
        ("name;email\nAnna;a@b\n", "divided by semicolons"),
        ("Anna\ta@b\nBert\tc@d\n", "divided by tabs"),
        ("Student,Mail\nAnna,a@b\n", "divided by commas"),
        ('"Muster, Anna"\n"Bert B"\n', "quotes around each line"),
    ],
)
def test_broken_rosters_are_named_by_line(tmp_path, text, words):
    file = tmp_path / "roster.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=words):
        read_roster(file)
    with pytest.raises(LabError):
        create_class("postgresql://nobody@127.0.0.1:1/none", file, tmp_path / "urls.csv")
    assert not (tmp_path / "urls.csv").exists()


def test_rosters_are_understood(tmp_path):
    file = tmp_path / "roster.csv"
    file.write_bytes('\ufeffEmail;x,Name\na@b,"Muster, Anna"\n,\nc@d,  Bert   B \n'.encode())
    assert read_roster(file) == ["Muster, Anna", "Bert B"]
    file.write_text("# class 3b\nMuster, Anna\n\n  Bert   B \n")
    assert read_roster(file) == ["Muster, Anna", "Bert B"]
    file.write_bytes(b"Anna\n\xff\n")
    with pytest.raises(LabError, match="line 2 is not UTF-8"):
        read_roster(file)
    with pytest.raises(LabError, match="cannot be read"):
        read_roster(tmp_path / "none.csv")
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(LabError, match="is a pipe or a device"):
            read_roster(endless)
    with pytest.raises(LabError, match="needs a PostgreSQL server"):
        create_class(str(tmp_path / "labels.db"), file)
    assert not os.path.exists(tmp_path / "labels.db")
