"""Simulated annotators: people who see two answers, perceive their worth with noise and habits, and choose.

The report's annotators choose one of two answers, say how much better it is on a scale of four, and in the safety
stage mark which of the two are safe (section 3.2.1). Here the perceived gap of a pair is

    true gap (oracle) + logistic noise + the annotator's habits (length, position, politeness, formality),

so without habits the choice follows a Bradley-Terry model of the truth (equation 1). The grade is read off the size
of the perceived gap. What is left of the truth shows as in table 8: clear pairs agree, near ones are a coin's toss.
"""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, Kind
from llama2lab.town import language
from llama2lab.town.items import Prompt, Verdict
from llama2lab.town.oracle import Oracle

# Perceived gaps from which a pair is called significantly better, better, slightly better.
CUTS = (2.2, 1.1, 0.4)


@dataclass(frozen=True)
class Biases:
    """Habits, each in units of oracle helpfulness; 0 is no habit."""

    length: float = 0.0  # for 20 words more
    position: float = 0.0  # for the answer shown first
    politeness: float = 0.0  # for an opener and a closer
    formality: float = 0.0  # for long words: for one letter more a word on average
    truth: float = 1.0  # weight of the true gap: below 1 for people who do not check facts


@dataclass(frozen=True)
class Judgement:
    """One judgement of a pair: what an annotator says, not what is true."""

    choice: Literal["a", "b"]
    grade: str  # one of GRADES
    safe_a: bool
    safe_b: bool
    perceived_gap: float  # positive: the first answer looked better

    @property
    def safety(self) -> str:
        """The report's bin of the pair, "" for the one that is never kept: unsafe chosen, safe rejected."""
        chosen, rejected = (self.safe_a, self.safe_b) if self.choice == "a" else (self.safe_b, self.safe_a)
        if chosen:
            return "both_safe" if rejected else "chosen_safe"
        return "" if rejected else "both_unsafe"


@dataclass(frozen=True)
class Annotator:
    """One person of a vendor. ``noise`` is the scale of the logistic noise, in units of oracle helpfulness."""

    name: str
    vendor: str
    noise: float = 0.75
    biases: Biases = field(default_factory=Biases)
    safety_error: float = 0.02  # how often a safe answer is marked unsafe or the other way round
    seed: int = 0

    def label(
        self, prompt: Prompt, answer_a: str, answer_b: str, kind: Kind, verdicts: tuple[Verdict, Verdict]
    ) -> Judgement:
        """The judgement of a pair, the same for the same (seed, name, prompt id, answers, kind).

        ``verdicts`` are the oracle's on the two answers. In a safety task what is true of safety weighs most and
        helpfulness little; in a helpfulness task safety does not count at all.
        """
        rng = random.Random(_digest(str(self.seed), self.name, prompt.id, kind, answer_a, answer_b))
        true_a, true_b = (true_worth(v, kind) for v in verdicts)
        gap = self.biases.truth * (true_a - true_b) + logistic(rng, self.noise)
        gap += self._habit(answer_a) - self._habit(answer_b) + self.biases.position
        safe_a, safe_b = (v.safe != (rng.random() < self.safety_error) for v in verdicts)
        return Judgement("a" if gap > 0 else "b", grade_of(gap), safe_a, safe_b, gap)

    def _habit(self, answer: str) -> float:
        b = self.biases
        if not (b.length or b.politeness or b.formality):
            return 0.0
        tokens = language.words(answer[: language.STYLE_CHARS])
        worth = b.length * len(tokens) / 20
        if b.politeness:
            openers, closers = language.pleasantries(language.sentences(language.tidy(answer)))
            worth += b.politeness * (min(openers, 1) + min(closers, 1)) / 2
        if b.formality and tokens:
            worth += b.formality * (sum(map(len, tokens)) / len(tokens) - 4)
        return worth


def true_worth(verdict: Verdict, kind: Kind) -> float:
    """What an ideal annotator goes by: helpfulness; for safety 1.2 x safety + 0.25 x helpfulness."""
    if kind == "helpfulness":
        return verdict.helpfulness
    return 1.2 * verdict.safety + 0.25 * verdict.helpfulness


def grade_of(gap: float) -> str:
    """The grade for a perceived gap: one of GRADES."""
    for grade, cut in zip(GRADES[:-1], CUTS, strict=True):
        if abs(gap) >= cut:
            return grade
    return GRADES[-1]


def logistic(rng: random.Random, scale: float) -> float:
    """A draw from the logistic distribution with mean 0; scale 0 gives 0."""
    u = min(max(rng.random(), 1e-12), 1 - 1e-12)
    return scale * math.log(u / (1 - u))


# Vendors differ as real ones do; a course can ask whose labels to buy. "careful" checks facts, "hasty" guesses.
VENDORS: dict[str, Annotator] = {
    "careful": Annotator("careful", "careful", noise=0.45, safety_error=0.01),
    "typical": Annotator("typical", "typical"),
    "hasty": Annotator("hasty", "hasty", noise=1.6, biases=Biases(position=0.4), safety_error=0.08),
    "length_biased": Annotator("length_biased", "length_biased", biases=Biases(length=1.2), safety_error=0.03),
    "charmed": Annotator("charmed", "charmed", biases=Biases(politeness=1.2, truth=0.7), safety_error=0.03),
    "formal": Annotator("formal", "formal", biases=Biases(formality=0.5), safety_error=0.02),
}


def annotators_of(vendors: Sequence[str]) -> list[Annotator]:
    """One annotator of each vendor; LabError for a vendor that there is not."""
    for vendor in vendors:
        if vendor not in VENDORS:
            raise LabError(f"annotators: there is no vendor {vendor!r}; choose one of {', '.join(VENDORS)}")
    return [VENDORS[vendor] for vendor in vendors]


def label_pairs(
    annotators: Sequence[Annotator], oracle: Oracle, pairs: Sequence[tuple[Prompt, str, str]], kind: Kind, seed: int = 0
) -> list[dict]:
    """Preference rows for (prompt, answer, answer) triples, each labelled by one annotator in turn.

    The order in which the two answers are shown is drawn by seed, so position habits do not favour either source.
    Equal answers are dropped, and safety pairs whose chosen answer was marked unsafe and the rejected one safe
    (section 3.2.1: none is kept). Rows have the same schema as those that people make.
    """
    if not annotators:
        raise LabError("annotators: nobody is there to label; give at least one annotator")
    rows = []
    for i, (prompt, first, second) in enumerate(pairs):
        if first.strip() == second.strip():
            continue
        rng = random.Random(_digest(str(seed), str(i), prompt.id, first, second))
        shown = (first, second) if rng.random() < 0.5 else (second, first)
        annotator = annotators[rng.randrange(len(annotators))]
        verdicts = (oracle.judge(prompt, shown[0]), oracle.judge(prompt, shown[1]))
        row = preference_row(prompt, *shown, annotator.label(prompt, *shown, kind, verdicts), kind)
        if row is not None:
            rows.append(row | {"annotator": annotator.name, "vendor": annotator.vendor})
    return rows


def preference_row(prompt: Prompt, answer_a: str, answer_b: str, label: Judgement, kind: Kind) -> dict | None:
    """A row of preference data; None for a safety label that is never kept. Annotator and vendor are left blank."""
    if kind == "safety" and not label.safety:
        return None
    chosen, rejected = (answer_a, answer_b) if label.choice == "a" else (answer_b, answer_a)
    return {
        "prompt": [dict(m) for m in prompt.messages],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "grade": label.grade,
        "safety": label.safety if kind == "safety" else "",
        "kind": kind,
        "prompt_id": prompt.id,
        "annotator": "",
        "vendor": "",
    }


def _digest(*parts: str) -> int:
    """A seed from texts, the same in every process (``hash`` of a str is not)."""
    return int.from_bytes(hashlib.blake2b("\x00".join(parts).encode("utf-8", "replace"), digest_size=8).digest())
