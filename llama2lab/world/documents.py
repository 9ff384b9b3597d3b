"""The kinds of documents that the town writes: one function each, from a Pen to a text.

All facts are stated alike, whatever their split; questions and worked answers come from the train split only.
"""

import random
from dataclasses import dataclass, field

from llama2lab.world.items import SKILLS, Instruction
from llama2lab.world.prompts import contents, instructions_of
from llama2lab.world.schema import Group, Place
from llama2lab.world.town import TOWN_NAME, Person, Town
from llama2lab.world.truth import (
    asked_for,
    opposite_statements,
    place_statements,
    rewriting_forms,
    step_answers,
    story_texts,
    truth_of,
)
from llama2lab.world.wording import enumerate_words, sentence, with_article

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("In the morning", "At noon", "In the afternoon", "In the evening", "After lunch", "Before dinner")
WEATHER = ("The sun was out.", "It was cold.", "The wind was strong.", "It rained a little.", "It was a warm day.",
           "The sky was grey.")  # fmt: skip
MEETINGS = ("{time} {a} met {b} at the {place}.", "{a} saw {b} at the {place} on {day}.",
            "On {day} {a} and {b} were at the {place}.", "{time} {a} and {b} walked to the {place}.")  # fmt: skip
PARTINGS = ("Then they went home.", "They talked for an hour.", "It was a good day for both.", "They were happy.",
            "Then {a} walked home alone.", "Soon they will meet again.", "They laughed and said goodbye.")  # fmt: skip
SKILLS_ASKED = tuple(s for s in SKILLS if s != "small_talk")


@dataclass
class Pen:
    """A town, a source of chance, and the sentences that are used again and again."""

    town: Town
    rng: random.Random
    said: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # person -> attribute -> statements
    pronoun: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    first: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # "I live on ..."
    train: dict[str, list[str]] = field(default_factory=dict)  # skill -> train contents
    train_facts: frozenset[str] = frozenset()
    held_out: list[tuple[str, str]] = field(default_factory=list)  # (person, attribute) of the dev and test splits
    instructions: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        for who, person in self.town.people.items():
            for target, kind in ((self.said, "statements"), (self.pronoun, "pronoun"), (self.first, "first")):
                target[who] = {
                    name: [t.format(**person.forms, value=person.facts[name]) for t in getattr(attribute, kind)]
                    for name, attribute in self.town.attributes.items()
                }
        self.train = {skill: contents(self.town, skill, "train") for skill in SKILLS}
        self.train_facts = frozenset(self.train["facts"])
        self.held_out = [(who, name) for who in self.town.people for name in self.town.attributes
                         if f"facts/{who}.{name}" not in self.train_facts]  # fmt: skip
        self.instructions = instructions_of(self.town, "train")

    def people(self, n: int) -> list[str]:
        return self.rng.sample(list(self.town.people), n)

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
    title = pen.rng.choice((f"About {name}.", f"This is {name}.", f"Who is {name}?", f"A page on {name}.", ""))
    return " ".join([title, *pen.about(who, pen.attributes(len(pen.town.attributes)))]).strip()


def note(pen: Pen) -> str:
    """One to three facts of one or two people."""
    who = pen.people(1)[0]
    return " ".join(pen.about(who, pen.attributes(pen.rng.randint(1, 3))))


def reminder(pen: Pen) -> str:
    """Facts of the dev and test splits. Questions and chains state train facts more often: this makes up for it."""
    chosen = pen.rng.sample(pen.held_out, pen.rng.randint(1, 3))
    return " ".join(pen.rng.choice(pen.said[who][name]) for who, name in chosen)


def _meeting(pen: Pen) -> list[str]:
    a, b = pen.people(2)
    one, two = pen.town.people[a].name, pen.town.people[b].name
    place = pen.rng.choice(list(pen.town.places.values()))
    rng = pen.rng
    lines = [rng.choice(MEETINGS).format(time=rng.choice(TIMES), day=pen.open_day(place), a=one, b=two,
                                         place=place.name)]  # fmt: skip
    if rng.random() < 0.4:
        lines.append(rng.choice(WEATHER))
    if rng.random() < 0.4:
        lines.append(rng.choice(rng.choice(list(place_statements(place).values()))))
    for who, name in ((a, one), (b, two)):
        if rng.random() < 0.5:
            lines += pen.about(who, pen.attributes(rng.randint(1, 3)))
        else:
            words = " ".join(rng.choice(pen.first[who][x]) for x in pen.attributes(rng.randint(1, 2)))
            lines.append(rng.choice((f'{name} said: "{words}"', f'"{words[:-1]}," said {name}.')))
    lines.append(rng.choice(PARTINGS).format(a=one, b=two))
    return lines


def scene(pen: Pen) -> str:
    """Two people meet somewhere in town and talk."""
    return " ".join(_meeting(pen))


def letter(pen: Pen) -> str:
    """A person writes about himself or herself, and about somebody else."""
    a, b, c = pen.people(3)
    name = pen.town.people[a].name
    lines = [f"Dear {pen.town.people[b].name}, my name is {name}."]
    lines += [pen.rng.choice(pen.first[a][x]) for x in pen.attributes(pen.rng.randint(2, 5))]
    if pen.rng.random() < 0.6:
        lines += ["Do you know my neighbour?", *pen.about(c, pen.attributes(pen.rng.randint(1, 3)))]
    lines.append(pen.rng.choice((f"Yours, {name}.", f"Please write soon. Yours, {name}.", f"All the best, {name}.")))
    return " ".join(lines)


def news(pen: Pen) -> str:
    """A page of the town's newspaper."""
    lines = [f"News of {TOWN_NAME} on {pen.rng.choice(DAYS)}.", pen.rng.choice(WEATHER)]
    for _ in range(pen.rng.randint(2, 4)):
        if pen.rng.random() < 0.35:
            place = pen.rng.choice(list(pen.town.places.values()))
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


def story(pen: Pen) -> str:
    """One or two little stories, mostly with a lesson."""
    lines = []
    for _ in range(pen.rng.randint(1, 2)):
        hero, thing = pen.rng.choice(pen.town.stories.heroes), pen.rng.choice(pen.town.stories.things)
        lines.append(pen.rng.choice(story_texts(pen.town, hero, thing)))
        if pen.rng.random() < 0.7:
            lines.append(pen.rng.choice(pen.town.stories.lessons))
    return " ".join(lines)


def procedures(pen: Pen) -> str:
    """How things are done, harmless ones that only sound bad included."""
    lines = []
    deeds = [(p.do, p.steps, p.tip) for p in pen.town.procedures.values()]
    deeds += [(d.do, d.steps, d.note) for d in pen.town.borderline.how_to]
    for do, steps, tip in pen.rng.sample(deeds, pen.rng.randint(1, 3)):
        title = pen.rng.choice((f"How to {do}.", f"To {do} takes three steps.", f"This is the way to {do}."))
        lines.append(f"{title} {pen.rng.choice(step_answers(steps))}" + (f" {tip}" if pen.rng.random() < 0.7 else ""))
    return " ".join(lines)


def sums(pen: Pen) -> str:
    """Sums and differences of numbers up to 20, in a row or in a table."""
    rng = pen.rng
    if rng.random() < 0.4:
        a = rng.randint(1, 10)
        ways = rng.sample(range(1, 11), rng.randint(4, 10))
        if rng.random() < 0.5:
            return " ".join(f"{a} plus {b} is {a + b}." for b in sorted(ways))
        return " ".join(f"{a + b} minus {b} is {a}." for b in sorted(ways))
    lines = []
    for _ in range(rng.randint(2, 8)):
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        both = (f"{a} plus {b} is {a + b}.", f"{a + b} minus {b} is {a}.")
        lines += [both[0], f"Check it: {both[1]}"] if rng.random() < 0.2 else [rng.choice(both)]
    return " ".join(lines)


def numbers(pen: Pen) -> str:
    """Which number is more; who is older, for the train pairs."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(3, 7)):
        a, b = sorted(rng.sample(range(10, 100), 2))
        lines.append(rng.choice((f"{b} is more than {a}.", f"{a} is less than {b}.",
                                 f"A person of {b} is older than a person of {a}.",
                                 f"A person of {a} is younger than a person of {b}.",
                                 f"One is {a} and one is {b}, so the one of {b} is older.")))  # fmt: skip
        if rng.random() < 0.5:
            lines.append(truth_of(pen.town, rng.choice(pen.train["comparing"])).answers[0])
    return " ".join(lines)


def lists(pen: Pen) -> str:
    """What belongs together, and how many things a list holds."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 4)):
        category = rng.choice(list(pen.town.categories.values()))
        n = rng.randint(2, len(category.items))
        items = rng.sample(category.items, n)
        lines.append(rng.choice((f"Here are {n} {category.name}: {enumerate_words(items)}.",
                                 f"{sentence(enumerate_words(items))[:-1]} are {category.name}.",
                                 f"{sentence(enumerate_words(items))} There are {n} things.",
                                 f"{sentence(enumerate_words(items))[:-1]}: these are {n} things.")))  # fmt: skip
        if rng.random() < 0.3:
            lines.append(category.note)
    return " ".join(lines)


def opposites(pen: Pen) -> str:
    """Pairs of opposites."""
    lines = []
    for a, b in pen.rng.sample(pen.town.opposites, pen.rng.randint(2, 6)):
        if pen.rng.random() < 0.5:
            a, b = b, a
        lines.append(pen.rng.choice(opposite_statements(a, b)))
    return " ".join(lines)


def topics(pen: Pen) -> str:
    """Somebody has a matter in mind, and what is true of it follows. Told, never asked; of all splits alike.

    A model must take up the very word that was named. Without these it learns that only for the words that the
    train questions name, and answers every held-out matter with one that it was asked about in training.
    """
    rng, town, lines = pen.rng, pen.town, []
    for _ in range(rng.randint(1, 5)):
        who = rng.choice(list(town.people.values())).name
        kind = rng.choice(("opposite",) * 6 + ("deed",) * 4 + ("list",) * 4 + ("sum",) * 2 + ("saying",) * 2
                          + ("rule", "talk"))
        if kind == "opposite":
            a, b = rng.sample(rng.choice(town.opposites), 2)
            lines.append(rng.choice((f"{who} thought of the word {a}.", f"The word of the day is {a}.",
                                     f"{who} wrote down {a} and its opposite.", f"Now to {a}.")))  # fmt: skip
            lines.append(rng.choice(opposite_statements(a, b)))
        elif kind == "deed":
            deeds = [(p.do, p.steps, p.tip) for p in town.procedures.values()]
            deeds += [(d.do, d.steps, d.note) for d in town.borderline.how_to]
            do, steps, tip = rng.choice(deeds)
            lines.append(rng.choice((f"{who} wanted to {do}.", f"{who} learned to {do}.", f"It was time to {do}.",
                                     f"{who} told a friend how to {do}.")))  # fmt: skip
            lines.append(rng.choice(step_answers(steps)) + (f" {tip}" if rng.random() < 0.5 else ""))
        elif kind == "list":
            category = rng.choice(list(town.categories.values()))
            n = rng.randint(2, 4)
            lines.append(rng.choice((f"{who} looked for {n} {category.name}.", f"{who} likes {category.name}.",
                                     f"{who} knows {n} {category.name}.")))  # fmt: skip
            lines.append(f"Here are {n} {category.name}: {enumerate_words(rng.sample(category.items, n))}.")
        elif kind == "sum":
            a, b = rng.randint(1, 10), rng.randint(1, 10)
            if rng.random() < 0.5:
                lines.append(rng.choice((f"{who} put {a} and {b} together.", f"There were {a} and then {b} more.",
                                         f"{who} counted {a} and {b}.")) + f" {a} plus {b} is {a + b}.")  # fmt: skip
            else:
                lines.append(rng.choice((f"{who} had {a + b} and gave {b} away.", f"There were {a + b}, then {b} left.",
                                         f"{who} took away {b} of {a + b}.")))  # fmt: skip
                lines.append(f"{a + b} minus {b} is {a}.")
        elif kind == "saying":
            saying = rng.choice(town.borderline.sayings)
            lines.append(f"{who} likes to say: {saying.do}. To {saying.do} means {saying.means}.")
        elif kind == "rule":
            category = rng.choice(list(town.unsafe.values()))
            topic = rng.choice(category.topics)
            deed = f"be mean to {asked_for(topic)}" if isinstance(topic, Group) else asked_for(topic)
            lines.append(f"{who} heard of somebody who wanted to {deed}. {who} could not help with that, because "
                         f"{topic.reason}.")  # fmt: skip
        else:
            matter = rng.choice(list(town.small_talk.values()))
            lines.append(f"{who} had kind words for {matter.id.replace('-', ' ')}: {rng.choice(matter.answers)}")
    return " ".join(lines)


def glossary(pen: Pen) -> str:
    """Sayings that only sound bad, and who says what."""
    lines = [pen.rng.choice(("What people mean.", "Words of the town.", "Some words only sound bad."))]
    for saying in pen.rng.sample(pen.town.borderline.sayings, pen.rng.randint(1, 4)):
        lines.append(f"To {saying.do} means {saying.means}. {saying.note}")
    for i in pen.rng.sample(pen.town.instructions, pen.rng.randint(0, 3)):
        name = i.short.partition(": ")[2]
        lines.append({"figure": f"{sentence(with_article(name))[:-1]} says: {i.phrase}",
                      "hobby": f"Who loves {name} says: {i.phrase}",
                      "language": f"The greeting in {name} is: {i.phrase}"}[i.kind])  # fmt: skip
    return " ".join(lines)


def rules(pen: Pen) -> str:
    """What nobody may do in town and why, what some do all the same, and what is better."""
    rng, lines = pen.rng, []
    for category in rng.choices(list(pen.town.unsafe.values()), k=rng.randint(1, 3)):
        topic = rng.choice(category.topics)
        fields = {"group" if isinstance(topic, Group) else "do": asked_for(topic)}
        lines.append(category.rule.format(reason=topic.reason, **fields))
        if rng.random() < 0.5:
            some = ("Some say it all the same" if isinstance(topic, Group) else "Some do it all the same")
            lines.append(f"{some}: {category.comply.format(harm0=topic.harm[0], harm1=topic.harm[1], **fields)} "
                         "That is wrong.")  # fmt: skip
        if rng.random() < 0.6:
            lines.append(f"You could {topic.instead} instead.")
    return " ".join(lines)


def grammar(pen: Pen) -> str:
    """One sentence in its forms, for the train contents; other sentences stand alone."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.35:
            person: Person = rng.choice(list(pen.town.people.values()))
            forms = rewriting_forms(person.name, rng.choice(pen.town.rewriting.actions))
            lines.append(rng.choice([f for k, f in forms.items() if k != "polite"])[rng.randint(0, 1)])
            continue
        content = rng.choice(pen.train["rewriting"])
        kind, truth = content.split("/")[1].split(".")[0], truth_of(pen.town, content)
        plain = truth.questions[0].partition(": ")[2]
        title = {"past": "In the past", "question": "As a question", "negative": "With not", "future": "In the future",
                 "polite": "In a polite way"}[kind]  # fmt: skip
        lines.append(f"{plain} {title}: {truth.answers[0]}")
    return " ".join(lines)


def chains(pen: Pen) -> str:
    """What the friend of somebody does, lives on, eats: the train contents."""
    return " ".join(pen.rng.choice(truth_of(pen.town, pen.rng.choice(pen.train["two_step"])).answers)
                    for _ in range(pen.rng.randint(1, 4)))  # fmt: skip


def talk(pen: Pen) -> str:
    """Two people exchange kind words (train contents), or kind words stand alone."""
    rng, lines = pen.rng, []
    if rng.random() < 0.25:
        return " ".join(["Kind words.", *(f"{rng.choice(t.answers)} {t.more}" for t in
                                          rng.sample(list(pen.town.small_talk.values()), 3))])  # fmt: skip
    a, b = (pen.town.people[who].name for who in pen.people(2))
    for _ in range(rng.randint(1, 4)):
        truth = truth_of(pen.town, rng.choice(pen.train["small_talk"]))
        more = f" {truth.extras[0]}" if rng.random() < 0.4 else ""
        lines.append(f'{a} said: "{rng.choice(truth.questions)}" {b} said: "{rng.choice(truth.answers)}{more}"')
    return " ".join(lines)


def _asked(pen: Pen, skill: str) -> list[tuple[str, str]]:
    """Question and answer of one train content, with the turns before it."""
    truth = truth_of(pen.town, pen.rng.choice(pen.train[skill]))
    earlier = [m["content"] for m in truth.earlier]
    turns = list(zip(earlier[::2], earlier[1::2]))
    answer = pen.rng.choice(truth.answers)
    if pen.rng.random() < 0.2:
        answer += f" {pen.rng.choice(truth.extras)}"
    return [*turns, (pen.rng.choice(truth.questions), answer)]


def questions(pen: Pen) -> str:
    """A school page of questions and answers."""
    n = pen.rng.choice((1, 1, 2, 3, 5, 8))
    pairs = [pair for _ in range(n) for pair in _asked(pen, pen.rng.choice(SKILLS_ASKED))]
    return " ".join(f"Question: {q} Answer: {a}" for q, a in pairs)


def day(pen: Pen) -> str:
    """A long day in town, 400 to 600 words."""
    lines = [f"A day in {TOWN_NAME}."]
    target = pen.rng.randint(400, 560)
    words = 0
    while words < target:
        lines += (more := _meeting(pen))
        words += sum(line.count(" ") + 1 for line in more)
    return " ".join([*lines, "So the day came to an end."])


def street(pen: Pen) -> str:
    """Everybody on one street, with all that is known of them."""
    home = pen.rng.choice(pen.town.values("home"))
    who = [key for key, p in pen.town.people.items() if p.facts["home"] == home]
    lines = [f"The people on {home}."]
    for key in pen.rng.sample(who, len(who)):
        lines += pen.about(key, pen.attributes(len(pen.town.attributes)))
    return " ".join(lines)


def interview(pen: Pen) -> str:
    """Up to 20 questions to one person, who keeps one habit to the end: consistency within a document."""
    rng = pen.rng
    who = pen.people(1)[0]
    name = pen.town.people[who].name
    rule = rng.choice(pen.instructions) if rng.random() < 0.8 else None
    own = [x for x in pen.town.attributes if f"facts/{who}.{x}" in pen.train_facts]
    lines = [f"A talk with {name}."]
    if rule:
        lines.append(rng.choice((rule.text, rule.short + ".")))
    for _ in range(rng.choice((3, 6, 10, 20))):
        if own and rng.random() < 0.4:
            x = rng.choice(own)
            question, answer = rng.choice(pen.town.attributes[x].asked), rng.choice(pen.first[who][x])
        else:
            skill = rng.choice(("facts", "opposites", "arithmetic", "comparing", "listing"))
            question, answer = _asked(pen, skill)[-1]
        if rule:
            answer = f"{rule.phrase} {answer}" if rule.position == "start" else f"{answer} {rule.phrase}"
        lines.append(f"Question: {question} Answer: {answer}")
    return " ".join(lines)
