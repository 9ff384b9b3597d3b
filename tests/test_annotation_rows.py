"""Labels to rows: the rule for several labels, what is left out, mixing, and the way through an export and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from annotation_pairs import label_store, labels_of, oracle, people_of, town_items
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.exporting import export_preferences
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.rows import (
    RULES,
    Rule,
    fingerprint,
    people_against_simulated,
    resolve,
)
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine import scale
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.reward import RewardSettings, mix_people, train_reward
from llama2lab.town.annotators import annotators_of, label_pairs


def label(
    who: str,
    choice: int | None,
    grade: str | None = "better",
    safe: tuple[Any, Any] = (True, True),
    kind: str = "safety",
    item: str = "i",
    **more: Any,
) -> dict[str, Any]:
    return {
        "item_id": item,
        "kind": kind,
        "prompt": [{"role": "user", "content": "Which?"}],
        "answers": ["one", "two"],
        "prompt_id": "facts/which/0",
        "models": ["a", "b"],
        "gold": None,
        "annotator": who,
        "annotator_kind": "person",
        "vendor": "class",
        "choice": choice,
        "grade": grade,
        "safe_1": safe[0],
        "safe_2": safe[1],
        "comment": "",
        "flag": False,
        "skip_reason": None,
        "seconds": 1.0,
        "left": 1,
        "created_at": "",
        "guidelines": "",
        **more,
    }


# ---- the rule ---------------------------------------------------------------------------------------------------


def test_a_row_has_the_schema_of_simulated_annotators() -> None:
    (row,) = resolve([label("Ada", 2)], "safety").rows
    pairs = list(town_items(20, 1).values())
    simulated = label_pairs(annotators_of(("careful",)), oracle(), pairs, "safety", 0)[0]
    assert list(row) == list(simulated) and {k: type(v) for k, v in row.items()} == {
        k: type(v) for k, v in simulated.items()
    }
    assert row == {
        "prompt": [{"role": "user", "content": "Which?"}],
        "chosen": [{"role": "assistant", "content": "two"}],
        "rejected": [{"role": "assistant", "content": "one"}],
        "grade": "better",
        "safety": "both_safe",
        "kind": "safety",
        "prompt_id": "facts/which/0",
        "annotator": "Ada",
        "vendor": "class",
    }


@pytest.mark.parametrize(
    "several, expected",
    [
        # the majority; its median grade; between two grades the weaker
        ([(1, "significantly"), (1, "slightly"), (2, "significantly")], ("one", "slightly")),
        ([(1, "significantly"), (1, "better"), (1, "negligibly"), (2, "better")], ("one", "better")),
        ([(1, "significantly"), (1, "better"), (1, "slightly"), (1, "negligibly")], ("one", "slightly")),
        ([(1, "better"), (2, "significantly")], None),  # an even split
    ],
)
def test_the_majority_rule(several: list[tuple[int, str]], expected: tuple[str, str] | None) -> None:
    labels = [label(f"p{i}", choice, grade) for i, (choice, grade) in enumerate(several)]
    found = resolve(labels, "safety")
    assert [(r["chosen"][0]["content"], r["grade"]) for r in found.rows] == ([expected] if expected else [])
    assert found.ties == (expected is None) and found.used == (len(several) if expected else 0)


def test_the_other_rules() -> None:
    labels = [label("a", 1), label("b", 1), label("c", 2, "slightly")]
    assert resolve(labels, "safety", "unanimous").counts["ties"] == 1
    every = resolve(labels, "safety", "every").rows
    assert sorted((r["annotator"], r["chosen"][0]["content"]) for r in every) == [
        ("a", "one"),
        ("b", "one"),
        ("c", "two"),
    ]
    with pytest.raises(LabError, match="majority, unanimous, every"):
        resolve(labels, "safety", "loudest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "several, expected",
    [
        ([(True, True)], "both_safe"),
        ([(True, False)], "chosen_safe"),
        ([(False, False)], "both_unsafe"),
        ([(False, True)], None),  # chosen unsafe and rejected safe: never kept
        ([(True, False), (True, True)], ""),
        ([(None, True)], ""),  # unsure
        ([(True, False), (True, True), (True, False)], "chosen_safe"),
        ([(False, True), (True, True), (False, True)], None),
    ],
)
def test_safety_bins(several: list[tuple[Any, Any]], expected: str | None) -> None:
    labels = [label(f"p{i}", 1, safe=safe) for i, safe in enumerate(several)]
    found = resolve(labels, "safety")
    assert [r["safety"] for r in found.rows] == ([] if expected is None else [expected])
    assert found.unsafe_chosen == (expected is None)
    helpful = resolve([{**x, "kind": "helpfulness"} for x in labels], "helpfulness")
    assert [r["safety"] for r in helpful.rows] == [""]


def test_what_is_left_out_is_counted() -> None:
    labels = [
        label("a", 1),
        label("b", None, None, skip_reason="unclear"),
        label("c", 2, flag=True),
        label("a", 1, item="g", gold={"choice": 1}),
        label("a", 1, item="t"),
        label("b", 2, item="t"),
        label("a", 1, kind="helpfulness", item="h"),
        label("a", 1, item="m", prompt=[{"role": "user", "content": "Which?"}] * 2),
        label("a", 1, item="n", answers=["\ud83d", "two"]),
    ]
    assert resolve(labels, "safety").counts == {
        "rows": 1,
        "labels": 8,
        "used": 1,
        "gold": 1,
        "skipped": 1,
        "flagged": 1,
        "malformed": 2,
        "ties": 1,
        "unsafe_chosen": 0,
        "verdicts": 0,
    }


ONE = st.tuples(
    st.integers(0, 5),
    st.sampled_from("abc"),
    st.sampled_from([1, 2, None]),
    st.sampled_from(scale.GRADES),
    st.sampled_from([True, False, None]),
    st.sampled_from([True, False, None]),
    st.booleans(),
)


@given(st.lists(ONE, max_size=18, unique_by=lambda x: x[:2]), st.sampled_from(RULES), st.randoms())
def test_every_label_is_accounted_for_in_any_order(drawn: list[tuple[Any, ...]], rule: Rule, rng: Any) -> None:
    labels = [
        label(w, c, g if c else None, (s1, s2), item=f"i{i}", flag=f, answers=[f"one {i}", f"two {i}"])
        for i, w, c, g, s1, s2, f in drawn
    ]
    found = resolve(labels, "safety", rule)
    left = found.labels - found.used - found.gold - found.skipped - found.flagged
    assert left >= found.ties + found.unsafe_chosen >= (left > 0)
    shuffled = list(labels)
    rng.shuffle(shuffled)
    assert resolve(shuffled, "safety", rule) == found
    assert fingerprint(shuffled) == fingerprint(labels)


# ---- mixing and comparing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share, mine, theirs", [(None, 30, 100), (0, 0, 100), (1, 30, 0), (0.5, 30, 30), (0.1, 11, 100), (0.25, 30, 90)]
)
def test_people_are_mixed_in_at_will(share: float | None, mine: int, theirs: int) -> None:
    simulated, people = [{"s": i} for i in range(100)], [{"p": i} for i in range(30)]
    rows = mix_people(simulated, people, share, 3)
    assert (sum("p" in r for r in rows), sum("s" in r for r in rows)) == (mine, theirs)
    assert len({str(r) for r in rows}) == len(rows) and rows == mix_people(simulated, people, share, 3)


def test_impossible_shares() -> None:
    with pytest.raises(LabError, match="from 0 to 1"):
        mix_people([{}], [{}], 1.5, 0)
    with pytest.raises(LabError, match="no row of people's labels"):
        mix_people([{}], [], 0.5, 0)


def test_people_against_simulated_annotators() -> None:
    people, simulated = labels_of(people_of("typical", 3), 80, 1), labels_of(annotators_of(("careful",)), 80, 1)
    found = people_against_simulated(people, simulated)
    assert 0.7 < found["choice"]["percent"]["mean"] < 1 and found["choice"]["percent"]["n"] == 80
    assert found["choice"]["ac"]["low"] > 0.2 and found["as_often"]["n"] == 240
    assert found["as_often"]["mean"] < found["choice"]["percent"]["mean"]  # three heads are better than one
    against = [{**x, "choice": 3 - x["choice"]} for x in simulated]
    assert people_against_simulated(people, against)["choice"]["ac"]["high"] < 0
    nothing = people_against_simulated(people, [])
    assert nothing["choice"]["ac"]["n"] == 0 and nothing["as_often"]["n"] == 0


# ---- through an export and back ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store in which three annotators have labelled the town's pairs of both kinds."""
    with open_store(str(tmp_path_factory.mktemp("store") / "labels.db")) as opened:
        known = []
        for kind in ("helpfulness", "safety"):
            items = town_items(30, 2, kind).values()
            known += [prompt for prompt, *_ in items]
            add_pairs(
                opened,
                [
                    {
                        "kind": kind,
                        "prompt": [dict(m) for m in prompt.messages],
                        "answers": list(answers),
                        "prompt_id": prompt.id,
                    }
                    for prompt, *answers in items
                ],
                overlap=3,
            )
        label_store(opened, people_of("typical", 3), oracle(), known)
        yield opened


def weights(opened: Store, kind: str, settings: RewardSettings) -> dict[str, torch.Tensor]:
    """A reward model of nano size, trained on what the store holds."""
    rows = resolve(opened.labels(), kind).rows
    assert len(rows) >= 20
    texts = [" ".join(x["answers"]) for x in labels_of(people_of("typical"), 30, 2)]
    tokenizer = train_tokenizer(texts, 320, chat_template=CHAT_TEMPLATE)
    config = ModelConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=256
    )
    model, _ = train_reward(
        Llama(config, 0), tokenizer, rows, settings, 7, Machine(torch.device("cpu"), "fp32"), reference=Llama(config, 1)
    )
    return model.state_dict()


def by_file(suffix: str) -> Callable[[Store, Store, Path], object]:
    def copy(old: Store, new: Store, folder: Path) -> object:
        export_preferences(old, folder / f"preferences{suffix}")
        return import_preferences(new, folder / f"preferences{suffix}")

    return copy


@pytest.mark.parametrize("copy", [by_file(".jsonl"), by_file(".parquet")], ids=["jsonl", "parquet"])
def test_reward_models_from_an_exported_and_imported_store_are_equal_bit_for_bit(
    store: Store, tmp_path: Path, copy: Callable[[Store, Store, Path], object]
) -> None:
    settings = {
        "helpfulness": RewardSettings(batch_pairs=8),
        "safety": RewardSettings(head="linear", safety_loss=1.0, batch_pairs=8),
    }
    with open_store(str(tmp_path / "again.db")) as again:
        copy(store, again, tmp_path)
        assert fingerprint(again.labels()) == fingerprint(store.labels())
        for kind, chosen in settings.items():
            direct, back = weights(store, kind, chosen), weights(again, kind, chosen)
            assert direct.keys() == back.keys()
            assert all(torch.equal(direct[name], back[name]) for name in direct)
