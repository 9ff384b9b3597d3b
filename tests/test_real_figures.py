"""What is shown of runs on real text: gathered from finished runs, kept in data/real.json, said by pages, drawn."""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plot_rules import faults
from test_report import NASTY
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError
from llama2lab.evidence import page, real, real_shown
from llama2lab.evidence.stored import Stored

ROOT = Path(__file__).parent.parent


def figure(mean: float, half: float = 0.05, n: int = 100) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def reward(head: str, accuracy: float, truth: float | None = None, pairs: int = 900) -> dict[str, Any]:
    judges = {"longer": figure(0.6), "likelihood_sum": figure(0.45), "likelihood_mean": figure(0.5),
              "random": figure(0.51)}  # fmt: skip
    found: dict[str, Any] = {
        "head": head, "pairs": pairs, "parameters": 106_000_000,
        "accuracy": figure(accuracy), "accuracy_on_other": figure(0.52),
        "baselines": judges, "less_longer": figure(accuracy - 0.6),
        "equal_length": {**{k: figure(0.5, n=11) for k in judges}, "model": figure(0.58, n=11),
                         "less_longer": figure(0.08, n=11)},
        "accuracy_by_grade": {"better": figure(accuracy)},
    }  # fmt: skip
    if truth is not None:
        known = {"likelihood_sum": figure(0.9), "likelihood_mean": figure(0.85)}
        found |= {"truth": figure(truth), "truth_by_likelihood": {"base": known, "sft": known}}
    return found


def policy(wins: float, **more: Any) -> dict[str, Any]:
    asked = [{"prompt": "Why is the sky blue?", "answer": f"{NASTY} {wins}"}, {"prompt": "Well?", "answer": "So."}]
    return {"asked": asked, "win_rate_vs_sft": figure(wins), "words": figure(17.0), **more}


def make_real(folder: Path, parameters: int = 134_515_008, pairs: int = 900, **changes: Any) -> Path:
    stages = {
        "base": {"parameters": parameters, "started_from": f"/home/me/{NASTY.replace('/', '')}-135M"},
        "sft": policy(0.5),
        "judge-helpfulness": {"accuracy": figure(0.63)},
        "reward-helpfulness-v1": reward("linear", 0.66, 0.61, pairs),
        "reward-helpfulness-v1-likelihood": reward("likelihood", 0.65, 0.8, pairs),
        "reward-safety-v1": reward("linear", 0.64),
        "rlhf-v1": policy(0.55),
        "rlhf-v2": policy(0.58, log=[{"iteration": 0}]),
    }
    held = {
        name: {"seconds": 60.0, "peak_memory_mb": 4000.0 + i, "metrics": stages[name]} for i, name in enumerate(stages)
    }
    whole = {
        "preset": "real", "recipe": NASTY, "seed": 0, "split": "test", "machine": {"cpu": NASTY, "cores": 2},
        "stages": held, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"preset": whole["preset"], "recipe": NASTY, "seed": 0}))
    (folder / "results.json").write_text(json.dumps(whole))
    return folder


def test_what_is_kept_of_a_run(tmp_path):
    found = real.real_figures(make_real(tmp_path / "r"))
    assert found["minutes"] == 7.0 and found["other_head_minutes"] == 1.0 and found["memory_mb"] == 4007.0
    assert real.cost_words(found) == "7 minutes and 1 for the other head, 4.0 GB"
    quick = real.cost_words({**found, "other_head_minutes": 0.4})
    assert quick == "7 minutes and less than one for the other head, 4.0 GB"
    assert found["start_from"].endswith("-135M") and "/" not in found["start_from"]
    assert [(r["kind"], r["head"], r["pairs"]) for r in found["rewards"]] == [
        ("helpfulness", "linear", 900), ("helpfulness", "likelihood", 900), ("safety", "linear", 900),
    ]  # fmt: skip
    assert found["rewards"][0]["known"] == {"base": figure(0.9), "sft": figure(0.9)}
    assert found["rewards"][0]["equal_length"]["model"]["n"] == 11 and "truth" not in found["rewards"][2]["figures"]
    assert [(p["stage"], p["method"]) for p in found["policies"]] == [
        ("sft", "fine-tuning"), ("rlhf-v1", "rejection sampling"), ("rlhf-v2", "PPO"),
    ]  # fmt: skip
    assert found["samples"][1] == {"prompt": "Well?", "answers": dict.fromkeys(("sft", "rlhf-v1", "rlhf-v2"), "So.")}


def test_the_smallest_model_comes_first_and_all_is_read_again(tmp_path):
    runs = [make_real(tmp_path / "large"), make_real(tmp_path / "small", 2_000_000)]
    path = real.write_real(runs, tmp_path)
    assert [run["parameters"] for run in real.read_real(tmp_path)] == [2_000_000, 134_515_008]
    before = path.read_text()
    assert real.write_real(runs, tmp_path).read_text() == before
    assert real.read_real(tmp_path / "nowhere") == []


def test_runs_of_one_model_are_told_apart_by_their_pairs(tmp_path):
    runs = [make_real(tmp_path / "more", pairs=2_700), make_real(tmp_path / "few")]
    real.write_real(runs, tmp_path)
    found = real.read_real(tmp_path)
    assert [real.pairs_of(run) for run in found] == [900, 2_700]
    said = [real.truth_words(row) for row in real.truth_rows(found, None)]
    assert said == [f"135 million, the world's facts, {pairs} pairs" for pairs in ("900", "2,700")]


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "real.json"), ('{"runs": 3}', "real.json: runs"), ('{"runs": [{"recipe": "a"}]}', r"real\.json: runs")],
)
def test_a_damaged_file_is_named_with_the_command_that_writes_it(tmp_path, text, says):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(LabError, match=rf"{says}.*real-figures RUN\.\.\. --write"):
        real.read_real(tmp_path)


def test_what_is_no_finished_run_on_real_text_is_said(tmp_path):
    with pytest.raises(LabError, match=r"not a finished run .*llama2lab run --out"):
        real.real_figures(tmp_path)
    with pytest.raises(LabError, match="is a run on the town"):
        real.real_figures(make_real(tmp_path / "town", preset="mini"))
    stages = {"base": {"seconds": 1.0, "metrics": {"parameters": 9}}}
    with pytest.raises(LabError, match="of an older version, without baselines"):
        real.real_figures(make_real(tmp_path / "old", stages=stages))


def row(linear: float | None, known: float | None = 0.9) -> dict[str, Any]:
    def of(x: float | None) -> dict[str, Any] | None:
        return None if x is None else figure(x)

    return {"parameters": 1, "facts": "the world's", "linear": of(linear), "likelihood": of(0.8), "base": of(known)}


def test_the_answer_follows_from_the_intervals():
    assert "not tried" in real.answer(row(None))
    assert "does not know these facts itself" in real.answer(row(0.9, 0.52))
    assert "no surer of the truth than a coin" in real.answer(row(0.54))
    assert "less than the untouched model knows" in real.answer(row(0.7))
    assert real.answer(row(0.85)) == "it sees the truth" == real.answer(row(0.85, None))


def test_sizes_in_words():
    said = {134_515_008: "135 million", 1_660_320: "1.7 million", 260_032: ".26 million", 13e9: "13000 million"}
    assert {n: real.millions(n) for n in said} == said


TOWN = {"stages": {"base": {"metrics": {"parameters": 1_660_320}},
                   "reward-helpfulness-v5": {"metrics": {"truth": figure(0.94, n=2000)}},
                   "reward-helpfulness-v5-linear": {"metrics": {"truth": figure(0.5, n=2000)}}}}  # fmt: skip


def test_truth_by_head_and_size_marks_whose_facts_they_are(tmp_path):
    rows = real.truth_rows([real.real_figures(make_real(tmp_path / "r"))], TOWN)
    assert [(r["parameters"], r["facts"]) for r in rows] == [(1_660_320, "the town's"), (134_515_008, "the world's")]
    assert [r["linear"]["mean"] for r in rows] == [0.5, 0.61] and [r["likelihood"]["mean"] for r in rows] == [0.94, 0.8]
    assert rows[0]["base"] is None and rows[1]["base"]["mean"] == 0.9


def test_the_page_says_what_is_stored_and_text_stays_text(tmp_path):
    s = Stored((), real=[real.real_figures(make_real(tmp_path / "r"))])
    text = "\n\n".join(page.real_part(s))
    assert NASTY not in text and "135 million parameters" in text
    assert "which train 106 million of the parameters" in " ".join(text.split())
    assert "| helpfulness, round 1, linear head, 900 pairs | .660 [.610, .710] | .600 [.550, .650] |" in text
    assert "| lengths alike | .580 [.530, .630] | .500 [.450, .550] |" in text and "| 11 |" in text
    assert "`judge-helpfulness` .630 [.580, .680]" in text and "| V2 | PPO | .580 [.530, .630] |" in text
    assert "| more than a coin, less than the untouched model knows |" in text
    assert page.real_part(Stored(())) == []
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


def test_notebooks_show_it_and_texts_stay_text(tmp_path):
    runs = [real.real_figures(make_real(tmp_path / "r"))]
    shown = [*real_shown.rewards_shown(runs), *real_shown.truth_shown(runs), *real_shown.policies_shown(runs)]
    figures = [one for one in shown if isinstance(one, go.Figure)]
    assert len(figures) == 4 and [faults(fig) for fig in figures] == [[]] * 4
    tables = "".join(one._repr_html_() for one in shown if not isinstance(one, go.Figure))
    assert NASTY not in tables and "Why is the sky blue?" in tables and "0.580 [0.530, 0.630]" in tables


def test_where_nothing_is_stored_they_say_how_to_make_it():
    for shown in (real_shown.rewards_shown([]), real_shown.policies_shown([])):
        assert shown == [real_shown.NOTHING] and "llama2lab real-figures RUN... --write" in repr(shown[0])
    table, fig = real_shown.truth_shown([])  # the town's part is there
    assert "the town's" in repr(table) and faults(fig) == []


def test_the_command_prints_and_writes(tmp_path, monkeypatch):
    run = make_real(tmp_path / "r")
    printed = CliRunner().invoke(app, ["real-figures", str(run)])
    assert printed.exit_code == 0 and "## And for real?" in printed.output, printed.output
    monkeypatch.setattr("llama2lab.engine.paths.ROOT", tmp_path)
    refused = CliRunner().invoke(app, ["real-figures", str(run), "--write"])
    assert refused.exit_code == 2 and "is no checkout of llama2lab" in refused.output
    (tmp_path / "README.md").write_text("")
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("llama2lab.evidence.readme.write_pages", lambda root: [root / "docs" / "results.md"])
    written = CliRunner().invoke(app, ["real-figures", str(run), "--write"])
    assert written.exit_code == 0 and "data/real.json" in written.output, written.output
    assert len(real.read_real(tmp_path / "data")) == 1


def test_no_path_of_a_machine_is_stored():
    """What is shipped may name no folder of the machine that made it."""
    path = ROOT / "data" / real.FILE
    assert not path.is_file() or not any(word in path.read_text() for word in ("/home/", "/tmp/", "/Users/"))
