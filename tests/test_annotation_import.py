"""Labels and pairs that other people bring: what they mean is never guessed, and what they are not is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_annotation_store import pairs
from typer.testing import CliRunner

from llama2lab.annotation.files.adding import add_pairs, read_pairs
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.rows import resolve
from llama2lab.annotation.store.store import open_store
from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError

A_OVER_B = {"prompt": "Which?", "chosen": "a", "rejected": "b", "grade": "better"}
B_OVER_A = A_OVER_B | {"chosen": "b", "rejected": "a"}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "labels.db") as opened:
        yield opened


def won(store) -> list[str]:
    return [x["answers"][x["choice"] - 1] for x in store.labels()]


# ---- margins and grades ------------------------------------------------------------------------------------------


def by_margin(*margins: Any) -> list[dict]:
    return [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "margin": m} for n, m in enumerate(margins)]


@pytest.mark.parametrize(
    "margins, table, grades",
    [
        ((3, 2, 1, 0), "large", ("significantly", "better", "slightly", "negligibly")),
        ((1, 0.67, 0.33, 0), "small", ("significantly", "better", "slightly", "negligibly")),
        ((4, 3, 2, 1), "4,3,2,1", ("significantly", "better", "slightly", "negligibly")),
        ((3, 2, 2 / 3), None, ("significantly", "better", "better")),  # each in one table of the report alone
    ],
)
def test_a_margin_means_what_the_stated_table_says(store, tmp_path, margins, table, grades):
    import_preferences(store, lines(tmp_path / "x.jsonl", *by_margin(*margins)), margins=table)
    assert [x["grade"] for x in store.labels()] == list(grades)


@pytest.mark.parametrize(
    "margin, table, says",
    [
        (1, None, "means significantly or slightly; say by which table, with --margins"),
        (0, None, "means significantly or better or slightly or negligibly"),
        (2, "small", "none of that table"),
        (0.5, None, "none of the report's Table 27"),
        (True, "small", "none of"),
        ("1", "small", "none of"),
        (10**400, "small", "none of"),
        ([1], "small", "none of"),
        ({"a": 1}, None, "none of"),
    ],
)
def test_a_margin_that_could_mean_two_grades_or_none_is_refused(store, tmp_path, margin, table, says):
    file = lines(tmp_path / "x.jsonl", *by_margin(2 / 3 if table == "small" else 3, margin))
    with pytest.raises(LabError, match=f"1 of 2 rows are malformed.*x.jsonl line 2: .*{says}"):
        import_preferences(store, file, margins=table)
    assert store.labels() == []


@pytest.mark.parametrize("table", ["none", "medium", "1,2,3", "1,1,2,3", "nan,1,2,3", ""])
def test_a_table_that_is_none_is_refused(store, tmp_path, table):
    with pytest.raises(LabError, match="margins are small or large"):
        import_preferences(store, lines(tmp_path / "x.jsonl", *by_margin(3)), margins=table)


def test_a_stated_table_counts_for_rows_with_ids_of_their_own(store, tmp_path):
    rows = [row | {"label_id": f"r{n}", "annotator": "Ada"} for n, row in enumerate(by_margin(1, 0))]
    import_preferences(store, lines(tmp_path / "x.jsonl", *rows), margins="large")
    assert [x["grade"] for x in store.labels()] == ["slightly", "negligibly"]


def test_a_grade_may_be_written_anyhow_and_a_margin_must_not_contradict_it(store, tmp_path):
    import_preferences(
        store,
        lines(
            tmp_path / "x.jsonl",
            A_OVER_B | {"grade": " Better ", "margin": 7, "kind": "Safety", "safety": "Chosen_Safe"},
        ),
    )
    (label,) = store.labels()
    assert (label["grade"], label["kind"], {label["safe_1"], label["safe_2"]}) == ("better", "safety", {True, False})
    with pytest.raises(LabError, match="the grade is better, and the margin 3 says otherwise"):
        import_preferences(store, lines(tmp_path / "y.jsonl", B_OVER_A | {"margin": 3}), margins="large")


# ---- several rows on one pair ------------------------------------------------------------------------------------


def test_rows_without_an_annotator_are_votes(store_url, tmp_path):
    file = lines(tmp_path / "x.jsonl", A_OVER_B, B_OVER_A, A_OVER_B)
    with open_store(store_url) as store:
        counts = import_preferences(store, file)
        assert (counts.items, counts.labels, counts.votes) == (1, 3, 2) and "2 rows without an annotator" in str(counts)
        assert sorted(won(store)) == ["a", "a", "b"]
        assert sorted(x["annotator"] for x in store.labels()) == ["imported", "imported (2)", "imported (3)"]
        (row,) = resolve(store.labels(), "helpfulness").rows
        assert row["chosen"][0]["content"] == "a"
        again = import_preferences(store, lines(tmp_path / "y.jsonl", B_OVER_A, A_OVER_B, A_OVER_B))
        assert (again.labels, again.known) == (0, 3) and len(store.labels()) == 3
        other = import_preferences(store, lines(tmp_path / "z.jsonl", B_OVER_A))  # another file: it is there already
        assert (other.labels, other.known) == (0, 1)
        import_preferences(store, lines(tmp_path / "z.jsonl", B_OVER_A, B_OVER_A))
        assert resolve(store.labels(), "helpfulness").ties == 1 and len(store.labels()) == 4


def test_a_later_file_without_annotators_overrules_nothing(store, tmp_path):
    import_preferences(store, lines(tmp_path / "x.jsonl", A_OVER_B))
    counts = import_preferences(store, lines(tmp_path / "y.jsonl", B_OVER_A))
    assert counts.labels == counts.votes == 1 and sorted(won(store)) == ["a", "b"]


def test_a_named_annotator_has_one_opinion_or_a_history(store, tmp_path):
    ada = A_OVER_B | {"annotator": "Ada"}
    counts = import_preferences(store, lines(tmp_path / "x.jsonl", ada, ada))
    assert (counts.labels, counts.repeated) == (1, 1) and "1 rows repeat another row" in str(counts)
    for other in (B_OVER_A, A_OVER_B | {"grade": "slightly"}, A_OVER_B | {"safety": "both_safe"}):
        with pytest.raises(LabError, match=r"y.jsonl line 3: 'Ada' judges this pair otherwise than in .* line 1"):
            import_preferences(store, lines(tmp_path / "y.jsonl", ada, A_OVER_B, other | {"annotator": "Ada"}))
    days = [f"2026-01-0{n}T00:00:00+00:00" for n in (3, 1, 2)]
    bob = [
        row | {"annotator": "Bob", "created_at": day}
        for row, day in zip((A_OVER_B, A_OVER_B, B_OVER_A), days, strict=True)
    ]
    assert import_preferences(store, lines(tmp_path / "z.jsonl", *bob)).labels == 3
    assert {x["annotator"]: x["answers"][x["choice"] - 1] for x in store.labels()} == {"Ada": "a", "Bob": "a"}
    assert import_preferences(store, tmp_path / "z.jsonl").labels == 0


def test_ids_without_times_or_names_do_not_hide_a_contradiction(store, tmp_path):
    """A file of others with ids of its own: without a time no label is the newer one, without a name no one's."""
    one, two = A_OVER_B | {"label_id": "r1"}, B_OVER_A | {"label_id": "r2"}
    with pytest.raises(LabError, match="'Ada' judges this pair otherwise than in"):
        import_preferences(store, lines(tmp_path / "x.jsonl", *(row | {"annotator": "Ada"} for row in (one, two))))
    moment = {"created_at": "2026-01-01T00:00:00+00:00"}
    with pytest.raises(LabError, match="labels r1 and r2 are of one annotator, pair and moment"):
        import_preferences(
            store, lines(tmp_path / "x.jsonl", *(row | moment | {"annotator": "Ada"} for row in (one, two)))
        )
    later = {"created_at": "2026-01-02T00:00:00+00:00"}
    assert import_preferences(store, lines(tmp_path / "y.jsonl", one | moment, two | later)).votes == 1
    assert sorted(won(store)) == ["a", "b"]


def test_an_opinion_that_takes_the_place_of_an_earlier_one_is_counted(store, tmp_path):
    import_preferences(store, lines(tmp_path / "x.jsonl", A_OVER_B | {"annotator": "Ada"}))
    counts = import_preferences(store, lines(tmp_path / "y.jsonl", B_OVER_A | {"annotator": "Ada"}))
    assert (counts.labels, counts.replaced) == (1, 1) and "1 labels take the place" in str(counts)
    assert won(store) == ["b"]
    counts = import_preferences(store, tmp_path / "y.jsonl")
    assert (counts.labels, counts.replaced, counts.known) == (0, 0, 1)


# ---- roles and shapes --------------------------------------------------------------------------------------------

USER, ASKED = {"role": "user", "content": "Q"}, [{"role": "user", "content": "Q"}]


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row, says",
    [
        ({"prompt": ASKED * 2}, "turns do not alternate"),
        ({"prompt": [said("x")]}, "turns do not alternate"),
        ({"prompt": [USER, said("x")]}, "does not end with the user"),
        ({"prompt": ""}, "a turn is empty"),
        ({"prompt": [{"role": "user", "content": " "}]}, "a turn is empty"),
        ({"prompt": 5}, "not a list of messages"),
        ({"prompt": True}, "not a list of messages"),
        ({"prompt": [["x"]]}, "a message is not"),
        ({"prompt": [{"role": "human", "content": "Q"}]}, "turns do not alternate"),
        ({"chosen": ""}, "a turn is empty"),
        ({"chosen": 5}, "not a list of messages"),
        ({"chosen": [USER, said("a"), USER]}, "chosen: the last message"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "chosen: the last message"),
        ({"rejected": [{"role": "user", "content": "Other"}, said("b")]}, "rejected begins with another prompt"),
        ({"chosen": "\n\nHuman: Other\n\nAssistant: a"}, "chosen begins with another prompt"),
        ({"prompt": "[{'content': 'Q', 'role': 'user'}]"}, "a list of messages written as a text"),
        ({"chosen": '[ {"role": "assistant"'}, "a list of messages written as a text"),
        ({"chosen": "b"}, "both answers are the same"),
        ({"prompt": None}, "prompt is missing"),
    ],
)
def test_one_function_decides_on_shapes_for_labels_and_for_training(store, tmp_path, row, says):
    from llama2lab.engine.dialogues import Malformed
    from llama2lab.run.realdata import parse_pair

    bad = {"prompt": "Q", "chosen": "a", "rejected": "b", "grade": "better"} | row
    file = lines(tmp_path / "x.jsonl", A_OVER_B, bad)
    with pytest.raises(LabError, match=f"1 of 2 rows.*x.jsonl line 2: .*{says}"):
        import_preferences(store, file)
    with pytest.raises(Malformed):
        parse_pair(bad, {"prompt": "prompt", "grade": "grade"})
    assert store.labels() == []


@pytest.mark.parametrize(
    "prompt, chosen, rejected",
    [
        ("Q", "a", "b"),
        (ASKED, [said("a")], "b"),
        ("Q", [USER, said("a")], [USER, said("b")]),
        (None, [USER, said("a")], [USER, said("b")]),
        ("\n\nHuman: Q\n\nAssistant:", "a", "b"),
        (None, "\n\nHuman: Q\n\nAssistant: a", "\n\nHuman: Q\n\nAssistant: b"),
        (ASKED, "\n\nHuman: Q\n\nAssistant: a", "b"),
    ],
)
def test_pairs_of_every_shape_mean_the_same_to_labels_and_to_training(store, tmp_path, prompt, chosen, rejected):
    from llama2lab.run.realdata import parse_pair

    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "grade": "better"}
    import_preferences(store, lines(tmp_path / "x.jsonl", row))
    (label,) = resolve(store.labels(), "helpfulness").rows
    trained = parse_pair(row, {"prompt": "prompt"} if prompt else {})
    expected = {"prompt": ASKED, "chosen": [said("a")], "rejected": [said("b")], "grade": "better"}
    assert {k: label[k] for k in expected} == {k: trained[k] for k in expected} == expected


# ---- rows that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, says",
    [
        ({"safety": ["x"]}, "safety"),
        ({"models": [1, 2]}, "models"),
        ({"models": "ab"}, "models"),
        ({"grade": 5}, "grade"),
        ({"gold": '{"choice": 1, "grades": 5}'}, "grades"),
        ({"gold": '{"choice": 1, "grades": [["x"]]}'}, "grades"),
        ({"gold": '{"choice": 1, "grades": NaN}'}, "NaN"),
        ({"gold": '{"choice": [1]}'}, "choice 1 or 2"),
        ({"gold": '{"choice": true}'}, "choice 1 or 2"),
        ({"gold": {"choice": 1}}, "gold is a JSON text"),
        ({"meta": "[" * 900 + "]" * 900}, "nested too deeply"),
        ({"meta": "1" * 5000}, "thousands of digits"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "created_at"),
        ({"created_at": 5}, "created_at"),
        ({"created_at": "9999-12-31T23:59:59-14:00"}, "created_at"),
        ({"overlap": 2_000_000_000}, "from 0 to 1,000, not"),
        ({"overlap": -1}, "overlap"),
        ({"overlap": 1.5}, "overlap"),
        ({"position": 10**30}, "position"),
        ({"seconds": 10**400}, "seconds"),
        ({"flag": "no"}, "flag"),
        ({"choice": True}, "choice"),
        ({"left": 1.0}, "left"),
        ({"annotator": ["x"]}, "annotator"),
        ({"vendor": 3}, "vendor"),
        ({"comment": {}}, "comment"),
        ({"prompt_id": [1]}, "prompt_id"),
        ({"annotator_kind": "dog"}, "annotator_kind"),
        ({"annotator_id": [1]}, "id has"),
        ({"annotator_id": 0}, "id has"),
        ({"label_id": 5}, "id has"),
        ({"supersedes": "a b"}, "supersedes"),
        ({"item_id": ["x"]}, "item_id"),
        ({"kind": "safety", "safety": "both_safe", "safe_1": False}, "safe_1 and safe_2 say otherwise"),
        ('{"prompt": "\\ud83d"}', "half a character"),
        ('{"a": 1e999}', "too large"),
        ("[" * 900 + "]" * 900, "deeply"),
        ('{"prompt": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
        ('{"margin": ' + "9" * 5000 + "}", "digits"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a": "' + "\0" + '"}', "NUL"),
    ],
)
def test_what_is_wrong_with_a_row_is_named_with_its_line(store, tmp_path, row, says):
    bad = row if isinstance(row, str) else B_OVER_A | row
    with pytest.raises(LabError, match=f"1 of 3 rows are malformed.*x.jsonl line 2: .*{says}") as e:
        import_preferences(store, lines(tmp_path / "x.jsonl", A_OVER_B, bad, A_OVER_B | {"prompt": "R"}))
    assert "\n" not in str(e.value) and store.labels() == []


@pytest.mark.parametrize(
    "line, says",
    [
        ({"table": "labels", "row": {"id": "x"}}, "item_id"),
        ({"table": ["labels"], "row": {}}, "is no row of"),
        (
            {"table": "guidelines", "row": {"version": 1, "kind": "safety", "text": "", "created_at": 1}},
            "version, kind",
        ),
        (
            {
                "table": "guidelines",
                "row": {"version": "v", "kind": "safety", "text": "", "created_at": "9998-01-01T00:00Z"},
            },
            "would be in force",
        ),
        ({"table": "annotators", "row": {"id": "x", "name": 5, "kind": "person"}}, "is missing"),
        ({"table": "items", "row": {"id": 5, "prompt": 5, "created_at": 1}}, "list of messages"),
        ({"row": 1}, "is no row of"),
        ("\ufeff{", "broken JSON"),
        ({"table": "items", "row": None}, "is no row of"),
    ],
)
def test_a_damaged_rest_is_named(store, tmp_path, line, says):
    lines(tmp_path / "x.jsonl", A_OVER_B)
    with pytest.raises(LabError, match=f"1 of 2 rows are malformed.*x.jsonl.rest line 1.*({says})"):
        import_preferences(store, lines(tmp_path / "x.jsonl.rest", line) and tmp_path / "x.jsonl")


def test_a_label_cannot_supersede_anothers(store_url, tmp_path):
    with open_store(store_url) as store:
        import_preferences(store, lines(tmp_path / "x.jsonl", A_OVER_B | {"annotator": "Ada"}))
        (label,) = store.labels()
        forged = B_OVER_A | {"annotator": "Eve", "label_id": "forged", "supersedes": label["label_id"]}
        with pytest.raises(LabError, match=r"contradicts what is in the store|supersedes another"):
            import_preferences(store, lines(tmp_path / "y.jsonl", forged))
        assert store.labels() == [label]


def test_a_file_of_any_kind_and_an_array_give_the_same_labels(tmp_path):
    rows = [
        A_OVER_B | {"annotator": "Ada", "seconds": 1.5, "flag": True},
        B_OVER_A | {"prompt": "R\nS", "annotator": ""},
    ]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    lines(tmp_path / "b.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text(
        "prompt,chosen,rejected,grade,annotator,seconds,flag\r\n"
        'Which?,a,b,better,Ada,1.5,true\r\n"R\nS",b,a,better,,,\r\n',
        newline="",
    )
    found = []
    for file in sorted(tmp_path.iterdir()):
        with open_store(tmp_path / f"{file.stem}.db") as store:
            import_preferences(store, file)
            found.append([{k: v for k, v in x.items() if k != "created_at"} for x in store.labels()])
    assert found[0][0]["flag"] is True and found[0][0]["seconds"] == 1.5 and found[0][1]["annotator"] == "imported"
    assert all(one == found[0] for one in found[1:]) and len(found) == 4


def test_margins_and_numbers_of_a_csv_file_are_numbers(store, tmp_path):
    (tmp_path / "x.csv").write_text("prompt,chosen,rejected,margin,left\nQ,a,b,1,2\nR,a,b,0,\n")
    import_preferences(store, tmp_path / "x.csv", margins="small")
    assert [(x["grade"], x["left"]) for x in store.labels()] == [("significantly", 2), ("negligibly", None)]
    (tmp_path / "y.csv").write_text("prompt,chosen,rejected,margin,left\nQ,a,b,one,2\n")
    with pytest.raises(LabError, match=r"y.csv line 2: there is no grade, and the margin 'one'"):
        import_preferences(store, tmp_path / "y.csv", margins="small")


def test_another_encoding_of_a_file_of_labels_is_said_with_the_cure(store, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json.dumps(A_OVER_B | {"chosen": "é"}, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(LabError, match=r"line 1: not UTF-8; .*iconv -f WINDOWS-1252"):
        import_preferences(store, tmp_path / "x.jsonl")


# ---- labels add --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, says",
    [
        ('{"kind": ' + "9" * 5000 + "}", "thousands of digits"),
        ({"prompt": ASKED * 2}, "turns do not alternate"),
        ({"prompt": [{"role": "user", "content": " "}]}, "a turn is empty"),
        ({"models": [1, 2]}, "models"),
        ({"gold": {"choice": 1, "grades": 5}}, "grades"),
        ({"gold": {"choice": 1, "note": 1e308}}, None),
        ({"meta": {"a": [1]}}, None),
        ('{"prompt": "\\ud800"}', "half a character"),
        ({"prompt_id": {}}, "prompt_id"),
        ({"kind": ["helpfulness"]}, "kind is"),
        ({"prompt_id": 0}, None),
        ("[1]", "not a JSON object"),
    ],
)
def test_added_pairs_are_checked_and_named_by_line(store, tmp_path, row, says):
    one, two = pairs(2)
    file = lines(tmp_path / "x.jsonl", one, row if isinstance(row, str) else two | row)
    if says is None:
        assert add_pairs(store, read_pairs(file)) == 2
        return
    with pytest.raises(LabError, match=f"1 of 2 rows are malformed, so nothing was added: .*x.jsonl:2: .*{says}"):
        read_pairs(file)
    assert add_pairs(store, [one, two]) == 2  # nothing was there


def test_the_command_adds_and_imports_and_says_mistakes_in_one_line(tmp_path):
    url, run = str(tmp_path / "labels.db"), CliRunner().invoke
    (tmp_path / "pairs.json").write_text(json.dumps(pairs(3)))
    assert "3 new pairs" in run(app, ["labels", "add", url, str(tmp_path / "pairs.json"), "--overlap", "2"]).stdout
    lines(tmp_path / "x.jsonl", *by_margin(1))
    assert "1 labels" in run(app, ["labels", "import", url, str(tmp_path / "x.jsonl"), "--margins", "large"]).stdout
    for command, says in (
        (["add", url, str(tmp_path / "pairs.json"), "--overlap", "2000000000"], "less than or equal to 1000"),
        (["import", url, str(tmp_path / "x.jsonl")], "say by which table"),
        (["add", url, str(tmp_path)], "what kind of file"),
        (["import", url, str(tmp_path / "none.csv")], "cannot be read"),
    ):
        result = run(app, ["labels", *command])
        assert result.exit_code == 2 and says in " ".join(result.stderr.split()), result.output
        assert "Traceback" not in result.output


def test_as_many_judgements_as_a_store_can_hold_and_no_more(store):
    with pytest.raises(LabError, match="2000000000 annotators for one pair are more than 1,000"):
        add_pairs(store, pairs(1), overlap=2_000_000_000)
    with pytest.raises(LabError, match="2,001,000 judgements would be wanted, more than 2,000,000"):
        add_pairs(store, pairs(2001), overlap=1000)
    assert add_pairs(store, pairs(2), overlap=1000) == 2
