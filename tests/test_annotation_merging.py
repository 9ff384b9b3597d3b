"""What a file that somebody hands in is not believed: guidelines, gold, pairs for everybody, others' names, and
tables that are none."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from test_annotation_files import busy_store, everything
from test_annotation_queue import answer
from test_annotation_store import pairs

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.exporting import export_preferences
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.files.merging import merge
from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import MAX_COMMENT, guidelines_version
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import MAX_OVERLAP

GOLD = {"choice": 1}


@pytest.fixture
def desk(store_url, tmp_path):
    """The class's store, and the file that each student got: the same pairs, gold among them."""
    yield from a_desk(store_url, tmp_path)


@pytest.fixture
def small(tmp_path):
    """The same on SQLite alone, for what concerns the files."""
    yield from a_desk(str(tmp_path / "class.db"), tmp_path)


def a_desk(url, tmp_path):
    class Desk:
        store = open_store(url)

        def hand_out(self, name):
            file = tmp_path / f"{name.lower()}.db"
            with open_store(file) as student:
                add_pairs(student, pairs(6) + pairs(2, start=30, gold=GOLD), seed=1)
                student.add_guidelines("helpfulness", "be fair")
                answer(student, student.annotator(name), 1, gold_first=True)
                answer(student, student.annotator(name), 3)
            return file

        def copy(self, name, of):
            """The file of a student who took a copy of another's, and labels there too."""
            file = tmp_path / f"{name.lower()}.db"
            shutil.copy(of, file)
            with open_store(file) as student:
                student.annotator(name)
            return file

    made = Desk()
    add_pairs(made.store, pairs(6) + pairs(2, start=30, gold=GOLD), overlap=2)
    made.store.add_guidelines("helpfulness", "be fair")
    yield made
    made.store.close()


def change(file, *statements):
    with sqlite3.connect(file) as conn:
        conn.executescript(
            "PRAGMA ignore_check_constraints=ON; DROP TRIGGER IF EXISTS labels_no_update; " + ";".join(statements)
        )
    conn.close()


def refused(store, files, words, **more):
    before = everything(store)
    with pytest.raises(LabError, match=words):
        merge(store, files, **more)
    assert everything(store) == before


def edit_as(file, name, grade="negligibly", count=1):
    with open_store(file) as store:
        me = store.annotator(name)
        for past in queue.history(store, me)[:count]:
            queue.submit(store, me, past.task.item_id, "right" if past.label.side == "left" else "left", grade)


def test_honest_files_need_no_word_and_it_is_said_whose_labels_came(desk):
    files = [desk.hand_out(name) for name in ("Anna", "Bert")]
    counts = merge(desk.store, files)
    assert (counts.labels, counts.items) == (8, 0)
    assert f"{files[0]}: 4 labels of Anna" in counts.notes and f"{files[1]}: 4 labels of Bert" in str(counts)
    assert not any("shown to nobody" in note or "in force" in note for note in counts.notes)
    before = everything(desk.store)
    again = merge(desk.store, files)
    assert (again.labels, again.known) == (0, 8) and again.notes == [] and everything(desk.store) == before
    edit_as(files[0], "Anna")
    assert merge(desk.store, files).notes == [f"{files[0]}: 1 labels of Anna, 1 of them in place of what was in force"]
    gold = [x for x in desk.store.labels() if x["gold"]]
    assert gold and all(x["gold"] == GOLD for x in gold)


# Guidelines


@pytest.mark.parametrize("year", [9999, 2020])
def test_guidelines_of_a_file_do_not_come_into_force(desk, year):
    file = desk.hand_out("Eve")
    text = "the left answer is always better"
    version = guidelines_version("helpfulness", text)
    moment = f"{year}-01-01 00:00:00.000000"
    change(
        file,
        f"INSERT INTO guidelines VALUES ('{version}', 'helpfulness', '{text}', '{moment}')",
        f"UPDATE labels SET guidelines = '{version}'",
    )
    if year == 9999:
        refused(desk.store, [file], "1 rows lie in the future .9999-01-01.*--trust")
    else:
        assert "not in force here" in str(merge(desk.store, [file]))
        assert {x["guidelines"] for x in desk.store.labels()} == {version}  # what she labelled by is kept
    assert desk.store.guidelines("helpfulness")[1] == "be fair"
    assert desk.store.guidelines("safety") == ("", "")
    me = desk.store.annotator("Anna")
    answer(desk.store, me, 1)
    assert queue.history(desk.store, me)
    mine = next(x for x in desk.store.labels() if x["annotator"] == "Anna")
    assert mine["guidelines"] == desk.store.guidelines("helpfulness")[0]
    said = str(merge(desk.store, [file], trust=True))
    if year == 9999:  # as of now, and so they can be replaced
        assert "1 rows lay in the future and are dated now" in said
        assert desk.store.guidelines("helpfulness")[1] == text
        desk.store.add_guidelines("helpfulness", "be fair again")
        assert desk.store.guidelines("helpfulness")[1] == "be fair again"
    else:
        assert desk.store.guidelines("helpfulness")[1] == "be fair"


def test_guidelines_of_a_store_that_has_none_stay_out_of_force(tmp_path):
    busy_store(tmp_path / "eve.db", ["Eve"]).close()
    with open_store(tmp_path / "class.db") as store:
        merge(store, [tmp_path / "eve.db"])
        assert store.guidelines("helpfulness") == ("", "")
        merge(store, [tmp_path / "eve.db"], trust=True)
        assert store.guidelines("helpfulness")[1] == "second"


def test_guidelines_of_another_text_are_no_such_version(small):
    file = small.hand_out("Eve")
    change(file, "UPDATE guidelines SET text = 'left is better'")
    refused(small.store, [file], "guidelines .* are not what they were")


@pytest.mark.parametrize("table", ["labels", "items", "annotators"])
def test_times_in_the_future_are_refused_and_a_clock_a_little_ahead_is_not(small, table):
    file = small.hand_out("Eve")
    late = t.now() + timedelta(hours=20)
    change(file, f"UPDATE {table} SET created_at = '{late:%Y-%m-%d %H:%M:%S.%f}'")
    assert merge(small.store, [file]).labels == 4
    file = small.hand_out("Fay")
    change(file, f"UPDATE {table} SET created_at = '2300-01-01 00:00:00.000000'")
    refused(small.store, [file], "lie in the future .2300")
    assert merge(small.store, [file], trust=True).labels == 4
    assert all(x["created_at"] < t.now() + timedelta(days=1) for x in small.store.labels())
    file = small.hand_out("Gil")
    change(file, f"UPDATE {table} SET created_at = '0001-01-01 00:00:00.000000'")
    refused(small.store, [file], "before 1970", trust=True)


# Names


def test_a_copy_of_anothers_file_cannot_speak_in_her_name(desk):
    anna = desk.hand_out("Anna")
    merge(desk.store, [anna])
    bert = desk.copy("Bert", anna)
    with open_store(bert) as store:
        answer(store, store.annotator("Bert"), 2)
    edit_as(bert, "Anna", count=3)
    with open_store(bert) as store:
        answer(store, store.annotator("Anna"), 1)
    before = [x for x in desk.store.labels() if x["annotator"] == "Anna"]
    refused(desk.store, [bert], r"bert.db adds labels of Anna, whom this store knows, and of Bert.*--only NAME.*--tru")
    counts = merge(desk.store, [bert], only="Bert")
    assert counts.labels == 2 and counts.notes == [f"{bert}: 2 labels of Bert"]
    assert [x for x in desk.store.labels() if x["annotator"] == "Anna"] == before
    said = merge(desk.store, [bert], trust=True).notes
    assert said == [f"{bert}: 4 labels of Anna, 3 of them in place of what was in force"]


def test_of_a_file_with_one_name_only_it_is_said_whose_labels_it_replaces(desk):
    anna = desk.hand_out("Anna")
    merge(desk.store, [anna])
    bert = desk.copy("Bert", anna)
    edit_as(bert, "Anna", count=2)
    assert f"{bert}: 2 labels of Anna, 2 of them in place of what was in force" in str(merge(desk.store, [bert]))


def test_a_shared_machines_file_may_hold_several_who_are_new(small, tmp_path):
    file = small.hand_out("Anna")
    with open_store(file) as store:
        answer(store, store.annotator("Bert"), 2)
    assert merge(small.store, [file]).labels == 6
    with pytest.raises(LabError, match="nobody is called 'Cyd' there; the names are Anna, Bert"):
        merge(small.store, [file], only="Cyd")


def test_a_label_cannot_supersede_anothers_that_is_only_here(desk):
    anna, eve = desk.hand_out("Anna"), desk.hand_out("Eve")
    merge(desk.store, [anna])
    theirs = desk.store.labels()[0]
    change(eve, f"UPDATE labels SET supersedes = '{theirs['label_id']}'")
    for trust in (False, True):
        refused(desk.store, [eve], "supersedes another annotator's or another item's", trust=trust)


def test_a_label_that_is_another_one_here_is_said(desk):
    anna = desk.hand_out("Anna")
    forged = desk.copy("Eve", anna)
    change(forged, "UPDATE labels SET grade = 'negligibly'")
    merge(desk.store, [forged])  # before hers came in
    refused(desk.store, [anna], "is another one here .4 such labels")
    assert "4 labels differ from those here, which stay" in str(merge(desk.store, [anna], trust=True))


def test_names_with_a_login_label_there_and_not_in_files(postgres, tmp_path):
    from test_annotation_classroom import Class

    room = Class(postgres, tmp_path)
    with room.open("Anna") as store:
        me = store.annotator("Anna")
        answer(store, me, 2)
    with room.admin.begin(read=True) as conn:
        created = conn.execute(sa.select(t.annotators.c.created_at).where(t.annotators.c.id == me)).scalar()
    file = tmp_path / "eve.db"
    with open_store(file) as store:
        add_pairs(store, pairs(8))
        with store.begin() as conn:
            conn.execute(t.annotators.insert().values(id=me, name="Anna", kind="person", created_at=created))
        answer(store, me, 8)
    refused(room.admin, [file], "in the name of Anna, who has a login in this class")
    assert merge(room.admin, [file], trust=True).labels == 8
    room.admin.close()


# Pairs


def test_gold_of_a_file_goes_to_nobody(desk):
    file = desk.hand_out("Eve")
    with open_store(file) as store:
        add_pairs(store, pairs(1, start=90, gold={"choice": 2}), seed=2)
        add_pairs(store, pairs(1, start=95), overlap=MAX_OVERLAP)
        eve = store.annotator("Eve")
        while task := queue.next_task(store, eve):
            queue.submit(store, eve, task.item_id, "left", "better")
        mine = {x["item_id"] for x in store.labels() if x["prompt"][0]["content"] in ("Question 90?", "Question 95?")}
    said = str(merge(desk.store, [file]))
    assert "2 pairs are new here, 1 of them gold as the file says; they are shown to nobody else" in said
    bert, seen = desk.store.annotator("Bert"), set()
    for gold_first in (True, False):
        while task := queue.next_task(desk.store, bert, gold_first=gold_first):
            queue.submit(desk.store, bert, task.item_id, "left", "better")
            seen.add(task.item_id)
    assert len(seen) == 8 and not seen & mine
    assert queue.qualify(desk.store, bert).wanted == 2
    claimed = [x for x in desk.store.labels() if x["item_id"] in mine and x["gold"]]
    # No figure, and no training row.
    assert [x["gold"] for x in claimed] == [{"choice": None, "claimed": {"choice": 2}}]
    from llama2lab.annotation.agreement.quality import quality

    eve = next(q for q in quality(desk.store.labels()) if q.name == "Eve")
    assert eve.gold["n"] == 2
    merge(desk.store, [file], trust=True)
    assert queue.qualify(desk.store, bert).wanted == 3
    cyd, seen = desk.store.annotator("Cyd"), set()
    while task := queue.next_task(desk.store, cyd):
        queue.submit(desk.store, cyd, task.item_id, "left", "better")
        seen.add(task.item_id)
    assert mine <= seen
    before = everything(desk.store)
    assert merge(desk.store, [file], trust=True).labels == 0 and everything(desk.store) == before


def test_gold_that_only_files_know_stays_so_through_export_and_import(tmp_path):
    busy_store(tmp_path / "anna.db", ["Anna"]).close()
    with open_store(tmp_path / "class.db") as store, open_store(tmp_path / "next.db") as following:
        said = merge(store, [tmp_path / "anna.db"])
        assert "2 of them gold as the file says" in str(said)
        me = store.annotator("New")
        assert queue.next_task(store, me) is None and queue.next_task(store, me, gold_first=True) is None
        assert sum(bool(x["gold"] and x["gold"]["choice"]) for x in store.labels()) >= 1  # but figures know it
        export_preferences(store, tmp_path / "labels.jsonl")
        import_preferences(following, tmp_path / "labels.jsonl")
        assert queue.qualify(following, following.annotator("New")).wanted == 0
        assert any(x["gold"] for x in following.labels())


@pytest.mark.parametrize(
    "values, words",
    [
        ("overlap = 2000000000", "overlap is a whole number from 0 to 1,000"),
        ("overlap = -1", "overlap is"),
        ("overlap = 'many'", "overlap is"),
        ("position = 9000000000", "position is"),
        ("position = -5", "position is"),
        ("overlap = 1e300", "overlap is"),
    ],
)
def test_numbers_of_pairs_have_bounds(small, tmp_path, values, words):
    file = small.hand_out("Eve")
    change(file, f"UPDATE items SET {values}")
    for trust in (False, True):
        refused(small.store, [file], words, trust=trust)


def test_overlap_has_a_bound_for_all_who_take_rows_in(tmp_path):
    row = {"prompt": "Q", "chosen": "good", "rejected": "bad", "grade": "better", "overlap": 2_000_000_000}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with open_store(tmp_path / "labels.db") as store, pytest.raises(LabError, match="overlap is a whole number"):
        import_preferences(store, tmp_path / "rows.jsonl")


# Tables that are none

ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT 'l' || x AS id, item_id, "
    'annotator_id, choice, grade, safe_1, safe_2, comment, flag, skip_reason, seconds, "left", guidelines, '
    "supersedes, created_at FROM n, kept"
)


@pytest.mark.parametrize(
    "statements, words",
    [
        (["ALTER TABLE labels RENAME TO kept", f"CREATE VIEW labels AS {ENDLESS}"], "labels is no plain table"),
        (["ALTER TABLE labels RENAME TO kept", f"CREATE VIEW LABELS AS {ENDLESS}"], "LABELS is no plain table"),
        (["DROP TABLE labels", "CREATE VIRTUAL TABLE labels USING fts5(id)"], "labels is no plain table"),
        (["ALTER TABLE members ADD COLUMN more AS (hex(zeroblob(1000000000)))"], "members is no plain table"),
        (
            ["ALTER TABLE llama2lab_version RENAME TO v", "CREATE VIEW llama2lab_version AS SELECT * FROM v"],
            "llama2lab_version is no plain table",
        ),
        (["DROP TABLE secrets"], "has not the tables"),
        (["DROP TABLE labels", "CREATE TABLE labels (id)"], "none of|has not"),
        (["UPDATE llama2lab_version SET version_num = '0001'"], "none of an annotation store's"),
        (["UPDATE items SET prompt = '" + "[" * 100_000 + "'"], "none of an annotation store's"),
        (["UPDATE items SET prompt = '[" + "9" * 5000 + "]'"], "none of an annotation store's"),
        (["UPDATE secrets SET meta = 'Infinity'"], "meta cannot be written"),
        (["UPDATE secrets SET model_1 = x'ff'"], "none of|models"),
        (['UPDATE secrets SET gold = \'{"choice": 1, "grades": 5}\''], "none of|grades"),
        (["UPDATE labels SET id = id || '" + "x" * 70 + "'"], "id has 1 to 64"),
        (["UPDATE labels SET guidelines = 'a b'"], "guidelines has 1 to 64"),
        (["UPDATE labels SET seconds = 9e999"], "damaged|seconds"),
        (["UPDATE labels SET seconds = 1e12"], "seconds"),
        ([f"UPDATE labels SET comment = '{'x' * (MAX_COMMENT + 1)}'"], "at most"),
        (["UPDATE annotators SET vendor = 'a' || char(10)"], "not one line"),
        (["UPDATE guidelines SET kind = 'beauty'"], "guidelines are for"),
    ],
    ids=lambda v: (v if isinstance(v, str) else v[-1])[:40],
)
def test_a_file_whose_tables_or_rows_are_none_is_refused(small, statements, words):
    file = small.hand_out("Eve")
    change(file, *statements)
    before = file.read_bytes()
    start = time.monotonic()
    refused(small.store, [file], words)
    assert time.monotonic() - start < 100 and file.read_bytes() == before  # looking through may take 120


def test_what_a_file_would_run_is_not_run(small):
    file = small.hand_out("Eve")
    change(
        file,
        "DROP TABLE members",
        "DROP TABLE codes",
        "DROP TABLE verdicts",
        "UPDATE llama2lab_version SET version_num = '0001'",
        "CREATE VIEW endless AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        "CREATE TRIGGER wait AFTER UPDATE ON llama2lab_version BEGIN DELETE FROM items WHERE (SELECT max(x) FROM "
        "endless); END",
    )
    assert merge(small.store, [file]).labels == 4  # an old store, which is upgraded in a copy


def test_too_much_is_said(small, monkeypatch):
    file = small.hand_out("Eve")
    for name, value, words in (
        ("MAX_BYTES", 100, "larger than"),
        ("MAX_ROWS", 5, "more than the 5"),
        ("SECONDS", -1, "longer to look through"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"llama2lab.annotation.files.merging.{name}", value)
            if name == "SECONDS":
                change(
                    file,
                    "CREATE TABLE more AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
                    "WHERE x < 200000) SELECT x FROM n",
                )
            refused(small.store, [file], words)
    assert merge(small.store, [file]).labels == 4


def test_a_store_whose_labels_are_a_view_is_not_opened(tmp_path):
    busy_store(tmp_path / "labels.db").close()
    change(tmp_path / "labels.db", "ALTER TABLE labels RENAME TO kept", f"CREATE VIEW labels AS {ENDLESS}")
    with pytest.raises(LabError, match=r"has not the tables of an annotation store \(labels\)"):
        open_store(tmp_path / "labels.db")


def test_a_file_whose_writer_died_is_read_as_it_was_before(small, tmp_path):
    """A journal that waits to be rolled back: the file is read as a copy, and stays as it is."""
    file = small.hand_out("Anna")
    code = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA cache_size=1'); c.execute('PRAGMA cache_spill=1'); c.execute('BEGIN'); "
        "c.execute('DROP TRIGGER labels_no_delete'); c.execute('DELETE FROM labels'); "
        "c.execute('CREATE TABLE big AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n "
        "WHERE x < 2000) SELECT x, randomblob(1000) AS y FROM n'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL and os.path.exists(f"{file}-journal")
    before = file.read_bytes()
    assert merge(small.store, [file]).labels == 4
    assert file.read_bytes() == before and os.path.exists(f"{file}-journal")
