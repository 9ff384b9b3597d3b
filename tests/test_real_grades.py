"""Grades and margins of people's pairs: names, a difference of scores, or two scores, with the cuts that are stated."""

import json
import re
from dataclasses import replace

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.run.presets import RealRecipe, load_real_recipe
from llama2lab.run.realdata import SourceSettings, graded, load_role
from llama2lab.run.realsplits import Texts, margins_amiss
from llama2lab.stages.reward import RewardSettings

CUTS = (2.0, 1.0, 0.5)


def pair(**more):
    return {"prompt": "Well?", "chosen": "Yes.", "rejected": "No.", **more}


def graded_file(tmp_path, rows, **settings):
    """The grades of the rows of a file, and the tally."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({**r, "prompt": f"Well {i}?"}) + "\n" for i, r in enumerate(rows))
    )
    settings["columns"] = {"prompt": "prompt", **settings["columns"]}
    rows, tally = load_role("helpful", SourceSettings(("pairs.jsonl",), **settings), tmp_path, max_malformed=0.9)
    return [row["grade"] for row in rows], tally


def test_cuts_are_the_least_differences():
    grades = {
        9.0: "significantly",
        2.0: "significantly",
        1.99: "better",
        1.0: "better",
        0.5: "slightly",
        0.0: "negligibly",
    }
    assert {d: graded(d, CUTS) for d in grades} == grades


def test_a_margin_column_with_the_reports_names(tmp_path):
    rows = [pair(how="Significantly"), pair(how="slightly "), pair(how="hardly")]
    grades, tally = graded_file(tmp_path, rows, columns={"margin": "how"})
    assert grades == ["significantly", "slightly"]
    assert tally.places == {"margin is no number": ["pairs.jsonl:3"]}


def test_a_margin_column_with_differences_of_scores(tmp_path):
    rows = [pair(delta=3), pair(delta="0.7"), pair(delta=-1), pair(delta=True), pair(), pair(delta="nan")]
    grades, tally = graded_file(tmp_path, rows, columns={"margin": "delta"}, cuts=CUTS)
    assert grades == ["significantly", "slightly"]
    assert tally.reasons == {
        "the rejected answer has the higher score": 1, "margin is no number": 2, "no field 'delta'": 1,
    }  # fmt: skip


def test_a_pair_of_scores_as_ultrafeedback_has_them(tmp_path):
    rows = [
        pair(score_chosen=8.5, score_rejected=6.0),
        pair(score_chosen=7.0, score_rejected=7.0),
        pair(score_chosen=1),
    ]
    columns = {"chosen_score": "score_chosen", "rejected_score": "score_rejected"}
    grades, tally = graded_file(tmp_path, rows, columns=columns, cuts=CUTS)
    assert grades == ["significantly", "negligibly"]
    assert tally.places == {"no field 'score_rejected'": ["pairs.jsonl:3"]}


def test_numbers_without_cuts_stop_the_run_with_the_line_and_the_cure(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair(delta=3)) + "\n")
    source = SourceSettings(("pairs.jsonl",), columns={"prompt": "prompt", "margin": "delta"})
    with pytest.raises(LabError, match=r"gives no cuts such as \[2, 1, 0\.5\] \(pairs\.jsonl:1\)"):
        load_role("helpful", source, tmp_path)


@pytest.mark.parametrize(
    ("margin", "grades", "says"),
    [
        ("none", ("better", "slightly"), "set it to small to train by them"),
        (
            "small",
            ("better", "better"),
            r"name their grades in data\.helpful\.columns, or set helpfulness\.margin to none",
        ),
        ("none", ("better", "better"), ""),
        ("small", ("better", "slightly"), ""),
    ],
)
def test_margins_and_grades_that_do_not_go_together_are_said(margin, grades, says):
    pairs = {"helpfulness": [{"grade": g} for g in grades], "safety": [{"grade": "better"}]}
    texts = Texts([], [], [], pairs, [], {})
    said = margins_amiss(replace(RealRecipe(), helpfulness=RewardSettings(margin=margin)), texts)
    assert (len(said) == 1 and re.search(says, said[0])) if says else said == []


TEXT = """data:
  pretrain: {files: [a.txt]}
  sft: {files: [a.jsonl]}
  helpful:
    files: [a.jsonl]
    columns: {margin: delta}
    cuts: [2, 1, 0.5]
  harmless: {files: [a.jsonl]}
pretrain:
  model: {vocab_size: 512, dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, max_seq_len: 512}
"""


@pytest.mark.parametrize(
    ("before", "after", "line", "says"),
    [
        ("[2, 1, 0.5]", "[1, 2, 3]", 7, "cuts must be three numbers above 0, the largest first, such as [2, 1, 0.5]"),
        ("[2, 1, 0.5]", "[2, 1]", 7, "cuts must be three numbers"),
        ("[2, 1, 0.5]", "[2, 1, 0]", 7, "cuts must be three numbers"),
        ("{margin: delta}", "{chosen: better}", 7, "cuts is for scores; name a margin column"),
        ("{margin: delta}", "{chosen_score: a}", 6, "columns names chosen_score alone; give both"),
        ("{margin: delta}", "{margin: a, grade: b}", 6, "columns names grade and margin, which say the same"),
        (
            "{margin: delta}\n    cuts: [2, 1, 0.5]",
            "{chosen_score: a, rejected_score: b}",
            6,
            "cuts must be three differences of the scores",
        ),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, before, after, line, says):
    file = tmp_path / "r.yaml"
    file.write_text(TEXT)
    assert load_real_recipe(file).data.helpful.cuts == CUTS
    file.write_text(TEXT.replace(before, after))
    with pytest.raises(LabError) as e:
        load_real_recipe(file)
    assert str(e.value).startswith(f"{file}:{line}: ") and says in str(e.value), e.value
