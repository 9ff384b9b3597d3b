"""What notebook 10 shows of its experiments and of the run: series for `shown.show`, tables, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import Table, side, signed
from llama2lab.report.summary import difference, figure_text, find, metrics, short_name
from llama2lab.stages.evaluate import TIE
from llama2lab.stages.rounds import ROUNDS


def costs(lab: Finished) -> list[dict[str, Any]]:
    """Seconds of each round of the run, by what they were spent on; fine-tuning includes its measurement."""
    kinds = (
        ("preferences", "preferences-v{}"),
        ("helpfulness reward", "reward-helpfulness-v{}"),
        ("safety reward", "reward-safety-v{}"),
        ("sampling", "samples-v{}"),
        ("tuning", "rlhf-v{}"),
    )
    stages = lab.figures["stages"]
    rows = []
    for number in ROUNDS:
        row = {name: stages.get(pattern.format(number), {}).get("seconds") for name, pattern in kinds}
        rows.append({"round": number, **row, "all": sum(x or 0 for x in row.values())})
    return rows


def costs_table(lab: Finished) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `costs`."""
    rows = costs(lab)
    names = [name for name in rows[0] if name != "round"] if rows else []
    return ["round", *names], [
        [f"V{row['round']}", *("-" if row[n] is None else f"{row[n]:.0f} s" for n in names)] for row in rows
    ]


def versions_table(lab: Finished, stages: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Claim 22: true helpfulness and safety, and wins against SFT (a tie is half), by version."""
    columns = (
        ("helpfulness", "true helpfulness"),
        ("correct", "right answers"),
        ("safety", "true safety"),
        ("violation_rate", "violations"),
        ("borderline_refusal_rate", "borderline refused"),
        ("win_rate_vs_sft", "wins against SFT"),
    )
    return (
        ["version", *(words for _, words in columns)],
        [
            [short_name(stage), *(figure_text(metrics(lab.figures, stage).get(key)) for key, _ in columns)]
            for stage in stages
            if metrics(lab.figures, stage).get("helpfulness")
        ],
    )


Series = dict[str, dict[str, stats.Figure]]


def gap(lab: Finished, stage: str, before: str, kind: str) -> stats.Figure:
    """True score of one stage less another's, prompt by prompt on kept answers to held-out prompts of a kind."""
    both = [(a, b) for a, b in lab.answers(stage, before) if a["kind"] == kind]
    return stats.mean([a["score"] - b["score"] for a, b in both], [a["prompt_id"].rsplit("/", 1)[0] for a, _ in both])


def stale_series(lab: Finished, result: dict[str, Any]) -> Series:
    """Accuracy by round: the first reward model, the last, and each round's own, as the run measured it."""
    own = {str(v): f for v in ROUNDS if (f := find(lab.figures, f"reward-helpfulness-v{v}", "accuracy"))}
    return {
        "the first round's": {str(row["round"]): row["old"] for row in result["rounds"]},
        "the last round's": {str(row["round"]): row["new"] for row in result["rounds"]},
        "each round's own": own,
    }


def best_of_series(result: dict[str, Any]) -> Series:
    """True helpfulness by K, and the truly best of the K."""
    return {
        "chosen by the first reward model": {str(row["k"]): row["pick"] for row in result["old"]},
        "chosen by the last one": {str(row["k"]): row["pick"] for row in result["new"]},
        "the truly best of the K": {str(row["k"]): row["ceiling"] for row in result["new"]},
    }


def forgetting_series(result: dict[str, Any]) -> Series:
    """True helpfulness by skill, with the mean over all first."""
    return {
        name: {skill.replace("_", " "): figure for skill, figure in part.items()}
        for name, part in result["choices"].items()
    }


def ceiling_series(result: dict[str, Any]) -> Series:
    return {
        "all answers": {name: part["all"] for name, part in result.items()},
        "right answers only": {name: part["right"] for name, part in result.items()},
    }


def ceiling_table(result: dict[str, Any]) -> Table:
    """`ceiling`, and whether any model beats the demonstrations, over all answers and over right ones."""
    first, rows = result["demonstrations"], []
    for name, part in result.items():
        right = difference(part["right"], first["right"]) or part["right"]
        said = [
            f"{signed(part['gap'], 2)}: {side(part['gap'], 'above', 'below', 'level')}",
            f"{signed(right, 2)}: {side(right, 'better', 'worse', 'no different')}",
        ]
        figures = [figure_text(part[key]) for key in ("all", "correct", "right")]
        rows.append([name, *figures, *(said if part is not first else ("", ""))])
    header = ("who answers", "true helpfulness", "right", "of right answers")
    return Table((*header, "less the demonstrations", "right answers less theirs"), rows)


def better_and_worse(lab: Finished, stage: str = "rlhf-v5", before: str = "sft") -> Table:
    """On how many helpful prompts a version is better and worse than another, and by how much there."""
    gaps = [new["score"] - old["score"] for new, old in lab.answers(stage, before) if new["kind"] == "helpful"]
    parts = (("better", [g for g in gaps if g > TIE]), ("worse", [g for g in gaps if g < -TIE]))
    rows = [
        [words, f"{len(some)} of {len(gaps)}", figure_text(stats.mean(some)) if some else "-"] for words, some in parts
    ]
    less = f"{short_name(stage)} less {short_name(before)} there"
    return Table((f"{short_name(stage)} against {short_name(before)}", "prompts", less), rows)
