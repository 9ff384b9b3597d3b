"""Which pairs are not worth a person's time: what is set aside before anything is shown, by stated rules.

- **word salad**: both answers are, by a judge of language that is handed in. One broken answer beside a sound one is
  what preferences are for.
- **alike**: both answers are the same words in the same order; only case, punctuation or spaces differ. One other word
  may be the whole point ("Oak Lane", "Elm Lane"), so nothing more counts as alike.
- **asked already**: the same words are asked and answered in an earlier pair of the same kind, here or in the store,
  in whatever order the answers stand.

What is set aside is kept in the store with its reason, and queued for nobody (adding.py). Gold pairs are never.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llama2lab.annotation.store.checks import check_pair
from llama2lab.engine.scale import Kind

Reason = Literal["word salad", "alike", "asked already"]
Sound = Callable[[str], bool]  # whether a text is language
Key = tuple[Any, ...]
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
WORDS: dict[Reason, str] = {
    "word salad": "with two answers of word salad",
    "alike": "whose answers are the same words",
    "asked already": "asked already",
}


@dataclass
class Sifted:
    """Pairs to be shown, and those set aside with their reasons; none is in neither."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    aside: list[tuple[dict[str, Any], Reason]] = field(default_factory=list)

    def __str__(self) -> str:
        """How many are set aside, and why; "" where none is."""
        counts = Counter(reason for _, reason in self.aside)
        parts = [f"{counts[reason]} {words}" for reason, words in WORDS.items() if counts[reason]]
        return f"{len(self.aside)} set aside: {', '.join(parts)}" if parts else ""


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, in lower case; of one without any, its signs, which are all that it says."""
    return tuple(WORD.findall(text.casefold())) or tuple(text.split())


def key_of(kind: Kind | str, prompt: Iterable[Mapping[str, str]], answers: Iterable[str]) -> Key:
    """What makes two pairs the same question to a person."""
    asked = tuple((m["role"], words_of(m["content"])) for m in prompt)
    return (kind, asked, tuple(sorted(words_of(a) for a in answers)))


def sift(pairs: Iterable[dict[str, Any]], sound: Sound | None = None, there: Mapping[Key, str] | None = None) -> Sifted:
    """The pairs, each a row as `add_pairs` takes it, in their order. LabError for a row that is no pair.

    `sound` says whether a text is language (None: that is not asked); `there` holds the ids of the pairs that are in
    the store already, by their keys. A pair that is there with this very id is kept: to add it again changes nothing.
    """
    result, seen = Sifted(), dict(there or {})
    for number, row in enumerate(pairs, 1):
        item, secret = check_pair(row, f"pair {number}")
        answers = (item["answer_1"], item["answer_2"])
        first = seen.setdefault(key_of(item["kind"], item["prompt"], answers), item["id"])
        if secret["gold"]:
            result.kept.append(row)
        elif words_of(answers[0]) == words_of(answers[1]):
            result.aside.append((row, "alike"))
        elif sound is not None and not any(map(sound, answers)):
            result.aside.append((row, "word salad"))
        elif first != item["id"]:
            result.aside.append((row, "asked already"))
        else:
            result.kept.append(row)
    return result
