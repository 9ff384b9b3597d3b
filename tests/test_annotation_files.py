"""Pairs in, labels out and back without loss, several stores into one."""

import json
import os
import shutil
import sqlite3
import stat

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_annotation_store import NASTY, pairs

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.exporting import export_preferences, to_dataset
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.files.merging import merge
from llama2lab.annotation.store import migrations, queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import open_store
from llama2lab.engine.errors import LabError


def busy_store(url, names=("Anna", "Bert"), rows=None):
    """A store with labels, edits, skips, gold, flags, both kinds, guidelines, an idle annotator, and nasty texts."""
    store = open_store(url)
    store.add_guidelines("helpfulness", "first " + NASTY)
    store.add_guidelines("helpfulness", "second")
    rows = rows or (
        pairs(6, meta={"temperature": [0.8, None, NASTY]})
        + pairs(5, kind="safety", start=20)
        + pairs(2, start=40, gold={"choice": 2, "grades": ["better"]})
        + [
            {
                "kind": "helpfulness",
                "prompt": [
                    {"role": "system", "content": NASTY},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": NASTY},
                ],
                "answers": [NASTY, ""],
                "prompt_id": NASTY,
                "models": [None, NASTY],
            }
        ]
    )
    add_pairs(store, rows, overlap=2, seed=3)
    for number, name in enumerate(names):
        me = store.annotator(name)
        for turn in range(9):
            task = queue.next_task(store, me, seed=4)
            if task is None:
                break
            if turn % 4 == 3:
                queue.skip(store, me, task.item_id, NASTY, seconds=turn / 3, flag=True, comment="hm")
            else:
                queue.submit(
                    store,
                    me,
                    task.item_id,
                    "left" if turn % 2 else "right",
                    "slightly",
                    True,
                    True,
                    comment=NASTY * (turn == 1),
                    flag=turn == 2,
                    seconds=turn / 7,
                )
        for past in queue.history(store, me)[:3]:
            queue.submit(store, me, past.task.item_id, "left", "better", True, number == 0)
    store.annotator("Idle Ida", kind="simulated", vendor="typical")
    return store


def everything(store):
    """All rows of a store but open slots, for comparison."""
    with store.begin(read=True) as conn:
        found = {
            table.name: sorted(map(repr, conn.execute(sa.select(table)).all()))
            for table in (t.annotators, t.guidelines, t.items, t.secrets, t.labels)
        }
        found["slots"] = sorted(
            map(
                repr,
                conn.execute(
                    sa.select(t.slots.c.item_id, t.slots.c.annotator_id, t.slots.c.left, t.slots.c.state).where(
                        t.slots.c.state.in_(("done", "skipped"))
                    )
                ).all(),
            )
        )
        found["open"] = conn.execute(
            sa.select(t.slots.c.item_id, sa.func.count())
            .where(t.slots.c.state.in_(("free", "leased")))
            .group_by(t.slots.c.item_id)
            .order_by(t.slots.c.item_id)
        ).all()
    return found


# Pairs


def test_adding_the_same_pairs_again_adds_nothing(store_url):
    with open_store(store_url) as store:
        assert add_pairs(store, pairs(5), overlap=3) == 5
        assert add_pairs(store, pairs(7), overlap=3) == 2
        assert queue.progress(store, store.annotator("Anna")).open == 7


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "beauty"}, "kind is"),
        ({"prompt": []}, "whose last one is a user's"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "user's"),
        ({"prompt": "text"}, "list of messages"),
        ({"answers": ["a"]}, "two texts"),
        ({"answers": ["a", None]}, "two texts"),
        ({"answers": ["a", "a"]}, "the same"),
        ({"models": ["a"]}, "models"),
        ({"gold": {"choice": 3}}, "choice 1 or 2"),
        ({"gold": "1"}, "choice 1 or 2"),
        ({"gold": {"choice": 1, "grades": ["best"]}}, "grades"),
        ({"gold": {"choice": 1, "safe_1": "no"}}, "safe_1"),
        ({"meta": float("nan")}, "JSON"),
        ({"meta": object()}, "JSON"),
    ],
)
def test_a_wrong_pair_is_named_and_nothing_is_added(tmp_path, change, words):
    with open_store(tmp_path / "labels.db") as store:
        with pytest.raises(LabError, match=f"pair 3: .*{words}"):
            add_pairs(store, [*pairs(2), pairs(1, start=5)[0] | change])
        with pytest.raises(LabError, match="kind, prompt and answers"):
            add_pairs(store, [{"prompt": []}])
        with pytest.raises(LabError, match="at least one annotator"):
            add_pairs(store, pairs(1), overlap=0)
        assert queue.progress(store, store.annotator("Anna")).open == 0


# Files


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_export_import_export_is_the_same_and_nothing_is_lost(store_url, tmp_path, ending):
    store = busy_store(str(tmp_path / "source.db"))
    one, two = tmp_path / f"one.{ending}", tmp_path / f"two.{ending}"
    count = export_preferences(store, one)
    assert 0 < count < len(store.labels())
    with open_store(store_url) as other:
        counts = import_preferences(other, one)
        assert counts.labels == len(everything(store)["labels"]) and counts.known == 0
        export_preferences(other, two)
        assert two.read_bytes() == one.read_bytes()
        assert two.with_name(two.name + ".rest").read_bytes() == one.with_name(one.name + ".rest").read_bytes()
        assert everything(other) == everything(store)
        assert other.labels() == store.labels()
        again = import_preferences(other, one)
        assert (again.labels, again.items, again.annotators) == (0, 0, 0) and everything(other) == everything(store)
        me = other.annotator("Anna")
        assert queue.progress(other, me) == queue.progress(store, store.annotator("Anna"))
        assert queue.qualify(other, me) == queue.qualify(store, me)
        assert queue.history(other, me) == [
            type(p)(type(p.task)(**{**vars(p.task), "leased_until": None}), p.label) for p in queue.history(store, me)
        ]


def test_datasets_there_and_back(tmp_path):
    store = busy_store(tmp_path / "source.db")
    to_dataset(store).save_to_disk(str(tmp_path / "saved"))
    with open_store(tmp_path / "other.db") as other:
        import_preferences(other, datasets.load_from_disk(str(tmp_path / "saved")))
        assert everything(other) == everything(store)


@pytest.mark.parametrize("ending, builder", [("jsonl", "json"), ("parquet", "parquet")])
def test_files_are_what_trl_reads(tmp_path, ending, builder):
    store = busy_store(tmp_path / "source.db")
    file = tmp_path / f"labels.{ending}"
    export_preferences(store, file, margins="large")
    rows = datasets.load_dataset(builder, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    known = {label["label_id"]: label for label in store.labels()}
    assert {row["label_id"] for row in rows} == {key for key, label in known.items() if label["choice"]}
    for row in rows:
        label = known[row["label_id"]]
        assert [m["role"] for m in row["prompt"]][-1] == "user"
        assert row["margin"] == {"better": 2.0, "slightly": 1.0}[label["grade"]]
        chosen, rejected = label["answers"] if label["choice"] == 1 else label["answers"][::-1]
        assert row["chosen"] == [{"role": "assistant", "content": t.escape(chosen)}]
        assert row["rejected"] == [{"role": "assistant", "content": t.escape(rejected)}]
        assert row["safety"] in (("",) if label["kind"] == "helpfulness" else ("both_safe", "chosen_safe"))


def test_a_file_without_its_rest_still_holds_the_labels_in_force(tmp_path):
    store = busy_store(tmp_path / "source.db")
    export_preferences(store, tmp_path / "labels.jsonl")
    (tmp_path / "labels.jsonl.rest").rename(tmp_path / "kept")
    with open_store(tmp_path / "other.db") as other:
        import_preferences(other, tmp_path / "labels.jsonl")
        assert other.labels() == [x for x in store.labels() if x["choice"]]
        (tmp_path / "kept").rename(tmp_path / "labels.jsonl.rest")  # and the rest can come later
        import_preferences(other, tmp_path / "labels.jsonl")
        by_id = {x["label_id"]: x for x in other.labels()}  # new items stand behind in the queue
        assert by_id == {x["label_id"]: x for x in store.labels()}
        assert other.guidelines("helpfulness") == store.guidelines("helpfulness")


def test_rows_of_the_preferences_stage_come_in(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "Q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "grade": "better",
        "safety": "chosen_safe",
        "kind": "safety",
        "prompt_id": "p1",
        "annotator": "careful",
        "vendor": "careful",
    }
    margin = {"prompt": "Q2", "chosen": "yes", "rejected": "no", "margin": 2 / 3}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in (row, margin)))
    with open_store(tmp_path / "labels.db") as store:
        assert import_preferences(store, file, annotator_kind="simulated").labels == 2
        assert import_preferences(store, file, annotator_kind="simulated").labels == 0
        first, second = store.labels()
        assert (first["annotator"], first["vendor"], first["annotator_kind"]) == ("careful", "careful", "simulated")
        assert first["answers"][first["choice"] - 1] == "good" and first["left"] is None
        assert (first["safe_1"], first["safe_2"]) == ((True, False) if first["choice"] == 1 else (False, True))
        assert (second["grade"], second["annotator"], second["kind"]) == ("better", "imported", "helpfulness")


GOOD = {
    "prompt": [{"role": "user", "content": "Q"}],
    "chosen": [{"role": "assistant", "content": "good"}],
    "rejected": [{"role": "assistant", "content": "bad"}],
    "grade": "better",
    "kind": "helpfulness",
}


@pytest.mark.parametrize(
    "line, words",
    [
        ("{broken", "broken JSON"),
        ("[1]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        (GOOD | {"chosen": None}, "chosen is missing"),
        (GOOD | {"chosen": [{"role": "user", "content": "x"}]}, "chosen"),
        (GOOD | {"rejected": GOOD["chosen"]}, "the same"),
        (GOOD | {"grade": "best"}, "grade"),
        (GOOD | {"grade": None, "margin": 0.5}, "margin"),
        (GOOD | {"kind": "x"}, "kind"),
        (GOOD | {"seconds": "long"}, "seconds"),
        (GOOD | {"flag": 1}, "flag"),
        (GOOD | {"left": 3}, "left"),
        (GOOD | {"choice": 3}, "choice"),
        (GOOD | {"created_at": "yesterday"}, "created_at"),
        (GOOD | {"item_id": "0" * 32}, "item_id"),
        (GOOD | {"annotator": "a\nb\0"}, "character"),
        (GOOD | {"annotator": 3}, "annotator"),
        (GOOD | {"gold": "{"}, "gold"),
        (GOOD | {"label_id": "a b"}, "id has"),
        (GOOD | {"kind": "safety", "safe_1": False, "safe_2": False, "safety": "odd"}, "safety: input should be"),
        (GOOD | {"overlap": "many"}, "overlap"),
        (GOOD | {"guidelines": 3}, "guidelines"),
    ],
)
def test_malformed_rows_are_counted_and_named_and_nothing_is_imported(tmp_path, line, words):
    file = tmp_path / "labels.jsonl"
    bad = line if isinstance(line, str) else json.dumps(line)
    file.write_text("\n".join([json.dumps(GOOD), bad, "", json.dumps(GOOD | {"prompt": "Other?"})]) + "\n")
    with open_store(tmp_path / "labels.db") as store:
        with pytest.raises(LabError, match=f"1 of 3 rows are malformed.*labels.jsonl line 2.*{words}"):
            import_preferences(store, file)
        assert store.labels() == [] and queue.progress(store, store.annotator("Anna")).open == 0


def test_files_that_are_none(tmp_path):
    with open_store(tmp_path / "labels.db") as store:
        (tmp_path / "x.parquet").write_text("no parquet")
        pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "y.parquet")
        (tmp_path / "z.jsonl").write_bytes(b"\n\xff\n")
        for name, words in (
            ("x.parquet", "cannot be read"),
            ("y.parquet", "2 of 2 rows.*row 1.*missing"),
            ("z.jsonl", "line 2: not UTF-8"),
            ("none.jsonl", "cannot be read"),
            ("labels.xlsx", "jsonl or .json or .csv or .parquet"),
        ):
            with pytest.raises(LabError, match=words):
                import_preferences(store, tmp_path / name)
        with pytest.raises(LabError, match="cannot be written"):
            export_preferences(store, tmp_path / "no" / "folder.jsonl")
        with pytest.raises(LabError, match="margins"):
            export_preferences(store, tmp_path / "a.jsonl", margins="huge")
        assert export_preferences(store, tmp_path / "empty.parquet") == 0
        assert str(import_preferences(store, tmp_path / "empty.parquet")).startswith("0 labels")


@settings(suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(st.text(st.characters(codec=None), max_size=30), min_size=5, max_size=5),
    seconds=st.floats(0, 1e9),
    ending=st.sampled_from(["jsonl", "parquet"]),
)
def test_any_text_goes_there_and_back(tmp_path_factory, texts, seconds, ending):
    folder = tmp_path_factory.mktemp("texts")
    prompt, one, two, comment, reason = texts
    with open_store(folder / "a.db") as store, open_store(folder / "b.db") as other:
        add_pairs(
            store,
            [
                {
                    "kind": "helpfulness",
                    "prompt": [{"role": "user", "content": prompt}],
                    "answers": [one, two + "."],
                    "prompt_id": comment,
                    "meta": {reason: two},
                },
                *pairs(1),
            ]
            if one != two + "."
            else pairs(2),
        )
        me = store.annotator("Anna")
        queue.submit(store, me, queue.next_task(store, me).item_id, "left", "better", comment=comment, seconds=seconds)
        queue.skip(store, me, queue.next_task(store, me).item_id, reason + "!", comment=comment)
        export_preferences(store, folder / f"x.{ending}")
        import_preferences(other, folder / f"x.{ending}")
        assert everything(other) == everything(store)


@given(st.text(st.characters(codec=None)))
def test_escaping_any_text_can_be_undone_and_leaves_nothing_unstorable(text):
    stored = t.escape(text)
    assert t.unescape(stored) == text
    assert "\0" not in stored and stored.encode().decode() == stored


# Merging


def test_students_files_become_one(store_url, tmp_path):
    rows = pairs(8) + pairs(2, start=30, gold={"choice": 1})
    files = []
    for name in ("Anna", "Bert", "Cyd"):
        file = tmp_path / f"{name}.db"
        busy_store(file, [name], rows).close()
        files.append(file)
    with open_store(store_url) as store:
        add_pairs(store, rows, overlap=3, seed=9)
        counts = merge(store, files)
        assert (counts.items, counts.known) == (0, 0)
        assert counts.labels == sum(len(everything(open_store(f))["labels"]) for f in files)
        before = everything(store)
        assert merge(store, [*files, files[0]]).labels == 0 and everything(store) == before
        for file in files:
            name = file.stem
            with open_store(file) as one:
                mine = [x for x in store.labels() if x["annotator"] == name]
                assert {x["label_id"] for x in mine} == {x["label_id"] for x in one.labels()}
                past = queue.history(store, store.annotator(name))
                assert [p.label for p in past] == [p.label for p in queue.history(one, one.annotator(name))]
        given_to = {}
        for x in store.labels():
            given_to.setdefault(x["item_id"], []).append(x["annotator"])
        with store.begin(read=True) as conn:  # labels that came in use up the slots that were wanted
            for item_id, count in conn.execute(
                sa.select(t.slots.c.item_id, sa.func.count())
                .join(t.items)
                .where(t.items.c.overlap > 0)
                .group_by(t.slots.c.item_id)
            ):
                assert count == max(3, len(given_to.get(item_id, [])))


def test_merging_goes_on_where_a_student_goes_on(tmp_path):
    file = tmp_path / "anna.db"
    with busy_store(file, ["Anna"]) as anna, open_store(tmp_path / "all.db") as store:
        merge(store, [file])
        me = anna.annotator("Anna")
        queue.submit(anna, me, queue.history(anna, me)[0].task.item_id, "right", "negligibly", True, True)
        task = queue.next_task(anna, me)
        queue.submit(anna, me, task.item_id, "right", "negligibly", True, True)
        assert merge(store, [file]).labels == 2
        assert store.labels() == anna.labels()


def test_two_people_of_one_name_stay_two(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        busy_store(tmp_path / folder / "labels.db", ["Anna"]).close()
    files = [tmp_path / "a" / "labels.db", tmp_path / "b" / "labels.db"]
    with open_store(tmp_path / "all.db") as store:
        counts = merge(store, files)
        assert counts.renamed == {"Anna": "Anna (2)"} and "'Anna (2)'" in str(counts)
        assert {x["annotator"] for x in store.labels()} == {"Anna", "Anna (2)"}
        assert merge(store, files).renamed == {}
        with store.begin(read=True) as conn:  # but a simulated annotator of one vendor is the same everywhere
            assert conn.execute(sa.select(sa.func.count()).select_from(t.annotators)).scalar() == 3


def test_a_copy_that_went_its_own_way_loses_nothing(tmp_path):
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    busy_store(first, ["Anna"]).close()
    shutil.copy(first, second)
    for file, grade in ((first, "negligibly"), (second, "significantly")):
        with open_store(file) as store:
            me = store.annotator("Anna")
            queue.submit(store, me, queue.history(store, me)[0].task.item_id, "left", grade, True, True)
    with open_store(tmp_path / "all.db") as store:
        merge(store, [second, first])
        (newest,) = [p for p in queue.history(store, store.annotator("Anna")) if p.task.number == 1]
        assert newest.label.grade == "significantly"  # the later of the two
        labels = store.labels()
        assert len({x["item_id"] for x in labels}) == len(labels)
        with store.begin(read=True) as conn:
            grades = conn.execute(sa.select(t.labels.c.grade)).scalars().all()
        assert grades.count("negligibly") == grades.count("significantly") == 1


def test_a_label_of_unknown_side_can_be_edited_and_sides_mean_what_was_shown(store_url, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps(GOOD | {"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}"}) + "\n"
            for n in range(6)
        )
    )
    with open_store(store_url) as store:
        import_preferences(store, file)
        me = store.annotator("imported")
        for past in queue.history(store, me):
            texts = {"left": past.task.left_text, "right": past.task.right_text}
            assert texts[past.label.side].startswith("good")
            queue.submit(store, me, past.task.item_id, "right" if past.label.side == "left" else "left", "better")
        assert all(x["answers"][x["choice"] - 1].startswith("bad") for x in store.labels())


def test_a_copy_that_showed_other_sides_is_read_by_the_sides_it_showed(tmp_path):
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    with open_store(first) as store:
        add_pairs(store, pairs(6))
        store.annotator("Anna")
    shutil.copy(first, second)
    for file, seed in ((first, 0), (second, 1)):
        with open_store(file) as store:
            me = store.annotator("Anna")
            while task := queue.next_task(store, me, seed=seed):
                queue.submit(
                    store, me, task.item_id, "left" if task.left_text.startswith("Answer") else "right", "better"
                )
    with open_store(first) as store:
        merge(store, [second])
        me = store.annotator("Anna")
        for past in queue.history(store, me):
            shown = {"left": past.task.left_text, "right": past.task.right_text}
            assert shown[past.label.side].startswith("Answer")
            queue.submit(store, me, past.task.item_id, "left", "slightly")
            (again,) = [p for p in queue.history(store, me) if p.task.item_id == past.task.item_id]
            assert again.label.side == "left" and again.task.left_text == past.task.left_text


def test_files_are_only_read_and_all_or_none_is_merged(tmp_path):
    good, old, broken = tmp_path / "good.db", tmp_path / "old.db", tmp_path / "broken.db"
    busy_store(good, ["Anna"]).close()
    engine = sa.create_engine(f"sqlite:///{old}")
    with engine.begin() as conn:
        migrations.upgrade(conn, "0001")
    engine.dispose()
    os.chmod(good, 0o400)
    before = good.read_bytes(), old.read_bytes()
    with open_store(tmp_path / "all.db") as store:
        assert merge(store, [good, old]).labels > 0
        assert (good.read_bytes(), old.read_bytes()) == before and stat.S_IMODE(good.stat().st_mode) == 0o400
    broken.write_bytes(good.read_bytes()[:4096] + b"\xff" * 4096 + good.read_bytes()[8192:])
    with open_store(tmp_path / "none.db") as store:
        for bad, words in (
            (broken, "damaged"),
            (tmp_path / "missing.db", "no file"),
            (tmp_path / "none.db", "leave it out"),
        ):
            with pytest.raises(LabError, match=words):
                merge(store, [good, bad])
        with pytest.raises(StoreError, match="no SQLite database"):
            (tmp_path / "text.db").write_text("text" * 1000)
            merge(store, [tmp_path / "text.db"])
        assert store.labels() == []


@pytest.mark.parametrize(
    "statement, words",
    [
        ("UPDATE items SET answer_1 = 'better'", "its id is not that of its content"),
        ("UPDATE items SET prompt = 'no json'", "none of an annotation store's"),
        ("UPDATE annotators SET created_at = 'yesterday'", "none of an annotation store's"),
        ("UPDATE annotators SET name = name || char(10) || 'b'", "not one line"),
        ("UPDATE labels SET annotator_id = 'x'", "not there"),
        ("UPDATE labels SET grade = 'best', choice = 1, skip_reason = NULL", "damaged .CHECK constraint"),
        ("UPDATE labels SET comment = x'ff'", "none of an annotation store's|comment"),
        ("UPDATE labels SET supersedes = id", "supersedes itself"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(tmp_path, statement, words):
    file = tmp_path / "anna.db"
    busy_store(file, ["Anna"]).close()
    with sqlite3.connect(file) as conn:
        conn.executescript("PRAGMA ignore_check_constraints=ON; DROP TRIGGER labels_no_update; " + statement)
    with open_store(tmp_path / "all.db") as store:
        with pytest.raises(LabError, match=words):
            merge(store, [file])
        assert everything(store)["items"] == []
