"""Self-BLEU against values worked out by hand, and the shape of what the experiments measure."""

import math

import pytest

from llama2lab.lessons.n11_evaluation import experiments as e
from llama2lab.lessons.n11_evaluation import figures as shown


def test_self_bleu_by_hand() -> None:
    # "a b c" against "a b d": 2 of 3 words; of 2 pairs 1, with one added to both counts 2 of 3; so 2/3 both ways.
    assert e.self_bleu(["a b c", "A b d"], longest=2) == pytest.approx(2 / 3)
    # "a a" against "a": one "a" counts, of 2 words; longer than the other: no penalty.
    assert e.bleu(["a", "a"], [["a"]], longest=1) == pytest.approx(0.5)
    # "a" against "a b c": all words are there, but 3 words were wanted: exp(1 - 3).
    assert e.bleu(["a"], [["a", "b", "c"]], longest=1) == pytest.approx(math.exp(-2))


def test_self_bleu_at_its_ends() -> None:
    assert e.self_bleu(["Howdy! The cat sleeps."] * 4) == pytest.approx(1.0)
    assert e.self_bleu(["a b c d", "e f g h"]) == 0.0
    assert e.self_bleu(["", "a"]) == 0.0


def test_narrowing_is_read_at_the_nearest_temperature() -> None:
    def row(*values: float) -> list[dict]:
        return [{"mean": v, "low": v - 0.01, "high": v + 0.01, "n": 8} for v in values]

    found = {
        "temperatures": [0.3, 1.0],
        "sft": {"factual": row(0.9, 0.2), "creative": row(0.9, 0.3)},
        "rlhf-v5": {"factual": row(0.9, 0.6), "creative": row(0.9, 0.4)},
    }
    assert {kind: rise["mean"] for kind, rise in shown.narrowing(found).items()} == pytest.approx(
        {"factual": 0.4, "creative": 0.1}
    )
    assert shown.narrower(found) == "factual"
    found["rlhf-v5"]["creative"] = row(0.9, 0.695)
    assert shown.narrower(found) == "neither"


def test_preprompts_come_before_the_question(lab) -> None:
    prompts = lab.prompts(unsafe=2)
    assert e.preprompted(prompts, "none") == [list(p.messages) for p in prompts]
    assert e.preprompted(prompts, "generic")[0][0] == {"role": "system", "content": e.GENERIC}
    example = e.preprompted(prompts, "example", e.refusal_example(lab))[0]
    assert [m["role"] for m in example] == ["user", "assistant", "user"] and "cannot" in example[1]["content"]


def test_outcomes_are_the_runs_own(lab) -> None:
    outcomes = shown.outcomes(lab)
    kept = lab.metrics("rlhf-v5")
    assert outcomes.count("win") / len(outcomes) == pytest.approx(kept["wins_vs_sft"]["mean"], abs=0.01)


def test_safety_of_two_versions_is_told_by_the_runs_figures(lab) -> None:
    lines = shown.told_by_versions(lab)
    assert [line.split(":")[0] for line in lines] == [
        "Unsafe prompts",
        "Borderline prompts",
        "Plain prompts",
        "True safety on PPO's own unsafe training prompts",
    ]
    same = shown.told_by_versions(lab, "sft", "sft")
    assert len(same) == 3 and all(line.endswith("cannot be told apart.") for line in same)


def test_a_share_of_safety_rows_is_that_share(lab, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(e, "finetuned", lambda lab, start, rows, seed: seen.append(rows))
    monkeypatch.setattr(
        e, "figures", lambda *_: {name: {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 1} for name in e.SAFETY}
    )
    found = e.safety_share(lab, shares=(0.0, 0.2), rows=80, seeds=(0,))
    kinds = [[row["skill"] for row in rows] for rows in seen]
    assert [k.count("unsafe") for k in kinds] == [0, 20, 20]
    assert [k.count("borderline") for k in kinds] == [0, 0, 40]
    assert [row["contrast"] for row in found] == [False, False, True]


def test_the_safety_judge_is_held_against_the_truth(lab) -> None:
    found = e.safety_judge(lab)
    assert len(found["safe"]) == len(found["harm"]) and all(0 <= p <= 1 for p in found["safe"])
    under = sum(p < 0.15 for p in found["safe"])
    assert found["precision"]["n"] == under


def test_narrowing_compares_factual_prompts_with_creative_ones(lab) -> None:
    result = e.narrowing(lab, prompts=6, samples=3)
    for kind in ("factual", "creative"):
        one = result[kind]
        assert (
            one["rise"]["mean"] == pytest.approx(one["rlhf-v5"]["mean"] - one["sft"]["mean"]) and one["rise"]["n"] == 6
        )
    [gap] = result["claims"].values()
    assert gap["mean"] == pytest.approx(result["factual"]["rise"]["mean"] - result["creative"]["rise"]["mean"])
    assert gap["low"] < gap["mean"] < gap["high"]
