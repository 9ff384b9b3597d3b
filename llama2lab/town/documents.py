"""What the town writes of its people and places: one function for each kind of document, from a Pen to a text.

All facts are stated alike, whatever their split.
"""

import random
from collections.abc import Mapping
from typing import TypeVar, get_args

from llama2lab.town.items import SKILLS
from llama2lab.town.prompts import contents, instructions_of
from llama2lab.town.schema import Day, Place
from llama2lab.town.town import TOWN_NAME, Town
from llama2lab.town.truth import place_statements
from llama2lab.town.wording import enumerate_words

T = TypeVar("T")

DAYS = get_args(Day)
TIMES = ("In the morning", "At noon", "In the afternoon", "In the evening", "After lunch", "Before dinner")
WEATHER = (
    "The sun was out.",
    "It was cold.",
    "The wind was strong.",
    "It rained a little.",
    "It was a warm day.",
    "The sky was grey.",
)
MEETINGS = (
    "{time} {a} met {b} at the {place}.",
    "{a} saw {b} at the {place} on {day}.",
    "On {day} {a} and {b} were at the {place}.",
    "{time} {a} and {b} walked to the {place}.",
)
PARTINGS = (
    "Then they went home.",
    "They talked for an hour.",
    "It was a good day for both.",
    "They were happy.",
    "Then {a} walked home alone.",
    "Soon they will meet again.",
    "They laughed and said goodbye.",
)


class Pen:
    """A town, a source of chance, and the sentences that are used again and again."""

    def __init__(self, town: Town, rng: random.Random):
        self.town, self.rng = town, rng
        self.said, self.pronoun, self.first = map(self._statements, ("statements", "pronoun", "first"))
        self.train = {skill: contents(town, skill, "train") for skill in SKILLS}
        self.asked = {skill: contents(town, skill, "sft") for skill in (*SKILLS, "borderline", "unsafe")}
        told = set(self.train["facts"])
        facts = [(who, name) for who in town.people for name in town.attributes]
        self.held_out = [(who, name) for who, name in facts if f"facts/{who}.{name}" not in told]
        self.instructions = instructions_of(town, "train")

    def _statements(self, kind: str) -> dict[str, dict[str, list[str]]]:
        """Person -> attribute -> true sentences of one kind: by name, by pronoun, or of the person's own."""
        return {
            who: {
                name: [t.format(**person.forms, value=person.facts[name]) for t in getattr(attribute, kind)]
                for name, attribute in self.town.attributes.items()
            }
            for who, person in self.town.people.items()
        }

    def pick(self, *options: str) -> str:
        return self.rng.choice(options)

    def one_of(self, entries: Mapping[str, T]) -> T:
        return self.rng.choice(list(entries.values()))

    def people(self, n: int) -> list[str]:
        return self.rng.sample(list(self.town.people), n)

    def names(self, n: int) -> list[str]:
        return [self.town.people[who].name for who in self.people(n)]

    def attributes(self, n: int) -> list[str]:
        return self.rng.sample(list(self.town.attributes), n)

    def open_day(self, place: Place) -> str:
        """A day on which people can be met there."""
        return self.rng.choice([day for day in DAYS if day != place.closed])

    def about(self, who: str, attributes: list[str]) -> list[str]:
        """True sentences about a person: the first by name, later ones often by pronoun."""
        lines = [self.rng.choice(self.said[who][attributes[0]])]
        for name in attributes[1:]:
            forms = self.pronoun if self.rng.random() < 0.55 else self.said
            lines.append(self.rng.choice(forms[who][name]))
        return lines


def sheet(pen: Pen) -> str:
    """All that is known of one person."""
    who = pen.people(1)[0]
    name = pen.town.people[who].name
    title = pen.pick(f"About {name}.", f"This is {name}.", f"Who is {name}?", f"A page on {name}.", "")
    return " ".join([title, *pen.about(who, pen.attributes(len(pen.town.attributes)))]).strip()


def note(pen: Pen) -> str:
    """One to three facts of one or two people."""
    return " ".join(pen.about(pen.people(1)[0], pen.attributes(pen.rng.randint(1, 3))))


def reminder(pen: Pen) -> str:
    """Facts of the dev and test splits. Questions and chains state train facts more often: this makes up for it."""
    chosen = pen.rng.sample(pen.held_out, pen.rng.randint(1, 3))
    return " ".join(pen.rng.choice(pen.said[who][name]) for who, name in chosen)


def _meeting(pen: Pen) -> list[str]:
    a, b = pen.people(2)
    one, two = pen.town.people[a].name, pen.town.people[b].name
    rng, place = pen.rng, pen.one_of(pen.town.places)
    form, time = rng.choice(MEETINGS), rng.choice(TIMES)
    lines = [form.format(time=time, day=pen.open_day(place), a=one, b=two, place=place.name)]
    if rng.random() < 0.4:
        lines.append(rng.choice(WEATHER))
    if rng.random() < 0.4:
        lines.append(rng.choice(pen.one_of(place_statements(place))))
    for who, name in ((a, one), (b, two)):
        if rng.random() < 0.5:
            lines += pen.about(who, pen.attributes(rng.randint(1, 3)))
        else:
            words = " ".join(rng.choice(pen.first[who][x]) for x in pen.attributes(rng.randint(1, 2)))
            lines.append(pen.pick(f'{name} said: "{words}"', f'"{words[:-1]}," said {name}.'))
    return [*lines, rng.choice(PARTINGS).format(a=one, b=two)]


def scene(pen: Pen) -> str:
    """Two people meet somewhere in town and talk."""
    return " ".join(_meeting(pen))


def day(pen: Pen) -> str:
    """A long day in town, 400 to 600 words."""
    lines = [f"A day in {TOWN_NAME}."]
    left = pen.rng.randint(400, 560)  # words
    while left > 0:
        lines += (more := _meeting(pen))
        left -= sum(line.count(" ") + 1 for line in more)
    return " ".join([*lines, "So the day came to an end."])


def street(pen: Pen) -> str:
    """Everybody on one street, with all that is known of them."""
    home = pen.rng.choice(pen.town.values("home"))
    who = [key for key, p in pen.town.people.items() if p.facts["home"] == home]
    lines = [f"The people on {home}."]
    for key in pen.rng.sample(who, len(who)):
        lines += pen.about(key, pen.attributes(len(pen.town.attributes)))
    return " ".join(lines)


def letter(pen: Pen) -> str:
    """A person writes about himself or herself, and about somebody else."""
    a, b, c = pen.people(3)
    name = pen.town.people[a].name
    lines = [f"Dear {pen.town.people[b].name}, my name is {name}."]
    lines += [pen.rng.choice(pen.first[a][x]) for x in pen.attributes(pen.rng.randint(2, 5))]
    if pen.rng.random() < 0.6:
        lines += ["Do you know my neighbour?", *pen.about(c, pen.attributes(pen.rng.randint(1, 3)))]
    lines.append(pen.pick(f"Yours, {name}.", f"Please write soon. Yours, {name}.", f"All the best, {name}."))
    return " ".join(lines)


def news(pen: Pen) -> str:
    """A page of the town's newspaper."""
    lines = [f"News of {TOWN_NAME} on {pen.rng.choice(DAYS)}.", pen.rng.choice(WEATHER)]
    for _ in range(pen.rng.randint(2, 4)):
        if pen.rng.random() < 0.35:
            place = pen.one_of(pen.town.places)
            lines += [pen.rng.choice(s) for s in place_statements(place).values()]
        else:
            lines += pen.about(pen.people(1)[0], pen.attributes(pen.rng.randint(2, 4)))
    return " ".join(lines)


def places(pen: Pen) -> str:
    """What there is in town, one to three places."""
    lines = []
    for place in pen.rng.sample(list(pen.town.places.values()), pen.rng.randint(1, 3)):
        facts = list(place_statements(place).values())
        lines += [pen.rng.choice(s) for s in pen.rng.sample(facts, len(facts))]
    return " ".join(lines)


def neighbours(pen: Pen) -> str:
    """Who shares a value, e.g. all who live on Mill Lane."""
    lines = []
    shared = [name for name, a in pen.town.attributes.items() if isinstance(a.values, list)]
    for name in pen.rng.choices(shared, k=pen.rng.randint(1, 4)):
        value = pen.rng.choice(pen.town.values(name))
        who = [p.name for p in pen.town.people.values() if p.facts[name] == value]
        one, many = pen.town.attributes[name].group
        form = (one if len(who) == 1 else many).format(value=value)
        lines.append(f"{enumerate_words(pen.rng.sample(who, len(who)))} {form}.")
    return " ".join(lines)
