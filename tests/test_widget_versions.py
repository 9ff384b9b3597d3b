"""The versions explorer: its plane, its questions, its answers."""

import json

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n10_rounds import widget_versions as v


def figure(mean):
    return {"mean": mean, "low": mean - 0.2, "high": mean + 0.2, "n": 100}


def answer(prompt, kind, text, score):
    return {
        "prompt_id": prompt,
        "skill": "facts",
        "kind": kind,
        "correct": True,
        "score": score,
        "answer": text,
        "messages": [{"role": "user", "content": f"{prompt}?"}],
    }


@pytest.fixture
def run(tmp_path):
    """Three versions, of which two kept their answers."""
    stages = {}
    for i, stage in enumerate(("sft", "rlhf-v1", "rlhf-v2")):
        stages[stage] = {
            "metrics": {"helpfulness": figure(1 + i), "safety": figure(i / 2), "win_rate_vs_sft": figure(0.6)}
        }
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "stage.json").write_text("{}")
        if stage != "rlhf-v2":
            rows = [
                answer("same", "helpful", f"{stage} same", 1.0),
                answer("far", "helpful", f"<i>{stage}</i>", 2.0 * i),
                answer("bad", "unsafe", f"{stage} no", 1.0),
            ]
            (tmp_path / stage / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps({"preset": "mini", "seed": 0, "stages": stages}))
    return Finished(tmp_path)


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr("llama2lab.lab.finished.SHIPPED", tmp_path / "nothing")


def test_versions_and_answers_are_those_of_the_run(run):
    assert [x.name for x in v.versions(run)] == ["SFT", "V1", "V2"]
    assert list(v.answers(run)) == ["sft", "rlhf-v1"]


def test_questions_on_which_versions_differ_come_first(run):
    assert v.questions(v.answers(run), "helpful") == [("far?", 1), ("same?", 0)]
    assert v.questions(v.answers(run), "unsafe") == [("bad?", 2)]
    assert v.questions({}, "helpful") == []


def test_the_controls_change_what_is_seen(run):
    explorer = v.VersionsExplorer(run)
    assert "V2: helpfulness" in explorer.static() and explorer.static().count("<circle") == 3
    explorer.version.value = 0
    assert "SFT: helpfulness" in explorer.static() and "rlhf-v1" not in explorer.static()
    explorer.version.value = 1
    assert "&lt;i&gt;rlhf-v1" in explorer.static() and "<i>" not in explorer.static()
    explorer.kind.value = "unsafe"
    assert "rlhf-v1 no" in explorer.static() and "bad?" in explorer.static()
    explorer.kind.value = "borderline"  # this run kept none
    assert explorer.prompt.value is None and "<svg" in explorer.static()


def test_a_run_without_versions_says_so(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results.json").write_text('{"preset": "mini", "stages": {}}')
    with pytest.raises(LabError, match="no version"):
        v.VersionsExplorer(Finished(tmp_path))
