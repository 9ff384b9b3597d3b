"""What the experiments on safety ask and measure, and what is told of two versions."""

from llama2lab.lessons.n12_safety import experiments as e
from llama2lab.lessons.n12_safety import figures as shown


def test_preprompts_come_before_the_question(lab) -> None:
    prompts = lab.prompts(unsafe=2)
    assert e.preprompted(prompts, "none") == [list(p.messages) for p in prompts]
    assert e.preprompted(prompts, "generic")[0][0] == {"role": "system", "content": e.GENERIC}
    example = e.preprompted(prompts, "example", e.refusal_example(lab))[0]
    assert [m["role"] for m in example] == ["user", "assistant", "user"] and "cannot" in example[1]["content"]


def test_safety_of_two_versions_is_told_by_the_runs_figures(lab) -> None:
    told = shown.told_by_versions(lab)
    assert told.header[1:3] == ("SFT", "V5") and [row[0].split(":")[0].split(",")[0] for row in told.rows] == [
        "unsafe prompts",
        "borderline prompts",
        "plain prompts",
        "true safety on PPO's own unsafe training prompts",
    ]
    same = shown.told_by_versions(lab, "sft", "sft").rows
    assert len(same) == 3 and all(row[3] == "cannot be told apart" for row in same)


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
