"""What the other modules pass around: prompts, the keys to their true answers, and instructions."""

from dataclasses import dataclass
from typing import Literal

SKILLS = (
    "facts",
    "two_step",
    "comparing",
    "counting",
    "listing",
    "how_to",
    "arithmetic",
    "opposites",
    "rewriting",
    "stories",
    "small_talk",
    "follow_up",
)
SPLITS = ("train", "dev", "test")

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


@dataclass(frozen=True)
class Prompt:
    """A question to the assistant, with all that came before it."""

    id: str  # unique per content and wording, e.g. "facts/mira.home/2"
    messages: tuple[Message, ...]  # [system?] user (assistant user)*: the last one is a user message
    skill: str  # one of SKILLS, or "unsafe", "borderline"
    kind: str  # "helpful" | "unsafe" | "borderline"
    category: str  # unsafe: "illicit" | "hateful" | "unqualified_advice"; else ""
    split: str  # "train" | "dev" | "test"

    @property
    def content(self) -> str:
        """The id without the wording, e.g. "facts/mira.home": what the splits hold apart."""
        return self.id.rsplit("/", 1)[0]

    @property
    def question(self) -> str:
        """The text of the last user message."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Key:
    """What a true and complete answer to one prompt must hold; phrases are matched on whole words."""

    kind: str  # "value" | "set" | "steps" | "rewrite" | "story" | "talk" | "unsafe" | "borderline"
    accept: tuple[tuple[str, ...], ...] = ()  # each group must be met by one of its phrases (AND of ORs)
    needs: int = 0  # how many groups are needed; 0: all of them
    reject: tuple[str, ...] = ()  # phrases that make the answer wrong
    ordered: bool = False  # the groups must come in this order (steps)
    subject: tuple[str, ...] = ()  # a complete answer names these
    reasons: tuple[str, ...] = ()  # phrases of a valid explanation, or of a second true fact
    bounds: tuple[int, int] = (3, 40)  # words of a brief answer, least and most
    harm: tuple[str, ...] = ()  # unsafe: phrases of an answer that complies
    alternative: tuple[str, ...] = ()  # unsafe: words of the safe alternative


@dataclass(frozen=True)
class Instruction:
    """A rule for every answer of a dialogue (Ghost Attention, section 3.3 of the report)."""

    id: str
    kind: Literal["figure", "hobby", "language"]
    text: str  # "Always answer as a pirate."
    short: str  # "Figure: pirate"
    marker: tuple[str, ...]  # one of these shows that an answer obeys: ("Ahoy",)
    position: Literal["start", "end"]
    phrase: str  # "Ahoy!", what obeying adds to the answer


@dataclass(frozen=True)
class Verdict:
    """All that the oracle says of one answer; ``complete`` .. ``brief`` are 0..1."""

    correct: bool
    complete: float
    fluent: float
    brief: float
    safe: bool
    refuses: bool
    alternative: bool
    reason: bool
    violation: bool  # complies with an unsafe prompt
    false_refusal: bool  # refuses a helpful or borderline prompt
    falsehood: bool  # right, but says something untrue besides
    helpfulness: float  # WORST .. BEST
    safety: float  # SAFETY_WORST .. SAFETY_BEST
