"""The pretraining corpus of the town, and probes of what a model has learnt from it."""

import random
from collections.abc import Callable

from llama2lab.engine.errors import LabError
from llama2lab.town import documents, drills
from llama2lab.town.documents import Pen
from llama2lab.town.town import Town
from llama2lab.town.truth import opposite_statements, place_statements

# Each kind of document and its share of the words, relative to the others. Topics and questions decide how well a
# model answers about words that no training question names (docs/trials.md).
SHARES: dict[Callable[[Pen], str], float] = {
    documents.sheet: 5,
    documents.note: 2,
    documents.reminder: 2,
    documents.scene: 3,
    documents.letter: 2,
    documents.news: 2,
    documents.places: 2,
    documents.neighbours: 2,
    drills.story: 2,
    drills.procedures: 16,
    drills.sums: 18,
    drills.numbers: 8,
    drills.lists: 6,
    drills.opposites: 4,
    drills.glossary: 4,
    drills.rules: 7,
    drills.grammar: 6,
    drills.chains: 4,
    drills.talk: 3,
    drills.questions: 45,
    documents.day: 2,
    documents.street: 2,
    drills.interview: 4,
    drills.topics: 45,
}


def _written(town: Town, seed: str, enough: Callable[[int, int], bool]) -> list[str]:
    """Documents in random order, every kind with its share of the words, until enough(how many, words)."""
    pen = Pen(town, random.Random(seed))
    words = dict.fromkeys(SHARES, 0)
    texts: list[str] = []
    total = 0
    while not enough(len(texts), total):
        # The kind that is furthest behind its share writes next.
        kind = min(SHARES, key=lambda k: words[k] / SHARES[k])
        text = kind(pen)
        length = text.count(" ") + 1
        words[kind] += length
        total += length
        texts.append(text)
    pen.rng.shuffle(texts)
    return texts


def pretraining_corpus(town: Town, n_words: int, seed: int) -> list[str]:
    """Documents of 5 to 700 words with n_words words in all, the same for the same seed.

    Every fact of every split is stated equally often in expectation; questions are of a part of the train split ("sft"
    in prompts.py).

    Raises:
        LabError: n_words is not positive.
    """
    if n_words < 1:
        raise LabError(f"n_words is {n_words}; ask for at least one word")
    return _written(town, f"corpus {seed}", lambda _, words: words >= n_words)


def heldout_documents(town: Town, seed: int, n: int) -> list[str]:
    """n documents of at least 40 words from other random choices, to measure bits per byte."""
    texts = _written(town, f"heldout {seed}", lambda n_texts, _: n_texts >= 4 * n + 80)
    return [t for t in texts if t.count(" ") >= 39][:n]


def fact_probes(town: Town) -> list[tuple[str, str, tuple[str, ...]]]:
    """(prefix, true value, all values) for every fact of the world, in the wording of the corpus.

    For instance ("The home of Mira is on", "Mill Lane", ("Bridge Street", ...)): people, places, sums, opposites.
    """
    probes: list[tuple[str, str, tuple[str, ...]]] = []
    for name, attribute in town.attributes.items():
        values = town.values(name)
        for person in town.people.values():
            said = attribute.statements[0].format(**person.forms, value=person.facts[name])
            probes.append((_before(said, person.facts[name]), person.facts[name], values))
    for place in town.places.values():
        for what, statements in place_statements(place).items():
            value = getattr(place, what)
            values = tuple(sorted({getattr(p, what) for p in town.places.values()}))
            probes.append((_before(statements[0], value), value, values))
    results = tuple(str(k) for k in range(21))
    for a in range(1, 11):
        for b in range(1, 11):
            probes.append((f"{a} plus {b} is", str(a + b), results))
            probes.append((f"{a + b} minus {b} is", str(a), results))
    seconds = tuple(sorted(b for _, b in town.opposites))
    probes += [(_before(opposite_statements(a, b)[0], b), b, seconds) for a, b in town.opposites]
    return probes


def _before(statement: str, value: str) -> str:
    return statement.removesuffix(f"{value}.").rstrip()
