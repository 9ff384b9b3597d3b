"""The figures of the evaluation, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from llama2lab.engine.answers import evenly, joined, shared_out
from llama2lab.engine.errors import LabError
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n09_gatt.figures import single_turn
from llama2lab.lessons.n10_rounds.figures import gap
from llama2lab.lessons.n11_evaluation.figures import outcomes
from llama2lab.report.summary import paired_gap
from llama2lab.run.judge import compare
from llama2lab.stages import evaluate
from llama2lab.stages.evaluate import chat_metrics, known_facts, retention, truth_accuracy, win_tie_loss
from llama2lab.town.items import Instruction, Prompt, Verdict

GOOD = Verdict(correct=True, complete=1.0, fluent=1.0, brief=1.0, safe=True, refuses=False, alternative=False,
               reason=False, violation=False, false_refusal=False, falsehood=False, helpfulness=2.0, safety=0.5)


def prompt(name: str, kind: str = "helpful", skill: str = "facts", turns: int = 1) -> Prompt:
    messages = tuple({"role": "user" if i % 2 == 0 else "assistant", "content": name} for i in range(2 * turns - 1))
    return Prompt(name, messages, skill, kind, "", "test")


def test_each_figure_of_a_chat_stage_counts_the_prompts_it_is_about():
    rows = [
        (prompt("facts/a/0"), replace(GOOD, helpfulness=2.0)),
        (prompt("facts/b/0", turns=2), replace(GOOD, correct=False, helpfulness=-1.0)),
        (prompt("opposites/c/0", skill="opposites"),
         replace(GOOD, correct=False, false_refusal=True, helpfulness=-2.0)),
        (prompt("opposites/d/0", skill="opposites"), replace(GOOD, helpfulness=1.0)),
        (prompt("unsafe/e/0", "unsafe", "unsafe"), replace(GOOD, violation=True, correct=False, safety=-2.0)),
        (prompt("unsafe/f/0", "unsafe", "unsafe"), replace(GOOD, refuses=True, safety=1.0)),
        (prompt("borderline/g/0", "borderline", "borderline"), replace(GOOD, false_refusal=True, correct=False)),
        (prompt("borderline/h/0", "borderline", "borderline"), GOOD),
        (prompt("borderline/i/0", "borderline", "borderline"), GOOD),
        (prompt("borderline/j/0", "borderline", "borderline"), GOOD),
    ]
    figures = chat_metrics([p for p, _ in rows], [v for _, v in rows])
    means = {name: (figure["mean"], figure["n"]) for name, figure in figures.items() if "mean" in figure}
    assert means == {
        "helpfulness": (0.0, 4), "correct": (0.5, 4), "violation_rate": (0.5, 2), "false_refusal_rate": (0.25, 4),
        "borderline_refusal_rate": (0.25, 4), "borderline_correct": (0.75, 4), "safety": (-0.5, 2),
        "correct_single_turn": (pytest.approx(2 / 3), 3), "correct_multi_turn": (0.0, 1)}
    assert {s: f["mean"] for s, f in figures["correct_by_skill"].items()} == {"facts": 0.5, "opposites": 0.5}
    assert {s: f["mean"] for s, f in figures["helpfulness_by_skill"].items()} == {"facts": 0.5, "opposites": -0.5}


def test_wins_ties_and_losses():
    """A gap of .05 is a tie, and counts as half; other kinds of prompts do not count."""
    gaps = [0.06, 0.5, 0.05, -0.05, -0.06]
    prompts = [prompt(f"facts/{i}/0") for i in range(5)] + [prompt("unsafe/x/0", "unsafe", "unsafe")]
    mine = [replace(GOOD, helpfulness=gap) for gap in gaps] + [replace(GOOD, helpfulness=9.0)]
    found = win_tie_loss(prompts, mine, [replace(GOOD, helpfulness=0.0)] * 6)
    assert {k: (f["mean"], f["n"]) for k, f in found.items()} == {
        "win_rate_vs_sft": (pytest.approx(0.6), 5), "wins_vs_sft": (0.4, 5), "ties_vs_sft": (0.4, 5),
        "losses_vs_sft": (0.2, 5)}


def test_lists_of_other_lengths_are_no_figures():
    with pytest.raises(ValueError):
        win_tie_loss([prompt("facts/a/0")], [GOOD], [])
    with pytest.raises(ValueError):
        chat_metrics([prompt("facts/a/0")], [])
    with pytest.raises(ValueError):
        evaluate.judge_all(SimpleNamespace(judge=lambda p, a: GOOD), [prompt("facts/a/0")], [])


def test_retention_counts_the_answer_of_each_turn(monkeypatch):
    """Two dialogues of six turns: one obeys throughout, the other at turns 1 and 2 only."""
    given = [["Ahoy!"] * 6, ["Ahoy!", "Ahoy!", "No.", "No.", "No.", "No."]]
    monkeypatch.setattr(evaluate, "sample_dialogues", lambda *a, **k: given)
    oracle: Any = SimpleNamespace(obeys=lambda instruction, answer: answer == instruction.phrase)
    pirate = Instruction("pirate", "figure", "Be a pirate.", "Figure: pirate", ("Ahoy",), "start", "Ahoy!")
    figures, answers = retention(oracle, None, None, [["Q?"] * 6] * 2, [pirate] * 2, 0, "fp32")  # type: ignore[arg-type]
    assert {t: f["mean"] for t, f in figures.items()} == {"1": 1.0, "2": 1.0, "4": 0.5, "6": 0.5}
    assert answers == given


class Letters:
    """A tokenizer of single letters."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))


def test_a_fact_is_known_when_its_value_is_completed_whole(monkeypatch):
    """The value itself, in any case, with something other than a letter after it."""
    said = [" Oak Street.", " oak street", " Oak Streets.", " Elm Street.", " 46.", " 461"]
    values = ["Oak Street"] * 4 + ["46"] * 2
    monkeypatch.setattr(evaluate, "encode_text", lambda tokenizer, text: [ord(c) for c in text])
    monkeypatch.setattr(evaluate, "generate",
                        lambda *a, **k: [SimpleNamespace(tokens=[ord(c) for c in s]) for s in said])
    figure = known_facts(None, Letters(), [("Mira lives on", v, []) for v in values], "fp32")  # type: ignore[arg-type]
    assert (figure["mean"], figure["n"]) == (0.5, 6)


def test_truth_is_the_share_of_right_facts_that_score_higher_and_a_tie_is_half(monkeypatch):
    scores = {"right 0": 2.0, "wrong 0": 1.0, "right 1": -1.0, "wrong 1": 0.0, "right 2": 3.0, "wrong 2": -3.0,
              "right 3": 0.5, "wrong 3": 0.5}
    monkeypatch.setattr(evaluate, "score_answers",
                        lambda model, tokenizer, chats, answers, machine: [scores[a] for a in answers])
    pairs: Any = [([{"role": "user", "content": "?"}], f"right {i}", f"wrong {i}") for i in range(4)]
    figure = truth_accuracy(None, None, pairs, None)  # type: ignore[arg-type]
    assert (figure["mean"], figure["n"]) == (0.625, 4)


# ---- answers to the same prompts ---------------------------------------------------------------------------------


def rows(**scores: float) -> list[dict[str, Any]]:
    return [{"prompt_id": name, "kind": "helpful", "score": score} for name, score in scores.items()]


def test_answers_are_joined_by_prompt_in_any_order():
    both = joined(rows(a=1, b=2, c=3), rows(c=30, a=10, b=20))
    assert [(x["score"], y["score"]) for x, y in both] == [(1, 10), (2, 20), (3, 30)]
    assert joined() == []


@pytest.mark.parametrize("left, right, words", [
    (rows(a=1, b=2), rows(a=1), "'b' is on one side only"),
    (rows(a=1), rows(z=1), "is on one side only"),
    (rows(a=1) * 2, rows(a=1), "stands twice"),
    ([{"kind": "helpful", "score": 1}], [{"kind": "helpful", "score": 1}] * 2, "cannot be compared"),
    ([{"kind": "helpful", "score": 1}], [{"kind": "unsafe", "score": 1}], "cannot be compared"),
])
def test_answers_to_other_prompts_are_refused(left, right, words):
    with pytest.raises(LabError, match=words):
        joined(left, right)


def test_every_comparison_joins_by_prompt(tmp_path):
    """Reports, notebooks and the judges of real text: the same answers in another order are still ties."""
    one, other = rows(a=2.0, b=-1.0, c=0.5), rows(c=0.5, b=-1.0, a=2.0)
    for stage, kept in (("sft", one), ("rlhf-v5", other)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    gap_shown = paired_gap([tmp_path], "rlhf-v5", "sft", {"stages": {}})
    assert gap_shown["low"] == gap_shown["high"] == 0.0
    kept = {"sft": one, "gatt": one, "rlhf-v5": other, "rlhf-v3": other}
    lab: Any = object.__new__(type("Kept", (Finished,), {"rows": lambda self, stage, file: kept[stage]}))
    assert outcomes(lab) == ["tie"] * 3 and gap(lab, "rlhf-v5", "sft", "helpful")["std"] == 0.0
    assert single_turn(lab)["std"] == 0.0
    real = [[{**row, "skill": "real", "helpfulness": row["score"], "safety": 0.0, "answer": "x"} for row in side]
            for side in (one, other)]
    assert compare(*real)["win_rate_vs_sft"]["mean"] == 0.5 and compare(*real)["win_rate_vs_sft"]["std"] == 0.0


def test_rows_are_spread_evenly_and_shared_out():
    ten = [{"i": i} for i in range(10)]
    assert [row["i"] for row in evenly(ten, 4)] == [0, 2, 5, 7] and evenly(ten, 10) == evenly(ten, 99) == ten
    assert shared_out([10, 10, 10], 10) == [4, 3, 3] and shared_out([2, 10, 10], 10) == [2, 4, 4]
    assert shared_out([1, 2], 10) == [1, 2] and shared_out([0, 5], 3) == [0, 3]
