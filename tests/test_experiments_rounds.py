"""The experiments of the five rounds, in tiny settings."""

import pytest

from llama2lab.lessons.n10_rounds import experiments as x
from llama2lab.lessons.n10_rounds import figures


def figure(mean, half=0.1):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 20, "std": 0.3}


def test_old_and_new_reward_models_meet_the_same_pairs(lab):
    result = x.old_reward_on_new_pairs(lab, pairs=10)
    assert [row["round"] for row in result["rounds"]] == [1, 2, 3, 4, 5]
    for row in result["rounds"]:
        assert row["old"]["n"] == row["new"]["n"] == row["gap"]["n"] == 10
        assert row["gap"]["mean"] == pytest.approx(row["new"]["mean"] - row["old"]["mean"])
    assert set(figures.stale_series(lab, result)) == {"the first round's", "the last round's", "each round's own"}


def test_the_ceiling_of_the_k_is_above_both_choices(lab):
    result = x.optimise_against_old(lab, prompts=4, k=4)
    assert [row["k"] for row in result["old"]] == [1, 2, 4]
    for old, new in zip(result["old"], result["new"], strict=True):
        assert old["ceiling"] == new["ceiling"] and old["pick"]["mean"] <= old["ceiling"]["mean"] >= new["pick"]["mean"]
    assert result["old"][0]["pick"] == result["new"][0]["pick"]  # nothing to choose from


def test_demonstrations_are_right_and_the_gap_is_against_them(lab):
    result = x.ceiling(lab, prompts=6, k=2)
    assert list(result) == ["demonstrations", "SFT", "V5", "V5, best of 2"]
    assert result["demonstrations"]["correct"]["mean"] == 1.0 and result["demonstrations"]["gap"]["mean"] == 0.0
    assert result["V5"]["gap"]["mean"] == pytest.approx(
        result["V5"]["all"]["mean"] - result["demonstrations"]["all"]["mean"]
    )
    shown = figures.ceiling_table(result)
    assert len(shown.rows) == 4 and all(len(row) == len(shown.header) for row in shown.rows)


def test_the_verdict_on_the_ceiling_follows_the_figures():
    def part(gap, right):
        return {"gap": figure(gap), "right": figure(right), "all": figure(right), "correct": figure(0.5)}

    shown = figures.ceiling_table({"demonstrations": part(0, 2), "V5": part(-1, 3), "best": part(0.5, 2.05)})
    said = [[cell.rpartition(": ")[2] for cell in row[4:]] for row in shown.rows]
    assert said == [["", ""], ["below", "better"], ["above", "no different"]]
    assert shown.rows[1][5].startswith("+1.00 [")


def test_scores_of_two_seeds_are_averaged_prompt_by_prompt(lab):
    prompts = lab.prompts(helpful=12)
    found = x.by_skill([[1.0] * 12, [2.0] * 12], prompts)
    assert found["all"]["mean"] == 1.5 and found["all"]["n"] == 12 and found["all"]["each"] == [1.0, 2.0]
    assert set(found) == {"all", *(p.skill for p in prompts)}
    assert sum(f["n"] for skill, f in found.items() if skill != "all") == 12


def test_costs_add_up(lab):
    rows = figures.costs(lab)
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(
        row["all"] == pytest.approx(sum(v or 0 for k, v in row.items() if k not in ("round", "all"))) for row in rows
    )
    assert rows[4]["sampling"] is None and rows[0]["sampling"] > 0
    header, body = figures.costs_table(lab)
    assert body[4][header.index("sampling")] == "-"


def test_versions_and_their_gaps_come_from_the_run(lab):
    header, body = figures.versions_table(lab, ("sft", "rlhf-v5", "rlhf-v9"))
    assert [row[0] for row in body] == ["SFT", "V5"] and len(body[0]) == len(header)
    assert figures.gap(lab, "rlhf-v5", "rlhf-v5", "unsafe")["mean"] == 0


@pytest.mark.slow
def test_the_last_round_alone_in_small(lab):
    result = x.last_round_only(lab, rows=8, helpful=12, words=500, seeds=2)
    assert result["rows"] == 8 and len(result["choices"]) == len(result["gaps"]) == 4
    series = figures.forgetting_series(result)
    assert {"all", "stories", "how to"} <= set(series["all rounds"])
    last, every = (result["choices"][name]["stories"]["each"] for name in ("last round", "all rounds"))
    gap = result["gaps"]["all rounds less the last one (as the rounds were), stories"]
    assert gap["each"] == pytest.approx([a - b for a, b in zip(every, last, strict=True)])


@pytest.mark.long
@pytest.mark.slow
def test_stale_rewards_choose_among_the_same_answers(lab):
    result = x.stale_rewards(lab, prompts=8, k=3)
    [accuracy, worth] = result["claims"].values()
    assert accuracy == result["rounds"][-1]["gap"] and len(result["rounds"]) == 5
    assert worth["mean"] == pytest.approx(result["picks"]["new"]["mean"] - result["picks"]["old"]["mean"])
    assert worth["n"] == 8
