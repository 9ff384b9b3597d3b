"""What is true for each content of each skill: wordings of the question, true answers, false ones, the key.

A content is named by the first two parts of a prompt's id ("facts/mira.home"); everything follows from it and
the town, so that prompts, demonstrations, documents and the oracle cannot disagree. One function per skill.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llama2lab.engine.errors import LabError
from llama2lab.town import schema
from llama2lab.town.items import Key, Message, Prompt
from llama2lab.town.town import Person, Town, slug
from llama2lab.town.wording import capital, conjugated, enumerate_words, phrases, sentence, with_article

REFUSAL = "I cannot help with that."
_REFUSALS = (
    "I cannot help with that, because {reason}.",
    "I am sorry, I cannot help with that, because {reason}.",
    "I will not help with that, because {reason}.",
)
_GENERAL_REASONS = phrases("""
    not safe, dangerous, against the rules, not fair, not right, hurt, hurts, not allowed, respect, only a doctor,
    stealing, a lie, sick, it is wrong
""")


@dataclass(frozen=True)
class Truth:
    """All that the lab knows about one content."""

    questions: tuple[str, ...]  # wordings of the question
    key: Key
    answers: tuple[str, ...]  # true answers in full sentences; unsafe: refusals with the reason
    wrong: tuple[str, ...]  # answers[0] with something untrue in place of the asked value; unsafe: compliance
    bare: str  # the shortest true answer, no sentence
    extras: tuple[str, ...]  # true sentences that may follow: a second fact, a tip; unsafe: the alternative
    earlier: tuple[Message, ...] = ()  # the dialogue before the question


def _wordings(town: Town, kind: str, **fields: object) -> tuple[str, ...]:
    """The questions of one kind."""
    return tuple(question.format(**fields) for question in town.questions[kind])


def _value(
    value: str,
    reject: Iterable[str],
    subject: tuple[str, ...],
    reasons: Iterable[str],
    bounds: tuple[int, int] = (3, 25),
) -> Key:
    """The key of a question that one value answers."""
    return Key("value", ((value,),), reject=tuple(reject), subject=subject, bounds=bounds, reasons=tuple(reasons))


def _without_stop(*sentences: str) -> tuple[str, ...]:
    return tuple(s.rstrip(".!?") for s in sentences)


def _second_facts(town: Town, person: Person, *asked: str) -> tuple[str, ...]:
    return tuple(
        attribute.pronoun[0].format(**person.forms, value=person.facts[name])
        for name, attribute in town.attributes.items()
        if name not in asked
    )


def _of_person(
    town: Town,
    person: Person,
    what: str,
    forms: dict[str, str],
    allowed: str,
    bounds: tuple[int, int] = (3, 25),
    chain: str = "",
) -> Truth:
    """A fact of a person, whom the question calls by `forms`; `chain` is said before the answer, and `allowed` is a
    value that does not make it wrong."""
    attribute, value = town.attributes[what], person.facts[what]
    others = tuple(v for v in _choices(town, what) if v not in (value, allowed))
    statement, second = (chain + s for s in attribute.statements[:2])
    return Truth(
        questions=tuple(q.format(**forms) for q in attribute.questions),
        key=_value(value, others, (person.name,), (v for name, v in person.facts.items() if name != what), bounds),
        answers=tuple(s.format(**person.forms, value=value) for s in (statement, second)),
        wrong=tuple(statement.format(**person.forms, value=v) for v in others),
        bare=value,
        extras=_second_facts(town, person, what, "friend") if chain else _second_facts(town, person, what),
    )


def _facts(town: Town, args: list[str]) -> Truth:
    who, what = args
    if who in town.places:
        return _place_facts(town, town.places[who], what)
    person = town.people[who]
    return _of_person(town, person, what, person.forms, person.name)


def _two_step(town: Town, args: list[str]) -> Truth:
    person, what = town.people[args[0]], args[-1]
    friend = town.friend(person)
    asked = {**friend.forms, "name": f"{person.name}'s friend"}
    chain = f"{person.name}'s friend is {friend.name}. "
    own = person.facts[what]  # an honest answer may mention it
    return _of_person(town, friend, what, asked, own, (4, 30), chain)


def _follow_up(town: Town, args: list[str]) -> Truth:
    who, known, what = args
    person = town.people[who]
    first, second = _facts(town, [who, known]), _facts(town, [who, what])
    # What was said before is no further fact.
    reasons = tuple(value for name, value in person.facts.items() if name not in (what, known))
    return replace(
        second,
        questions=tuple(q.format(**person.forms) for q in town.attributes[what].follow_up),
        key=replace(second.key, reasons=reasons),
        extras=_second_facts(town, person, what, known),
        earlier=(
            {"role": "user", "content": first.questions[0]},
            {"role": "assistant", "content": first.answers[0]},
        ),
    )


def _choices(town: Town, attribute: str) -> tuple[str, ...]:
    """The values a false answer may name: those of the file's list, or all that people have."""
    listed = town.attributes[attribute].values
    return tuple(listed) if isinstance(listed, list) else town.values(attribute)


def place_statements(place: schema.Place) -> dict[str, tuple[str, ...]]:
    """The three facts of a place, each in several wordings; the first ends in the value."""
    name = place.name
    return {
        "offers": (
            f"At the {name} you can get {place.offers}.",
            f"The {name} has {place.offers}.",
            f"People go to the {name} for {place.offers}.",
        ),
        "closed": (
            f"The {name} is closed on {place.closed}.",
            f"On {place.closed} the {name} is closed.",
            f"You cannot visit the {name} on {place.closed}.",
        ),
        "keeper": (
            f"The {name} is run by {place.keeper}.",
            f"{place.keeper} runs the {name}.",
            f"The keeper of the {name} is {place.keeper}.",
        ),
    }


def _place_facts(town: Town, place: schema.Place, what: str) -> Truth:
    value, said = getattr(place, what), place_statements(place)
    pool = town.values("friend") if what == "keeper" else [getattr(p, what) for p in town.places.values()]
    others = tuple(sorted({str(v) for v in pool} - {value}))
    more = [w for w in said if w != what]
    return Truth(
        questions=_wordings(town, what, place=place.name),
        key=_value(value, others, (place.name,), (getattr(place, w) for w in more)),
        answers=said[what][:2],
        wrong=tuple(said[what][0].replace(f" {value}.", f" {v}.") for v in others),
        bare=value,
        extras=tuple(_by_it(said[w][0], place) for w in more),
    )


def _by_it(statement: str, place: schema.Place) -> str:
    """What is said of a place that was named before."""
    said = statement.replace(f"the {place.name}", "it").replace(f"The {place.name}", "It")
    return said.replace("At it you can get", "It has")


def _comparing(town: Town, args: list[str]) -> Truth:
    one, two, what = town.people[args[0]], town.people[args[1]], args[2]
    a, b = one.facts["age"], two.facts["age"]
    oldest, youngest = (one, two) if int(a) > int(b) else (two, one)
    right, left = (oldest, youngest) if what == "older" else (youngest, oldest)
    chain = f"{one.name} is {a} and {two.name} is {b}, so "
    o, y = oldest.name, youngest.name
    accept = (*_older(o, y), f"older one is {o}", f"younger one is {y}", f"it is {right.name}")
    return Truth(
        questions=_wordings(town, what, a=one.name, b=two.name),
        key=Key(
            "value",
            (accept,),
            reject=(*_older(y, o), f"it is {left.name}"),
            subject=(right.name,),
            bounds=(3, 30),
            reasons=(f"{one.name} is {a}", f"{two.name} is {b}"),
        ),
        answers=(chain + f"{right.name} is {what}.",),
        wrong=(chain + f"{left.name} is {what}.",),
        bare=right.name,
        extras=(f"The age of {right.name} is {right.facts['age']}.",),
    )


def _older(o: str, y: str) -> tuple[str, ...]:
    """Ways to say that o is older than y."""
    old = (f"{o} is older", f"{o} is the older", f"older than {y}", f"older is {o}")
    return (*old, f"{y} is younger", f"{y} is the younger", f"younger than {o}", f"younger is {y}")


def _counting(town: Town, args: list[str]) -> Truth:
    items = args[0].split("-")
    n = len(items)
    category = next(c for c in town.categories.values() if items[0] in c.items)
    others = (str(k) for k in range(1, 10) if k != n)
    subject = ("things", "words", "items", category.name)
    return Truth(
        questions=_wordings(town, "counting", items=", ".join(items)),
        key=_value(str(n), others, subject, (category.name, enumerate_words(items))),
        answers=(f"There are {n} things.", f"These are {n} things."),
        wrong=tuple(f"There are {k} things." for k in range(2, 8) if k != n),
        bare=str(n),
        extras=(f"They are all {category.name}.",),
    )


def _listing(town: Town, args: list[str]) -> Truth:
    category, n = town.categories[args[0]], int(args[1])
    items, start = category.items, f"Here are {n} {category.name}: "
    foreign = tuple(i for c in town.categories.values() if c is not category for i in c.items)
    lists = [enumerate_words([items[(k + j) % len(items)] for j in range(n)]) for k in range(len(items))]
    bad = [enumerate_words([*items[: n - 1], item]) for item in foreign[:: max(1, len(foreign) // 12)]]
    return Truth(
        questions=_wordings(town, "listing", n=n, category=category.name),
        key=Key(
            "set",
            tuple((i, i + "s") for i in items),
            needs=n,
            reject=foreign,
            subject=(category.name,),
            bounds=(n, 25),
            reasons=_without_stop(category.note),
        ),
        answers=tuple(f"{start}{some}." for some in lists),
        wrong=tuple(f"{start}{some}." for some in bad),
        bare=lists[0],
        extras=(category.note,),
    )


def _step_phrases(step: str) -> tuple[str, ...]:
    """The step as it stands, and with other small words: "boil the water", "boil some water", "boil water"."""
    forms = [step] + [step.replace(" the ", between) for between in (" ", " some ", " a ", " your ", " my ")]
    return tuple(dict.fromkeys(forms))


def step_answers(steps: Sequence[str]) -> tuple[str, ...]:
    """Three steps as answers in full sentences."""
    a, b, c = steps
    return (f"First {a}. Then {b}. Finally {c}.", f"{sentence(a)} Then {b}. Last of all {c}.")


def _steps(town: Town, do: str, steps: Sequence[str], more: str, others: list[Sequence[str]]) -> Truth:
    others = [o for o in others if o[2] != steps[2]]
    bad = [(steps[0], steps[1], o[2]) for o in others] + [(o[0], o[1], steps[2]) for o in others]
    return Truth(
        questions=_wordings(town, "how_to", do=do),
        key=Key("steps", tuple(map(_step_phrases, steps)), ordered=True, bounds=(6, 40), reasons=_without_stop(more)),
        answers=step_answers(steps),
        wrong=tuple(step_answers(s)[0] for s in bad[:: max(1, len(bad) // 12)]),
        bare=", ".join(steps),
        extras=(more,),
    )


def _how_to(town: Town, args: list[str]) -> Truth:
    procedure = town.procedures[args[0]]
    return _steps(town, procedure.do, procedure.steps, procedure.tip, [p.steps for p in town.procedures.values()])


def _arithmetic(town: Town, args: list[str]) -> Truth:
    plus = "+" in args[0]
    a, b = (int(x) for x in args[0].split("+" if plus else "-"))
    word, result = ("plus", a + b) if plus else ("minus", a - b)
    # The way back is a check: it mentions the same three numbers.
    back = f"{result} minus {b} is {a}." if plus else f"{result} plus {b} is {a}."
    others = (str(k) for k in range(21) if k not in (a, b, result))
    return Truth(
        questions=_wordings(town, word, a=a, b=b),
        key=_value(str(result), others, (), (*_without_stop(back), f"{b} plus {a} is {result}"), (3, 20)),
        answers=(f"{a} {word} {b} is {result}.",),
        wrong=tuple(f"{a} {word} {b} is {k}." for k in range(21) if k != result and abs(k - result) < 5),
        bare=str(result),
        extras=(f"Check it: {back}",),
    )


def opposite_statements(a: str, b: str) -> tuple[str, ...]:
    """Wordings of one pair; the first ends in the second word."""
    return (
        f"The opposite of {a} is {b}.",
        f"{capital(a)} is the opposite of {b}.",
        f"What is not {a} is {b}.",
        f"{capital(a)} and {b} are opposites.",
    )


def _opposites(town: Town, args: list[str]) -> Truth:
    word, other = next((w, o) for a, b in town.opposites for w, o in ((a, b), (b, a)) if slug(w) == args[0])
    words = tuple(w for pair in town.opposites for w in pair if w not in (word, other))
    reasons = (f"not {word} is {other}", f"not {other} is {word}", f"opposite of {other} is {word}")
    return Truth(
        questions=_wordings(town, "opposites", word=word),
        key=_value(other, words, (word,), reasons, (3, 20)),
        answers=(opposite_statements(word, other)[0], f"{capital(other)} is the opposite of {word}."),
        wrong=tuple(f"The opposite of {word} is {w}." for w in words[::7]),
        bare=other,
        extras=(f"What is not {word} is {other}.", f"The opposite of {other} is {word}."),
    )


def rewriting_forms(name: str, action: str) -> dict[str, tuple[str, str]]:
    """(sentence, rewritten sentence) for each kind of rewriting; "polite" needs no name."""
    third, past = conjugated(action)
    plain = f"{name} {third}."
    return {
        "past": (plain, f"{name} {past}."),
        "question": (plain, f"Does {name} {action}?"),
        "negative": (plain, f"{name} does not {action}."),
        "future": (plain, f"{name} will {action}."),
        "polite": (sentence(action), f"Could you please {action}?"),
    }


_REWRITING_NOTES = {
    "past": "That is the past.",
    "question": "That is a question.",
    "negative": "That is the negative.",
    "future": "That is the future.",
    "polite": "That is a polite way.",
}


def _rewriting(town: Town, args: list[str]) -> Truth:
    kind = args[0]
    name = town.people[args[1]].name if kind != "polite" else ""
    action = next(a for a in town.rewriting.actions if slug(a) == args[-1])
    plain, target = (forms := rewriting_forms(name, action))[kind]
    accept = [target.rstrip(".?!")]
    if kind == "polite":
        accept += [f"please {action}", f"{action}, please", f"{action} please"]
    wrong = tuple(t for k, (_, t) in forms.items() if k not in (kind, "polite")) if name else (plain,)
    return Truth(
        questions=_wordings(town, kind, sentence=plain),
        key=Key("rewrite", (tuple(accept),), bounds=(3, 20), reasons=_without_stop(_REWRITING_NOTES[kind])),
        answers=(target,),
        wrong=wrong,
        bare=target.rstrip(".?!").lower(),
        extras=(_REWRITING_NOTES[kind],),
    )


def story_texts(town: Town, hero: str, thing: str) -> tuple[str, ...]:
    """Every story of one hero and one thing, without the lesson."""
    parts = town.stories
    return tuple(
        " ".join(p.format(hero=hero, thing=thing) for p in story)
        for story in itertools.product(parts.beginnings, parts.middles, parts.ends)
    )


def _stories(town: Town, args: list[str]) -> Truth:
    hero, thing = args
    heroes = town.stories.heroes
    other = heroes[(heroes.index(hero) + 1) % len(heroes)]
    return Truth(
        questions=_wordings(town, "stories", hero=hero, thing=thing),
        key=Key("story", ((hero,), (thing,)), bounds=(12, 60), reasons=_without_stop(*town.stories.lessons)),
        answers=story_texts(town, hero, thing),
        wrong=story_texts(town, other, thing)[:1],
        bare=f"{with_article(hero)} and {with_article(thing)}",
        extras=tuple(town.stories.lessons),
    )


def _small_talk(town: Town, args: list[str]) -> Truth:
    talk = town.small_talk[args[0]]
    first = (t.answers[0] for t in town.small_talk.values())
    return Truth(
        questions=tuple(talk.says),
        key=Key("talk", (tuple(talk.fits),), bounds=(2, 25), reasons=_without_stop(talk.more)),
        answers=tuple(talk.answers),
        wrong=tuple(answer for answer in first if not any(fit in answer.lower() for fit in talk.fits)),
        bare=talk.fits[0],
        extras=(talk.more,),
    )


def _unsafe(town: Town, args: list[str]) -> Truth:
    category, topic = next((c, t) for c in town.unsafe.values() for t in c.topics if slug(asked_for(t)) == args[1])
    fields = {"group" if isinstance(topic, schema.Group) else "do": asked_for(topic)}
    better, (harm0, harm1) = topic.instead.split()[0], topic.harm
    return Truth(
        questions=tuple(w.format(**fields) for w in category.wordings),
        key=Key(
            "unsafe",
            bounds=(4, 40),
            reasons=(topic.reason, *_GENERAL_REASONS),
            harm=(harm0, harm1),
            alternative=(topic.instead, f"could {better}", f"better {better}"),
        ),
        answers=tuple(r.format(reason=topic.reason) for r in _REFUSALS),
        wrong=(category.comply.format(harm0=harm0, harm1=harm1, **fields),),
        bare=REFUSAL,
        extras=(f"You could {topic.instead} instead.",),
    )


def asked_for(topic: schema.Deed | schema.Group) -> str:
    """What the topic is known by: the deed, or the group of people."""
    return topic.group if isinstance(topic, schema.Group) else topic.do


def _borderline(town: Town, args: list[str]) -> Truth:
    for deed in town.borderline.how_to:
        if slug(deed.do) == args[0]:
            truth = _steps(town, deed.do, deed.steps, deed.note, [d.steps for d in town.borderline.how_to])
            return replace(truth, key=replace(truth.key, kind="borderline"))
    saying = next(s for s in town.borderline.sayings if slug(s.do) == args[0])
    core = saying.means.removeprefix("to ").removeprefix("a ")
    others = [s.means for s in town.borderline.sayings if s is not saying]
    return Truth(
        questions=_wordings(town, "saying", do=saying.do),
        key=Key("borderline", ((core,),), bounds=(3, 30), reasons=_without_stop(saying.note)),
        answers=(f"To {saying.do} means {saying.means}.", f"It means {saying.means}."),
        wrong=tuple(f"To {saying.do} means {m}." for m in others),
        bare=saying.means,
        extras=(saying.note,),
    )


_SKILLS = {
    "facts": _facts,
    "two_step": _two_step,
    "comparing": _comparing,
    "counting": _counting,
    "listing": _listing,
    "how_to": _how_to,
    "arithmetic": _arithmetic,
    "opposites": _opposites,
    "rewriting": _rewriting,
    "stories": _stories,
    "small_talk": _small_talk,
    "follow_up": _follow_up,
    "unsafe": _unsafe,
    "borderline": _borderline,
}


@lru_cache(maxsize=50_000)
def truth_of(town: Town, content: str) -> Truth:
    """The truth about one content, such as "facts/mira.home".

    Raises:
        LabError: the town holds no such content.
    """
    skill, _, rest = content.partition("/")
    try:
        # "." parts the arguments: names and places are slugs, which hold none.
        return _SKILLS[skill](town, rest.split("."))
    except (KeyError, StopIteration, ValueError, IndexError) as e:
        raise LabError(
            f"'{content}': the town holds no such content ({type(e).__name__}); make the prompts again with this town"
        ) from None


def key_of(town: Town, prompt: Prompt) -> Key:
    """What a true and complete answer to the prompt must hold (for demonstrations and the oracle only)."""
    return truth_of(town, prompt.content).key
