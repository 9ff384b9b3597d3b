"""What notebook 00 measures live: the first twenty questions."""

from __future__ import annotations

from typing import Any

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.stages.evaluate import answer_prompts, judge_all


def twenty_questions(
    lab: Finished, stage: str = "rlhf-v5", n: int = 20, temperature: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Held-out questions of all skills to one stage, judged by the oracle: share right, and every answer. Some
    seconds."""
    prompts = lab.prompts(helpful=n, seed=seed)
    answers = answer_prompts(lab.model(stage), lab.tokenizer, prompts, temperature, seed, "fp32", f"asking {stage}")
    verdicts = judge_all(lab.oracle, prompts, answers)
    rows = []
    for p, answer, verdict in zip(prompts, answers, verdicts, strict=True):
        said = " / ".join(m["content"] for m in p.messages)
        rows.append([p.skill.replace("_", " "), said, answer, "right" if verdict.correct else "wrong"])
    return {"right": stats.rate([v.correct for v in verdicts]), "rows": rows}
