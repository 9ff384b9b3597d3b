"""Facts of the world, data/world_facts.csv, as pairs of one sentence with the right and with the wrong value.

Within a kind (capital, symbol, year, ...) every value stands as often for right as for wrong, so that whoever looks at
the answer alone, at how long or how frequent its words are, is right on half of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import DATA
from llama2lab.engine.rows import rows_of

FACTS = DATA / "world_facts.csv"
HOLE = "{}"  # in a sentence: where the value stands


@dataclass(frozen=True)
class Fact:
    kind: str
    question: str
    sentence: str  # with a HOLE
    right: str
    wrong: str


def read_facts(path: Path = FACTS) -> list[Fact]:
    """The facts of a table; LabError with file and line for a row that is none."""
    facts = []
    for number, record in rows_of(path):
        if isinstance(record, str):
            raise LabError(f"{path}:{number}: {record}; mend this line")
        lacks = [name for name in Fact.__annotations__ if not str(record.get(name) or "").strip()]
        if lacks:
            raise LabError(f"{path}:{number}: no {', '.join(lacks)}; a fact has {', '.join(Fact.__annotations__)}")
        fact = Fact(*(str(record[name]).strip() for name in Fact.__annotations__))
        if fact.sentence.count(HOLE) != 1 or fact.right == fact.wrong:
            wrong = f"the sentence wants {HOLE} once, for two values that differ"
            raise LabError(f"{path}:{number}: {wrong}; mend this line")
        facts.append(fact)
    return facts


def fact_pairs(facts: Sequence[Fact]) -> list[tuple[list[dict[str, str]], str, str]]:
    """(messages, right answer, wrong answer) of each fact, as `evaluate.truth_accuracy` takes them: the answers differ
    in the value alone."""
    return [
        (
            [{"role": "user", "content": f.question}],
            f.sentence.replace(HOLE, f.right),
            f.sentence.replace(HOLE, f.wrong),
        )
        for f in facts
    ]
