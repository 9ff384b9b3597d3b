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


def test_outcomes_are_the_runs_own(lab) -> None:
    outcomes = shown.outcomes(lab)
    kept = lab.metrics("rlhf-v5")
    assert outcomes.count("win") / len(outcomes) == pytest.approx(kept["wins_vs_sft"]["mean"], abs=0.01)


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
