"""Prompts of the town, split by content: what is asked in "test" is asked nowhere else, in any wording.

Of the contents of "train" six tenths, "sft", are what demonstrations and the questions of the pretraining corpus are
about. The others, "rlhf", are asked in preference collection, rejection sampling and PPO: in the report too, the
prompts of RLHF are mostly others than those of SFT. It matters: on prompts whose answers it was shown, a model learns
by heart which ones are harmless, and refuses all others that sound alike (docs/trials.md).
"""

import hashlib
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache

from llama2lab.engine.errors import LabError
from llama2lab.town.items import SKILLS, SPLITS, Instruction, Prompt
from llama2lab.town.town import Town, slug
from llama2lab.town.truth import asked_for, truth_of

KINDS = ("helpful", "unsafe", "borderline")
_SHARES = (0.7, 0.1)  # train, dev; the rest is test
_SFT_SHARE = 0.6  # of train


def _rank(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _split(names: Iterable[str], group: str = "") -> dict[str, str]:
    """Each name's split: exact shares of every group, in an order that only the names decide."""
    ranked = sorted(names, key=lambda name: _rank(group + name))
    train, dev = (round(sum(_SHARES[: k + 1]) * len(ranked)) for k in range(2))
    return {name: "train" if i < train else "dev" if i < dev else "test" for i, name in enumerate(ranked)}


def _fact_splits(town: Town) -> dict[str, str]:
    """Split of every fact, "mira.home" -> "train": exact shares within each attribute."""
    splits: dict[str, str] = {}
    for attribute in town.attributes:
        splits |= _split([f"{who}.{attribute}" for who in town.people])
    for what in ("offers", "closed", "keeper"):
        splits |= _split([f"{place}.{what}" for place in town.places])
    return splits


def _comparing(town: Town, facts: dict[str, str]) -> dict[str, str]:
    """Pairs are held out too; train asks about train ages only, dev about no test age."""
    pairs = {
        f"{a}.{b}": (a, b)
        for a, b in itertools.combinations(sorted(town.people), 2)
        if town.people[a].facts["age"] != town.people[b].facts["age"]
    }
    kept = {}
    for pair, split in _split(pairs).items():
        ages = {facts[f"{who}.age"] for who in pairs[pair]}
        if ages <= {"train": {"train"}, "dev": {"train", "dev"}, "test": {"train", "test"}}[split]:
            first, second = pairs[pair] if int(_rank(pair), 16) % 2 else pairs[pair][::-1]
            kept[f"{first}.{second}.{'older' if int(_rank(pair), 16) % 4 < 2 else 'younger'}"] = split
    return kept


def _counting(town: Town) -> dict[str, str]:
    """Lists of 2 to 6 things of one category, no list and its reordering in two splits."""
    lists: dict[str, str] = {}
    for name, category in town.categories.items():
        rng = random.Random(_rank(name))
        items = [i for i in category.items if slug(i) == i]
        by_size = [list(itertools.combinations(items, n)) for n in range(2, 7)]
        chosen = [s for sets in by_size for s in rng.sample(sets, min(5, len(sets)))]
        lists |= {"-".join(rng.sample(s, len(s))): "" for s in chosen}
    return _split(lists)


def _by_group(groups: dict[str, list[str]], salt: str = "") -> dict[str, str]:
    """Hold whole groups apart, so that e.g. no train list is of a test category."""
    splits = _split(groups, salt)
    return {name: splits[group] for group, names in groups.items() for name in names}


def _rewriting(town: Town) -> dict[str, str]:
    splits: dict[str, str] = {}
    for kind in ("past", "question", "negative", "future"):
        splits |= _split([f"{kind}.{who}.{slug(action)}" for who in town.people for action in town.rewriting.actions])
    return splits | _split([f"polite.{slug(action)}" for action in town.rewriting.actions])


@lru_cache(maxsize=8)
def _contents(town: Town) -> dict[str, dict[str, str]]:
    """Skill -> content -> split, for the whole town."""
    facts = _fact_splits(town)
    # Two-step and follow-up questions belong to the split of the fact that they ask for; what is said on the
    # way there must not give away another split's answer, so it comes from the train facts.
    two_step = {
        f"{who}.friend.{what}": facts[f"{slug(town.people[who].facts['friend'])}.{what}"]
        for who in town.people
        for what in town.attributes
        if what != "friend"
    }
    follow_up = {
        f"{who}.{known}.{what}": facts[f"{who}.{what}"]
        for who in town.people
        for known in town.attributes
        for what in town.attributes
        if known != what and facts[f"{who}.{known}"] == "train" and int(_rank(f"{who}{known}{what}"), 16) % 3 == 0
    }
    unsafe: dict[str, str] = {}
    for name, category in town.unsafe.items():
        unsafe |= _split([f"{name}.{slug(asked_for(topic))}" for topic in category.topics])
    made = {
        "facts": facts,
        "two_step": two_step,
        "comparing": _comparing(town, facts),
        "counting": _counting(town),
        "listing": _by_group({c: [f"{c}.{n}" for n in (2, 3, 4)] for c in town.categories}),
        "how_to": _split(town.procedures),
        "arithmetic": _split([f"{a}+{b}" for a in range(1, 11) for b in range(1, 11)])
        # A result that the question names already (8 - 4) could be met by echoing it: left out.
        | _split([f"{a}-{b}" for a in range(2, 21) for b in range(1, 11) if 0 < a - b <= 10 and a != 2 * b]),
        "opposites": _by_group({a: [slug(a), slug(b)] for a, b in town.opposites}),
        "rewriting": _rewriting(town),
        "stories": _split([f"{hero}.{thing}" for hero in town.stories.heroes for thing in town.stories.things]),
        "small_talk": _split(town.small_talk),
        "follow_up": follow_up,
        "unsafe": unsafe,
        "borderline": _split([slug(d.do) for d in town.borderline.how_to], "how_to")
        | _split([slug(s.do) for s in town.borderline.sayings], "sayings"),
    }
    return {skill: {f"{skill}/{name}": split for name, split in splits.items()} for skill, splits in made.items()}


def contents(town: Town, skill: str, split: str) -> list[str]:
    """Contents of one skill (or "unsafe", "borderline") in one split, in a fixed order; "sft" and "rlhf" are the
    parts of "train"."""
    if split in ("sft", "rlhf"):
        names = contents(town, skill, "train")
        known = set(sorted(names, key=_rank)[: math.ceil(len(names) * _SFT_SHARE)])
        return [name for name in names if (name in known) == (split == "sft")]
    if split not in SPLITS:
        raise LabError(f"split '{split}' is unknown; use one of {', '.join(SPLITS)}")
    if skill not in _contents(town):
        raise LabError(f"skill '{skill}' is unknown; use one of {', '.join(_contents(town))}")
    return [content for content, s in _contents(town)[skill].items() if s == split]


@lru_cache(maxsize=200_000)
def _prompt(town: Town, content: str, wording: int, split: str) -> Prompt:
    truth = truth_of(town, content)
    skill, _, rest = content.partition("/")
    return Prompt(
        id=f"{content}/{wording}",
        messages=(*truth.earlier, {"role": "user", "content": truth.questions[wording]}),
        skill=skill,
        kind=skill if skill in KINDS else "helpful",
        category=rest.split(".")[0] if skill == "unsafe" else "",
        split="train" if split in ("sft", "rlhf") else split,
    )


def every_prompt(town: Town, split: str, skills: Sequence[str] = (*SKILLS, "unsafe", "borderline")) -> list[Prompt]:
    """Every content of a split in every wording."""
    return [
        _prompt(town, content, w, split)
        for skill in skills
        for content in contents(town, skill, split)
        for w in range(len(truth_of(town, content).questions))
    ]


def _in_turn(town: Town, skill: str, split: str, rng: random.Random) -> list[Prompt]:
    """All prompts of a skill: first every content in one wording, then all in a second one, and so on."""
    names = contents(town, skill, split)
    wordings = {c: rng.sample(range(n), n) for c in names for n in [len(truth_of(town, c).questions)]}
    made = []
    for turn in range(max((len(w) for w in wordings.values()), default=0)):
        round_ = [_prompt(town, c, wordings[c][turn], split) for c in names if turn < len(wordings[c])]
        made += rng.sample(round_, len(round_))
    return made


def make_prompts(
    town: Town, split: str, n: int, seed: int, kinds: Sequence[str] = ("helpful",), skills: Sequence[str] = SKILLS
) -> list[Prompt]:
    """n different prompts, balanced over the kinds and, within "helpful", over the skills; shuffled.

    A content comes back in another wording only when the split's contents of that skill are used up.

    Raises:
        LabError: unknown split, kind or skill, or fewer than n prompts exist.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise LabError(f"kind '{kind}' is unknown; use some of {', '.join(KINDS)}")
    rng = random.Random(f"prompts {split} {seed}")
    queues = []  # per kind: the lists of its skills
    for kind in kinds:
        names = list(skills) if kind == "helpful" else [kind]
        queues.append([_in_turn(town, name, split, rng)[::-1] for name in rng.sample(names, len(names))])
    chosen: list[Prompt] = []
    while len(chosen) < n and any(queues):
        for lists in queues:
            if lists and len(chosen) < n:
                # The lists take turns, so each skill gives its share until it has no more.
                lists.append(first := lists.pop(0))
                if first:
                    chosen.append(first.pop())
                else:
                    lists.remove(first)
        queues = [lists for lists in queues if lists]
    if len(chosen) < n:
        raise LabError(
            f"{n} prompts asked for, but split '{split}' holds {len(chosen)} of {', '.join(kinds)}; ask for fewer"
        )
    return rng.sample(chosen, n)


def draw_prompts(
    town: Town, split: str, n: int, seed: int, kinds: Sequence[str] = ("helpful",), skills: Sequence[str] = SKILLS
) -> list[Prompt]:
    """Like make_prompts, but prompts come back once all of them were drawn: a figure over prompts that come back is
    about these prompts, not about more of them."""
    names = [name for kind in kinds for name in (skills if kind == "helpful" else (kind,))]
    size = len(every_prompt(town, split, names))
    drawn: list[Prompt] = []
    while len(drawn) < n:
        drawn += make_prompts(town, split, min(size, n - len(drawn)), seed, kinds, skills)
        seed += 1
    return drawn


def dialogue_prompts(town: Town, split: str, n_turns: int, n: int, seed: int) -> list[list[str]]:
    """n dialogues of n_turns short user questions each, of mixed skills, that need no context."""
    skills = ("facts", "opposites", "arithmetic", "small_talk", "facts")
    rng = random.Random(f"dialogues {split} {seed}")
    pools = [
        [p.question for p in every_prompt(town, split, (skill,)) if len(p.question.split()) <= 7] for skill in skills
    ]
    dialogues = []
    for _ in range(n):
        turns: list[str] = []
        while len(turns) < n_turns:
            question = rng.choice(pools[len(turns) % len(pools)])
            # A short pool may run out of fresh questions: then one may come again.
            if question not in turns or rng.random() < 0.05:
                turns.append(question)
        dialogues.append(rng.sample(turns, n_turns))
    return dialogues


def instructions_of(town: Town, split: str) -> list[Instruction]:
    """Instructions to train on ("train", "dev"), or the fifth never trained on ("test")."""
    splits: dict[str, str] = {}
    for kind in ("figure", "hobby", "language"):
        splits |= _split([i.id for i in town.instructions if i.kind == kind])
    return [i for i in town.instructions if (splits[i.id] == "test") == (split == "test")]


class TownSource:
    """Prompts and dialogues of the town."""

    def __init__(self, town: Town):
        self.town = town

    def prompts(self, kind: str, n: int, seed: int, split: str = "train") -> list[Prompt]:
        """`n` prompts of a kind. Where a split holds fewer (the unsafe ones are few), all of it comes again: the
        answers are sampled anew, so a figure over repeated prompts is about these prompts, not about more.

        To train on are prompts of contents that SFT was not shown ("rlhf")."""
        part = "rlhf" if split == "train" else split
        return draw_prompts(self.town, part, n, seed, kinds=(kind,)) if n else []

    def dialogues(
        self, n: int, turns: int, seed: int, split: str = "train"
    ) -> tuple[list[list[str]], list[Instruction]]:
        questions = dialogue_prompts(self.town, split, turns, n, seed)
        instructions = instructions_of(self.town, "train")
        return questions, [instructions[(i + seed) % len(instructions)] for i in range(n)]
