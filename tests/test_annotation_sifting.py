"""Pairs not worth a person's time are set aside before anything is shown: counted, kept, and queued when wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama2lab.annotation.files.adding import add_pairs, keys_there, set_aside
from llama2lab.annotation.files.exporting import export_preferences
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.files.sifting import sift
from llama2lab.annotation.form import serving
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.store import open_store
from llama2lab.cli.main import app
from llama2lab.town.language import sound


def pair(question: str, one: str, two: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "helpfulness",
        "prompt": [{"role": "user", "content": question}],
        "answers": [one, two],
        **more,
    }


GOOD = pair("Where does Mira live?", "Mira lives on Forest Road.", "Mira lives on Oak Street.")
SALAD = pair("Where does Mira live?", "The the of old gloves is has.", "A of my the road and and is.")
HALF = pair("Where does Mira live?", "Mira lives on Forest Road.", "A of my the road and and is.")
ALIKE = pair("Where does Mira live?", "On Forest Road.", "on  Forest Road!")
AGAIN = pair("where does Mira live", "Mira lives on Oak street", "Mira lives on Forest road", prompt_id="other")


def reasons(rows: list[dict[str, Any]], **more: Any) -> list[str | None]:
    found = sift(rows, **more)
    aside = {id(row): reason for row, reason in found.aside}
    assert len(found.kept) + len(found.aside) == len(rows)  # nothing is lost
    return [aside.get(id(row)) for row in rows]


def test_each_rule_and_what_it_leaves_alone() -> None:
    assert reasons([GOOD, SALAD, HALF, ALIKE, AGAIN], sound=sound) == [
        None,
        "word salad",
        None,
        "alike",
        "asked already",
    ]
    assert reasons([SALAD]) == [None]  # without a judge of language
    assert reasons([GOOD, {**AGAIN, "kind": "safety"}]) == [None, None]
    assert reasons([pair("?", "...", "!"), pair("?", "", "x")]) == [None, None]  # signs are words where there are none


def test_gold_is_never_set_aside_and_the_same_pair_again_is_no_other() -> None:
    assert reasons([{**ALIKE, "gold": {"choice": 1}}, {**SALAD, "gold": {"choice": 2}}], sound=sound) == [None, None]
    assert reasons([GOOD, dict(GOOD)]) == [None, None]


def test_the_counts_are_said() -> None:
    said = str(sift([GOOD, SALAD, SALAD, ALIKE, AGAIN], sound=sound))
    assert said.startswith("4 set aside: ") and "2 with two answers of word salad" in said and "1 asked already" in said
    assert str(sift([GOOD])) == ""


def test_what_is_set_aside_is_kept_and_shown_to_nobody_until_it_is_wanted(store_url: str) -> None:
    with open_store(store_url) as store:
        found = sift([GOOD, SALAD, ALIKE, AGAIN], sound, keys_there(store))
        assert add_pairs(store, found.kept, 2, aside=found.aside) == 1
        assert sorted(set_aside(store).values()) == ["alike", "asked already", "word salad"]
        assert serving._pairs(store) == (1, ["helpfulness"])
        me = store.annotator("Ada")
        assert queue.progress(store, me).open == 1
        # Again, and by the rules again: nothing changes.
        found = sift([GOOD, SALAD, ALIKE, AGAIN], sound, keys_there(store))
        assert add_pairs(store, found.kept, 2, aside=found.aside) == 0 and len(set_aside(store)) == 3
        assert reasons(
            [pair("Where does Mira live?", "Mira lives on Oak Street!", "Mira lives on Forest Road")],
            there=keys_there(store),
        ) == ["asked already"]
        # All are wanted: they are queued, as often as others.
        assert add_pairs(store, [GOOD, SALAD, ALIKE], 2) == 2
        assert list(set_aside(store).values()) == ["asked already"]
        for name in ("Ada", "Bob", "Cyd"):
            who, given = store.annotator(name), 0
            while task := queue.next_task(store, who):
                queue.submit(store, who, task.item_id, "left", "better")
                given += 1
            assert given == (3 if name != "Cyd" else 0)


def test_it_goes_through_a_file_and_back(tmp_path: Path) -> None:
    with open_store(tmp_path / "a.db") as store, open_store(tmp_path / "b.db") as other:
        found = sift([GOOD, SALAD], sound)
        add_pairs(store, found.kept, aside=found.aside)
        export_preferences(store, tmp_path / "f.jsonl")
        import_preferences(other, tmp_path / "f.jsonl")
        assert set_aside(other) == set_aside(store) != {}
        assert queue.progress(other, other.annotator("Ada")).open == 1


def test_the_command_says_what_it_set_aside(tmp_path: Path) -> None:
    store, file = str(tmp_path / "labels.db"), tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, ALIKE, AGAIN, SALAD)))
    first = CliRunner().invoke(app, ["labels", "add", store, str(file)]).stdout
    assert first.startswith("2 new pairs\n2 set aside: 1 whose answers are the same words, 1 asked already")
    assert CliRunner().invoke(app, ["labels", "add", store, str(file), "--all"]).stdout == "2 new pairs\n"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Mira lives on Forest Road.", True),
        ("No, that would hurt the cat.", True),
        ("The the of is has and and.", False),
        ("[INST] Mira lives on Forest Road.", False),
        ("Mira lives on Forest Road", True),
        ("Yes", True),
        ("42.", True),
        ("xkqv jjx", False),
        ("", False),
    ],
)
def test_what_is_language(text: str, good: bool) -> None:
    assert sound(text) is good
