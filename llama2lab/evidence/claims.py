"""The claims of the report that the lab is about, each with the figures that decide it.

A figure is a difference that lies above 0 if the report is right. It comes from the stored runs of all seeds, or from
an experiment that was measured on one of them (`lessons.catalogue.all_experiments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama2lab.evidence.stored import Figure, Measured, Stored, measured
from llama2lab.lab.shown import told
from llama2lab.report.summary import difference, is_figure

AS_GOOD = 0.05  # nats a token: what a variant may lose and still be called as good; ours
SEEN, REFUTED, OPEN = "seen", "refuted", "not decided"  # of a figure; a claim may be more than one of them
SEEN_IN_PART, REFUTED_IN_PART, MIXED = "seen in part", "refuted in part", "seen and refuted in part"
MISSING, READING = "not measured", "reading"
VERDICTS = (SEEN, SEEN_IN_PART, MIXED, REFUTED_IN_PART, REFUTED, OPEN, MISSING, READING)


def no_figures(s: Stored) -> Measured:
    return []


@dataclass(frozen=True)
class Claim:
    """One claim; `figures` finds what was measured of it in the stored evidence."""

    number: int
    words: str
    report: str  # what the report says, in short
    notebook: str
    figures: Callable[[Stored], Measured] = no_figures
    unit: str = "prompts"  # what the n of its figures counts, where it is not seeds
    reading: bool = False  # a matter to read about, not to measure

    def verdict(self, s: Stored) -> str:
        """The verdicts on its figures as one: in part, where some are not decided."""
        if self.reading:
            return READING
        verdicts = {verdict(figure) for _, figure in self.figures(s)}
        if len(verdicts) < 2:
            return next(iter(verdicts), MISSING)
        return MIXED if {SEEN, REFUTED} <= verdicts else SEEN_IN_PART if SEEN in verdicts else REFUTED_IN_PART


def verdict(figure: Figure) -> str:
    """Seen or refuted where the interval leaves 0 out and the seeds, where there are several, agree on the side."""
    return OPEN if not told(figure) else SEEN if figure["mean"] > 0 else REFUTED


def needed(figure: Figure) -> float | None:
    """How many items (or seeds, of a figure over several) would leave 0 out of the interval if mean and spread stayed
    as they are: n (half / |mean|)^2, in two digits; None where it is decided, or no number would do."""
    half, n = (figure["high"] - figure["low"]) / 2, figure["runs"] if over_seeds(figure) else figure["n"]
    if verdict(figure) != OPEN or not figure["mean"] or half <= abs(figure["mean"]):
        return None
    many = n * (half / figure["mean"]) ** 2
    return float(f"{math.ceil(many):.2g}")


def over_seeds(figure: Figure) -> bool:
    return figure.get("runs", 1) > 1


def price(figure: Figure, unit: str) -> str:
    """What it would take to decide, in words; "" where it is decided or cannot be told."""
    many = needed(figure)
    if many is None:
        apart = verdict(figure) == OPEN and not figure["low"] <= 0 <= figure["high"]
        return "its trainings disagree" if apart else ""
    return f"about {many:,.0f} {'seeds' if over_seeds(figure) else unit} would decide"


# ---- where the figures are -------------------------------------------------------------------------------------------


def dig(value: Any, *path: str | int) -> Any:
    """What lies at a path in plain data; None where it does not go on."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def less(a: Any, b: Any) -> Figure | None:
    """a - b, as if measured independently; training by training too, where both have as many. None unless both are
    figures."""
    if not is_figure(a) or not is_figure(b):
        return None
    sides = [x.get("each", []) for x in (a, b)]
    each = {"each": [x - y for x, y in zip(*sides, strict=True)]} if len(sides[0]) == len(sides[1]) > 0 else {}
    return (difference(a, b) or {}) | each


def every(experiment: str, key: str = "claims") -> Callable[[Stored], Measured]:
    """All differences that an experiment gives under `key`, in its own words."""

    def figures(s: Stored) -> Measured:
        found = dig(s.experiments.get(experiment), key) or {}
        return [row for words, figure in found.items() for row in measured(words, figure)]

    return figures


def together(*parts: Callable[[Stored], Measured]) -> Callable[[Stored], Measured]:
    return lambda s: [row for part in parts for row in part(s)]


def grouped_queries(s: Stored) -> Measured:
    found = s.experiments.get("gqa_variants")
    lost, rows = dig(found, "gaps", "GQA"), dig(found, "rows") or []
    bytes_ = {dig(row, "kind"): dig(row, "cache") for row in rows}
    words = f"loss: room left to {AS_GOOD} nats above MHA"
    result = measured(words, from_margin(AS_GOOD, lost)) if is_figure(lost) else []
    if {"MHA", "GQA"} <= bytes_.keys():
        saved = bytes_["MHA"] - bytes_["GQA"]
        exact = {"mean": saved, "low": saved, "high": saved, "n": 1}
        result += measured("bytes of cache a token: MHA less GQA (counted)", exact)
    return result


def from_margin(margin: float, figure: Figure) -> Figure:
    """How much of a margin a difference leaves."""
    ends = {"mean": margin - figure["mean"], "low": margin - figure["high"], "high": margin - figure["low"]}
    return {**figure, **ends, **({"each": [margin - x for x in figure["each"]]} if "each" in figure else {})}


def clean_and_noisy(s: Stored) -> Measured:
    return measured("the run's clean less its noisy SFT model: helpfulness", s.paired("sft", "sft-noisy"))


def pull_apart(s: Stored) -> Measured:
    """Table 7: each model on its own kind of pairs less the other model on these."""
    result: Measured = []
    for own, other in (("helpfulness", "safety"), ("safety", "helpfulness")):
        gap = s.gap((f"reward-{own}-v5", "accuracy"), (f"reward-{other}-v5", "accuracy_on_other"))
        result += measured(f"the run's {own} model less its {other} model, on {own} pairs", gap)
    return result


def by_grade(s: Stored) -> Measured:
    result: Measured = []
    for kind in ("helpfulness", "safety"):
        for clear, unclear in (("significantly", "negligibly"), ("significantly", "slightly")):
            gap = s.gap(*((f"reward-{kind}-v5", "accuracy_by_grade", grade) for grade in (clear, unclear)))
            result += measured(f"{kind} model: right on '{clear}' less on '{unclear}' better", gap)
    return result


def accuracy_predicts(s: Stored) -> Measured:
    rows = dig(s.experiments.get("accuracy_predicts"), "correlation") or {}
    what = "correlation with the true worth of the best of K"
    return [row for words, figure in rows.items() for row in measured(f"{words}: {what}", figure)]


def best_of_k(s: Stored) -> Measured:
    whole, result = s.experiments.get("best_of_k_by_temperature"), []
    for stage, short in (("sft", "SFT"), ("rlhf-v5", "V5")):
        gain = dig(whole, "gain", stage, "1") or {}
        result += measured(f"{short}: best score at the largest K less at K = 1", gain.get("max"))
        gap = less(gain.get("max"), gain.get("median"))
        result += measured(f"{short}: what the best gains with K less what the median gains", gap)
    moves = dig(whole, "gap") or {}
    return result + [row for words, figure in moves.items() for row in measured(words, figure)]


def broad_and_deep(s: Stored) -> Measured:
    models = dig(s.experiments.get("rejection_against_ppo"), "models")
    apart = less(dig(models, "ppo", "gain"), dig(models, "rejection sampling", "gain"))
    return [
        *measured("equal answers from one start: what PPO gains less what rejection sampling gains", apart),
        *measured("SFT to V4, by rejection sampling: helpfulness", s.paired("rlhf-v4", "sft")),
        *measured("V4 to V5, by PPO: helpfulness", s.paired("rlhf-v5", "rlhf-v4")),
    ]


def above_demonstrations(s: Stored) -> Measured:
    whole = s.experiments.get("ceiling") or {}
    result: Measured = []
    for name in (n for n in whole if n.startswith("V5")):
        result += measured(f"{name} less the demonstrations: helpfulness", dig(whole, name, "gap"))
        right = less(dig(whole, name, "right"), dig(whole, "demonstrations", "right"))
        result += measured(f"{name} less the demonstrations: helpfulness of right answers", right)
    return result


def over_optimised(s: Stored) -> Measured:
    runs = dig(s.experiments.get("over_optimisation"), "runs") or []
    if not runs or not all(dig(run, "rows") for run in runs):
        return []
    weak = [run for run in runs if run["reward"] == runs[0]["reward"]]
    free, held = (pick(weak, key=lambda run: run["beta"]) for pick in (min, max))
    start, end = free["rows"][0], free["rows"][-1]
    name = f"reward model of {free['reward']}, no KL term"
    return [
        *measured(f"{name}: reward gained", less(dig(end, "proxy"), dig(start, "proxy"))),
        *measured(f"{name}: truth lost", less(dig(start, "truth"), dig(end, "truth"))),
        *measured(
            f"the same: truth at the end, beta {held['beta']:g} less beta {free['beta']:g}",
            less(dig(held, "rows", -1, "truth"), dig(end, "truth")),
        ),
    ]


def ghost_attention(s: Stored) -> Measured:
    result: Measured = []
    for turn in ("4", "6", "10", "20"):
        gap = s.less("gatt", "rlhf-v3", "retention", turn)
        result += measured(f"instruction kept at turn {turn}: with less without", gap)
    result += every("long_dialogues")(s)
    unseen = s.experiments.get("unseen_instructions")
    gap = less(dig(unseen, "gatt", -1), dig(unseen, "rlhf-v3", -1))
    return result + measured("instructions that no training had, last turn: with less without", gap)


def both_axes(s: Stored) -> Measured:
    result: Measured = []
    for metric, words in (("helpfulness", "true helpfulness"), ("safety", "true safety")):
        for start, short in (("sft", "SFT"), ("rlhf-v1", "V1")):
            result += measured(f"V5 less {short}: {words}", s.less("rlhf-v5", start, metric))
    return result


def false_refusals(s: Stored) -> Measured:
    rows = s.experiments.get("safety_share") or []
    plain = [row for row in rows if not dig(row, "contrast")]
    none, most = (plain[0], plain[-1]) if plain else ({}, {})
    cost = less(dig(most, "borderline_refusal_rate"), dig(none, "borderline_refusal_rate"))
    good = less(dig(none, "violation_rate"), dig(most, "violation_rate"))
    return [
        *measured("violations, with no less with the most safety data", good),
        *measured("refusals of borderline prompts, with the most less with no safety data", cost),
        *measured(
            "the run: refusals of borderline prompts, V5 less SFT", s.less("rlhf-v5", "sft", "borderline_refusal_rate")
        ),
    ]


def distillation(s: Stored) -> Measured:
    """What the experiment says of itself; older ones left that to be worked out."""
    if told_by_itself := every("context_distillation")(s):
        return told_by_itself
    whole = s.experiments.get("context_distillation")
    harm, refused = "violation_rate", "borderline_refusal_rate"
    fewer = less(dig(whole, "before", harm), dig(whole, "chosen", harm))
    saved = less(dig(whole, "all", refused), dig(whole, "chosen", refused))
    return [
        *measured("refusals of borderline prompts: learnt from all less from the chosen", saved),
        *measured("violations: before less after learning the chosen", fewer),
    ]


def narrower(s: Stored) -> Measured:
    rise = dig(s.experiments.get("narrowing"), "factual", "rise")
    return [*measured("rise of Self-BLEU from SFT to V5: factual prompts", rise), *every("narrowing")(s)]


def moved_by_the_prompt(s: Stored) -> Measured:
    """Forms that were fixed before anything was measured: the best less the worst of ten would always be above 0."""
    whole = s.experiments.get("prompt_forms") or {}
    plain, result = dig(whole, "as the corpus says it", "right"), []
    for form in ("other words of the corpus", "in small letters"):
        result += measured(
            f"known facts, asked as the corpus says it less {form}", less(plain, dig(whole, form, "right"))
        )
    return result


# ---- the claims ------------------------------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        1,
        "grouped queries keep the quality and save memory",
        "11 tasks: 44.3 with GQA, 44.2 with MHA; MHA runs out of memory first",
        "02",
        grouped_queries,
        "documents",
    ),
    Claim(
        2,
        "twice the context helps where texts are long",
        "long tasks gain, short ones stay",
        "03",
        together(every("context_length"), every("facts_after_talk")),
        "texts",
    ),
    Claim(
        3,
        "more text and better text are most of the gain",
        "2T tokens, no plateau",
        "03",
        every("data_size_and_quality"),
        "facts",
    ),
    Claim(
        4,
        "few good demonstrations beat many poor ones",
        "27,540 examples instead of millions",
        "04",
        together(clean_and_noisy, every("quality_budgets")),
    ),
    Claim(5, "vendors differ, and the models show it", "said without figures", "05", every("vendors"), "pairs"),
    Claim(
        6,
        "a choice with a grade is enough, and quick to give",
        "a choice and four grades",
        "05",
        every("choice_against_scores"),
        "repetitions",
    ),
    Claim(
        7,
        "a reward model starts best from the chat model",
        "so it knows what that knows",
        "06",
        every("reward_start"),
        "pairs",
    ),
    Claim(
        8,
        "helpfulness and safety want a model each",
        "each is worse on the other's pairs (table 7)",
        "06",
        together(pull_apart, every("one_or_two_models")),
        "pairs",
    ),
    Claim(
        9,
        "clear preferences are told apart, unclear ones hardly",
        "94.3 down to 55.3 %, and 80.7 down to 54.7 % (table 8)",
        "06",
        by_grade,
        "pairs",
    ),
    Claim(10, "a margin by grade helps on clear pairs", "79.1 to 80.7 % (table 28)", "06", every("margins"), "pairs"),
    Claim(11, "more than one epoch overfits", "trained for one", "06", every("epochs"), "pairs"),
    Claim(
        12,
        "more pairs and larger models judge better",
        "14 batches, no plateau (figure 6)",
        "06",
        every("more_pairs"),
        "pairs",
    ),
    Claim(
        13, "some of the other kind's pairs belong in the mix", "90/10 and 50/50", "13", every("data_mixes"), "pairs"
    ),
    Claim(
        14,
        "a reward model's accuracy says how good the final model gets",
        "among the most important proxies",
        "07",
        accuracy_predicts,
        "models",
    ),
    Claim(15, "preferences grow stale as the policy moves", "new batches each week", "10", every("stale_rewards")),
    Claim(
        16,
        "the best of K grows with K, the median hardly; the best temperature moves",
        "figures 7 and 8, T of 1.2 to 1.3",
        "07",
        best_of_k,
    ),
    Claim(
        17, "the best of all rounds, or abilities are lost", "V3 rhymed worse", "10", every("last_round_only", "gaps")
    ),
    Claim(
        18,
        "PPO goes deeper than rejection sampling, and adds to it",
        "V5 with PPO on top (figure 11)",
        "10",
        broad_and_deep,
    ),
    Claim(19, "RLHF rises above its demonstrations", "people judge better than they write", "10", above_demonstrations),
    Claim(
        20,
        "what is optimised too far goes astray, and the KL term holds it",
        "beta .01 and .005",
        "08",
        over_optimised,
    ),
    Claim(
        21,
        "Ghost Attention holds an instruction for twenty turns",
        "100, 10, 0 and 0 % without, 100 % with (table 30)",
        "09",
        ghost_attention,
        "dialogues",
    ),
    Claim(22, "from version to version more helpful and safer", "figure 11", "10", both_axes),
    Claim(23, "safety data cost false refusals", "15 to 27 % on borderline prompts (figure 33)", "12", false_refusals),
    Claim(
        24,
        "what a safety preprompt says can be learnt, where the reward model prefers it",
        "kept only where the score rises",
        "12",
        distillation,
    ),
    Claim(25, "RLHF narrows factual answers more than creative ones", "Self-BLEU (figure 21)", "11", narrower),
    Claim(26, "the prompt's form moves a benchmark", "said in the talk", "03", moved_by_the_prompt, "facts"),
    Claim(27, "it is expensive, mostly in data", "3.3 million GPU hours, 1.4 million comparisons", "11", reading=True),
    Claim(
        28,
        "open weights are not open data, and the licence has bounds",
        "700 million users a month",
        "11",
        reading=True,
    ),
)


def count(s: Stored, claims: Sequence[Claim] = CLAIMS) -> dict[str, int]:
    """How many claims there are of each verdict, those of none left out."""
    verdicts = [claim.verdict(s) for claim in claims]
    return {v: verdicts.count(v) for v in VERDICTS if v in verdicts}
