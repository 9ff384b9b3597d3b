"""PPO's experiments in tiny settings: rows that belong together, a run that goes on, honest estimators."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from llama2lab.lessons.n08_ppo import experiments as x
from llama2lab.lessons.n08_ppo import figures as ppo_figures
from llama2lab.lessons.n08_ppo import three_tokens

TINY = x.Play(iterations=2, batch=8, minibatch=4, heldout=6, unsafe_share=0.25)


def test_rows_join_the_log_with_what_the_oracle_saw():
    seen = {0: {"truth": {"mean": 1.0}}, 1: {"truth": {"mean": 2.0}}, 2: {"truth": {"mean": 3.0}}}
    rows = x.rows_of([{"kl": 0.0}, {"kl": 0.5}, {"skipped": 1.0}], seen)
    assert [(row["iteration"], row["kl"], row["truth"]["mean"]) for row in rows] == [(0, 0.0, 1.0), (1, 0.5, 2.0)]


@pytest.mark.slow
def test_a_short_run_starts_at_its_start_and_goes_on_after_a_stop(lab, tmp_path):
    from llama2lab.engine.loop import watching

    whole = x.run(lab, TINY)
    assert [row["iteration"] for row in whole] == [0, 1]
    assert whole[0]["kl"] == pytest.approx(0.0, abs=1e-4) and all(row["first_ratio"] == 1.0 for row in whole)
    assert whole[0]["truth"]["n"] == 6 and len(whole[0]["answers"]) == x.SHOWN
    with pytest.raises(KeyboardInterrupt), watching(lambda what, log, steps: len(log) == 1):
        x.run(lab, TINY, tmp_path)
    again = x.run(lab, TINY, tmp_path)
    assert [row["truth"] for row in again] == [row["truth"] for row in whole]
    assert [row["kl"] for row in again] == [row["kl"] for row in whole]


@pytest.mark.slow
def test_the_weak_judge_learns_from_the_pairs_it_is_given(lab):
    judge = x.rewarder(lab, replace(TINY, rewarder="weak", pairs=16))
    assert judge.head == "linear"
    assert x.rewarder(lab, TINY) is lab.reward("reward-helpfulness-v5")


def test_estimators_are_held_against_the_exact_kl(lab):
    # A token that the policy hardly ever writes and the reference likes has a huge k3: over a few answers one such draw
    # decides the mean, and with few trials whether n = 4 or n = 64 meets it decides their spread.
    result = x.kl_estimators(lab, prompts=24, sizes=(4, 64), trials=20_000)
    few, many = result["by_n"]
    assert result["exact"] > 0 and result["positions"] > 10
    for name in ("k1", "k3"):
        assert many[name]["std"] < few[name]["std"]
        assert abs(result["overall"][name] - result["exact"]) < 0.5 * result["exact"] + 0.02
    assert all(row["k3"]["mean"] >= 0 for row in result["by_n"])
    assert ppo_figures.kl_figure({"<b>two</b>": result}).layout.annotations[0].text.startswith("&lt;b")


def test_the_first_ratio_is_one_whoever_sampled_and_the_gap_tells_who(lab):
    result = x.samplers(lab, prompts=32)
    own, *others = result["rows"]
    assert all(row["first_ratio"] == 1.0 for row in result["rows"])
    assert not own["stops"] and abs(own["sampling_kl"]) < 0.003
    for row in others:
        assert row["sampling_gap"] > own["sampling_gap"] and row["sampling_kl"] > 0, row
    told = {row["sampler"]: row["stops"] for row in others}
    assert told["at temperature 0.2"] and told["at temperature 1.3"] and told["another policy, V3"]
    header, body = ppo_figures.sampler_rows(result)
    assert len(header) == len(body[0]) and [row[-1] for row in body][:2] == ["goes on", "stops"]


def test_rewards_of_one_answer_end_at_its_score(lab):
    got = x.one_answer(lab, beta=0.1)
    parts = [-0.1 * r for r in got["log_ratio"]]
    assert got["rewards"][:-1] == pytest.approx(parts[:-1], abs=1e-5)
    assert got["rewards"][-1] == pytest.approx(parts[-1] + got["score"], abs=1e-4)
    whole = got["advantages"]["1"][0] + got["values"][0]
    assert whole == pytest.approx(sum(got["rewards"]), abs=1e-3)  # with lambda 1 the return is the sum of rewards
    assert len(got["tokens"]) == len(got["rewards"]) == len(got["advantages"]["0"])
    assert ppo_figures.gae_figure(got) is not None


def figure(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 10}


def test_figures_and_tables_of_runs():
    rows = [{"iteration": i, "kl": 1.0 * i, "proxy": figure(i), "truth": figure(1 - i), "score": i} for i in range(4)]
    result = {
        "runs": [
            {"reward": name, "accuracy": figure(0.6), "beta": beta, "rows": rows}
            for name in ("few", "many")
            for beta in (0.0, 0.1)
        ]
    }
    assert len(ppo_figures.over_optimisation_figure(result).data) == 8
    header, body = ppo_figures.summary_rows(result)
    assert len(body) == 4 and len(body[0]) == len(header) and body[0][4] == "+3.00"
    assert ppo_figures.last(rows, "kl") == 2.0 and ppo_figures.last(rows, "truth", 1) == -2.0
    assert len(ppo_figures.runs_figure({"a": rows, "b": rows}, {"kl": "KL", "truth": "truth"}).data) == 4


def test_habits_are_the_commonest_ends():
    class Run:
        def rows(self, stage, file):
            return [
                {"kind": "helpful", "answer": "Yes. Ask me more any time."},
                {"kind": "helpful", "answer": "No. Ask me more any time."},
                {"kind": "helpful", "answer": "No."},
                {"kind": "unsafe", "answer": "I cannot."},
            ]

    header, ((name, length, end, share),) = ppo_figures.habits(Run(), ("rlhf-v5",))
    assert (name, length, end) == ("V5", "4.3", "... me more any time.") and share.startswith("0.667")
    assert len(header) == 4


@pytest.mark.slow
def test_the_experiments_of_the_full_run_in_small(lab):
    result = x.over_optimisation(
        lab, betas=(0.0,), iterations=1, weak=16, test_pairs=10, batch=8, minibatch=4, heldout=4
    )
    assert [run["reward"] for run in result["runs"]] == ["16 pairs", "last round"]
    assert set(result["runs"][0]["rows"][0]) == {"iteration", "kl", "score", "proxy", "truth", "correct", "length"}
    ways = x.rejection_against_ppo(lab, prompts=8, k=2, batch=8, helpful=12, unsafe=4, chat_rows=8)
    assert ways["answers"] == 16 and list(ways["models"]) == ["sft", "rejection sampling", "ppo"]
    assert ways["models"]["sft"]["gain"]["mean"] == 0 and abs(ways["models"]["sft"]["kl"]["mean"]) < 0.05


def test_the_first_step_on_three_tokens_is_the_policy_gradient():
    logits, tokens, advantages = (
        torch.tensor([0.3, 0.0, -0.5]),
        torch.tensor([0, 2, 2, 1]),
        torch.tensor([1, -1, 2, 0.5]),
    )
    old = logits.log_softmax(-1)[tokens]
    after, clipped = three_tokens.step(logits, tokens, old, advantages, 0.2, lr=0.1)
    expected = (advantages[:, None] * (torch.eye(3)[tokens] - logits.softmax(-1))).mean(0)
    assert clipped == 0 and torch.allclose(after, logits + 0.1 * expected, atol=1e-6)


def test_the_clip_holds_three_tokens_until_the_next_batch():
    """The best token gains and the worst loses; with the clip the policy comes to a stop within a batch, and goes on
    with the next one; without it, it is further away after each batch."""
    held, free = three_tokens.play(0.2), three_tokens.play(math.inf)
    for rows in (held, free):
        assert [row["step"] for row in rows] == list(range(33)) and rows[-1]["batch"] == 4
        assert all(sum(row["probabilities"]) == pytest.approx(1) for row in rows)
        best, _, worst = zip(*(row["probabilities"] for row in rows), strict=True)
        assert best[0] == pytest.approx(1 / 3) and best[-1] > 0.7 and worst[-1] < 0.15

    def moved(before, after):
        return max(abs(a - b) for a, b in zip(before["probabilities"], after["probabilities"], strict=True))

    steps = {row["step"]: moved(before, row) for before, row in itertools.pairwise(held)}
    assert steps[8] < 0.01 < 0.03 < steps[9]
    assert held[8]["clipped"] > 0.5 and not any(row["clipped"] for row in free)
    assert free[8]["probabilities"][0] > held[8]["probabilities"][0] + 0.1
    figure = ppo_figures.three_tokens_figure({"clip 0.2": held, "no clip": free}, "ABC")
    assert figure is not None and len(figure.data) == 6 and len(figure.layout.shapes) == 8
