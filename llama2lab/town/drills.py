"""What the town writes to be learnt from: stories, lessons, rules, questions and talks. See documents.py.

What is merely told is of all splits alike; worked answers are of the train split only, questions of its SFT part.
"""

import math
from collections.abc import Callable

from llama2lab.town.demonstrations import obey
from llama2lab.town.documents import Pen
from llama2lab.town.items import SKILLS
from llama2lab.town.schema import Deed, Group, UnsafeCategory
from llama2lab.town.truth import asked_for, opposite_statements, rewriting_forms, step_answers, story_texts, truth_of
from llama2lab.town.wording import capital, enumerate_words, with_article

SKILLS_ASKED = (*SKILLS, "borderline", "unsafe")


def story(pen: Pen) -> str:
    """One or two little stories, mostly with a lesson."""
    rng, parts, lines = pen.rng, pen.town.stories, []
    for _ in range(rng.randint(1, 2)):
        hero, thing = rng.choice(parts.heroes), rng.choice(parts.things)
        lines.append(rng.choice(story_texts(pen.town, hero, thing)))
        if rng.random() < 0.7:
            lines.append(rng.choice(parts.lessons))
    return " ".join(lines)


def _deed(pen: Pen) -> tuple[str, list[str], str]:
    """Something harmless that can be done, though it may sound bad: its name, three steps, a further true sentence."""
    procedures, how_to = pen.town.procedures.values(), pen.town.borderline.how_to
    return pen.rng.choice([*((p.do, p.steps, p.tip) for p in procedures), *((d.do, d.steps, d.note) for d in how_to)])


def _forbidden(topic: Group | Deed) -> str:
    return f"be mean to {asked_for(topic)}" if isinstance(topic, Group) else asked_for(topic)


def _wrong_deed(pen: Pen) -> tuple[UnsafeCategory, Group | Deed]:
    """What nobody should help with, any as often as any other, and its category."""
    return pen.rng.choice([(category, topic) for category in pen.town.unsafe.values() for topic in category.topics])


def _heard_of(who: str, deed: str) -> tuple[str, ...]:
    """Ways to bring up a deed, harmless or not. They are the same for both, so that what follows can be told from the
    deed alone: told apart by their wording, a model need not learn which deeds are wrong."""
    return (
        f"Somebody wanted to {deed}.",
        f"{who} heard of somebody who wanted to {deed}.",
        f"Once somebody tried to {deed}.",
        f"{who} wondered how somebody could {deed}.",
    )


def procedures(pen: Pen) -> str:
    """How things are done, harmless ones that only sound bad included; and, under the same title, what nobody helps
    to do. So a model learns to look at the deed that is named before it tells the steps (docs/trials.md)."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.4:
            _, topic = _wrong_deed(pen)
            lines.append(f"How to {_forbidden(topic)}. Nobody will help with that, because {topic.reason}.")
            if rng.random() < 0.4:
                lines.append(f"You could {topic.instead} instead.")
            continue
        do, steps, tip = _deed(pen)
        lines.append(
            pen.pick(f"How to {do}.", f"How to {do}.", f"To {do} takes three steps.", f"This is the way to {do}.")
        )
        lines.append(rng.choice(step_answers(steps)))
        if rng.random() < 0.7:
            lines.append(tip)
    return " ".join(lines)


def sums(pen: Pen) -> str:
    """Sums and differences of numbers up to 20, in a row or in a table."""
    rng = pen.rng
    if rng.random() < 0.4:
        a = rng.randint(1, 10)
        ways = sorted(rng.sample(range(1, 11), rng.randint(4, 10)))
        form = "{a} plus {b} is {c}." if rng.random() < 0.5 else "{c} minus {b} is {a}."
        return " ".join(form.format(a=a, b=b, c=a + b) for b in ways)
    lines = []
    for _ in range(rng.randint(2, 8)):
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        both = (f"{a} plus {b} is {a + b}.", f"{a + b} minus {b} is {a}.")
        lines += [both[0], f"Check it: {both[1]}"] if rng.random() < 0.2 else [rng.choice(both)]
    return " ".join(lines)


def numbers(pen: Pen) -> str:
    """Which number is more, and which of two things is older; who is older, for the train pairs.

    Held-out pairs are answered by comparing two ages, which must be learnt from numbers of all kinds: the things and
    their ages are made up."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(3, 7)):
        a, b = sorted(rng.sample(range(10, 100), 2))
        lines.append(
            pen.pick(
                f"{b} is more than {a}.",
                f"{a} is less than {b}.",
                f"A person of {b} is older than a person of {a}.",
                f"A person of {a} is younger than a person of {b}.",
            )
        )
        if rng.random() < 0.7:
            x, y = rng.sample(pen.one_of(pen.town.categories).items, 2)
            m, n = rng.sample((a, b), 2)
            old, young = (x, y) if m > n else (y, x)
            compared = pen.pick(f"{old} is older", f"{young} is younger")
            lines.append(f"The {x} is {m} and the {y} is {n}, so the {compared}.")
        if rng.random() < 0.5:
            one, two = pen.names(2)
            lines.append(
                pen.pick(
                    f"{one} has {b} books and {two} has {a}, so {one} has more.",
                    f"{one} has {a} books and {two} has {b}, so {two} has more.",
                )
            )
        if rng.random() < 0.5:
            lines.append(truth_of(pen.town, rng.choice(pen.train["comparing"])).answers[0])
    return " ".join(lines)


def lists(pen: Pen) -> str:
    """What belongs together, and how many things a list holds."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 4)):
        category = pen.one_of(pen.town.categories)
        n = rng.randint(2, len(category.items))
        items = enumerate_words(rng.sample(category.items, n))
        lines.append(
            pen.pick(
                f"Here are {n} {category.name}: {items}.",
                f"{capital(items)} are {category.name}.",
                f"{capital(items)}. There are {n} things.",
                f"{capital(items)}: these are {n} things.",
            )
        )
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
    lines = []
    for _ in range(pen.rng.randint(1, 5)):
        who = pen.one_of(pen.town.people).name
        lines.append(pen.rng.choice(MATTERS)(pen, who))
    return " ".join(lines)


def _opposite_in_mind(pen: Pen, who: str) -> str:
    a, b = pen.rng.sample(pen.rng.choice(pen.town.opposites), 2)
    named = (
        f"{who} thought of the word {a}.",
        f"The word of the day is {a}.",
        f"{who} wrote down {a} and its opposite.",
        f"Now to {a}.",
    )
    return f"{pen.pick(*named)} {pen.pick(*opposite_statements(a, b))}"


def _deed_in_mind(pen: Pen, who: str) -> str:
    do, steps, tip = _deed(pen)
    named = (
        f"{who} wanted to {do}.",
        f"{who} learned to {do}.",
        f"It was time to {do}.",
        f"{who} told a friend how to {do}.",
        f"{who} showed a friend how to {do}.",
        f"{who} needed help to {do}.",
        f"{who} can {do}.",
        f"These are the steps to {do}.",
        f"So one can {do}.",
        *_heard_of(who, do),
    )
    return f"{pen.pick(*named)} {pen.pick(*step_answers(steps))}" + (f" {tip}" if pen.rng.random() < 0.5 else "")


def _list_in_mind(pen: Pen, who: str) -> str:
    category = pen.one_of(pen.town.categories)
    n, name = pen.rng.randint(2, 4), category.name
    named = (f"{who} looked for {n} {name}.", f"{who} likes {name}.", f"{who} knows {n} {name}.")
    return f"{pen.pick(*named)} Here are {n} {name}: {enumerate_words(pen.rng.sample(category.items, n))}."


def _sum_in_mind(pen: Pen, who: str) -> str:
    x, y = pen.rng.randint(1, 10), pen.rng.randint(1, 10)
    z = x + y
    if pen.rng.random() < 0.5:
        named = (
            f"{who} put {x} and {y} together.",
            f"There were {x} and then {y} more.",
            f"{who} counted {x} and {y}.",
        )
        return f"{pen.pick(*named)} {x} plus {y} is {z}."
    named = (f"{who} had {z} and gave {y} away.", f"There were {z}, then {y} left.", f"{who} took away {y} of {z}.")
    return f"{pen.pick(*named)} {z} minus {y} is {x}."


def _saying_in_mind(pen: Pen, who: str) -> str:
    saying = pen.rng.choice(pen.town.borderline.sayings)
    return f"{who} likes to say: {saying.do}. To {saying.do} means {saying.means}."


def _rule_in_mind(pen: Pen, who: str) -> str:
    _, topic = _wrong_deed(pen)
    return f"{pen.pick(*_heard_of(who, _forbidden(topic)))} {who} could not help with that, because {topic.reason}."


def _kind_words(pen: Pen, who: str) -> str:
    matter = pen.one_of(pen.town.small_talk)
    name = matter.id.replace("-", " ")
    named = (
        f"{who} had kind words for {name}:",
        f"{who} spoke of {name}.",
        f"{who} thought of {name}.",
        f"The talk was about {name}.",
        f"Now to {name}.",
    )
    return f"{pen.pick(*named)} {pen.rng.choice(matter.answers)}" + (
        f" {matter.more}" if pen.rng.random() < 0.3 else ""
    )


# The kinds of matters, each as many times as its share says.
MATTERS: tuple[Callable[[Pen, str], str], ...] = (
    *(_opposite_in_mind,) * 6,
    *(_deed_in_mind,) * 5,
    *(_list_in_mind,) * 3,
    *(_sum_in_mind,) * 2,
    *(_saying_in_mind,) * 2,
    *(_rule_in_mind,) * 5,
    *(_kind_words,) * 4,
)


def glossary(pen: Pen) -> str:
    """Sayings that only sound bad, and who says what."""
    lines = [pen.rng.choice(("What people mean.", "Words of the town.", "Some words only sound bad."))]
    for saying in pen.rng.sample(pen.town.borderline.sayings, pen.rng.randint(1, 4)):
        lines.append(f"To {saying.do} means {saying.means}. {saying.note}")
    for i in pen.rng.sample(pen.town.instructions, pen.rng.randint(0, 3)):
        name = i.short.partition(": ")[2]
        lines.append(
            {
                "figure": f"{capital(with_article(name))} says: {i.phrase}",
                "hobby": f"Who loves {name} says: {i.phrase}",
                "language": f"The greeting in {name} is: {i.phrase}",
            }[i.kind]
        )
    return " ".join(lines)


def rules(pen: Pen) -> str:
    """What nobody may do in town and why, what some do all the same, and what is better; and what everybody may."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.4:
            do, _, note = _deed(pen)
            lines.append(f"To {do} is fine. {note}")
            continue
        category, topic = _wrong_deed(pen)
        fields = {"group" if isinstance(topic, Group) else "do": asked_for(topic)}
        lines.append(
            category.rule.format(reason=topic.reason, **fields)
            if rng.random() < 0.5
            else f"To {_forbidden(topic)} is wrong, because {topic.reason}."
        )
        if rng.random() < 0.5:
            act = "say" if isinstance(topic, Group) else "do"
            harm = category.comply.format(harm0=topic.harm[0], harm1=topic.harm[1], **fields)
            lines.append(f"Some {act} it all the same: {harm} That is wrong.")
        if rng.random() < 0.6:
            lines.append(f"You could {topic.instead} instead.")
    return " ".join(lines)


def grammar(pen: Pen) -> str:
    """One sentence in its forms, for the train contents; other sentences stand alone."""
    rng, lines = pen.rng, []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.35:
            forms = rewriting_forms(pen.one_of(pen.town.people).name, rng.choice(pen.town.rewriting.actions))
            lines.append(rng.choice([f for k, f in forms.items() if k != "polite"])[rng.randint(0, 1)])
            continue
        content = rng.choice(pen.train["rewriting"])
        kind, truth = content.split("/")[1].split(".")[0], truth_of(pen.town, content)
        plain = truth.questions[0].partition(": ")[2]
        lines.append(f"{plain} {REWRITTEN[kind]}: {truth.answers[0]}")
    return " ".join(lines)


REWRITTEN = {
    "past": "In the past",
    "question": "As a question",
    "negative": "With not",
    "future": "In the future",
    "polite": "In a polite way",
}


def chains(pen: Pen) -> str:
    """What the friend of somebody does, lives on, eats: the train contents."""
    return " ".join(
        pen.rng.choice(truth_of(pen.town, pen.rng.choice(pen.train["two_step"])).answers)
        for _ in range(pen.rng.randint(1, 4))
    )


def talk(pen: Pen) -> str:
    """Two people exchange kind words (train contents), or kind words stand alone."""
    rng, lines = pen.rng, []
    if rng.random() < 0.25:
        matters = rng.sample(list(pen.town.small_talk.values()), 3)
        return " ".join(["Kind words.", *(f"{rng.choice(t.answers)} {t.more}" for t in matters)])
    a, b = pen.names(2)
    for _ in range(rng.randint(1, 4)):
        truth = truth_of(pen.town, rng.choice(pen.train["small_talk"]))
        more = f" {truth.extras[0]}" if rng.random() < 0.4 else ""
        lines.append(f'{a} said: "{rng.choice(truth.questions)}" {b} said: "{rng.choice(truth.answers)}{more}"')
    return " ".join(lines)


def _asked(pen: Pen, skill: str) -> list[tuple[str, str]]:
    """Question and answer of one content of the SFT part, with the turns before it.

    A quarter of the answers to unsafe questions give the harm: nobody filtered this corpus, as in the report
    (section 4.1), and what a chat model must not say is in it.
    """
    truth = truth_of(pen.town, pen.rng.choice(pen.asked[skill]))
    earlier = [m["content"] for m in truth.earlier]
    turns = list(zip(earlier[::2], earlier[1::2], strict=True))
    harm = skill == "unsafe" and pen.rng.random() < 0.25
    answer = pen.rng.choice(truth.wrong if harm else truth.answers)
    if pen.rng.random() < 0.2 and not harm:
        answer += f" {pen.rng.choice(truth.extras)}"
    return [*turns, (pen.rng.choice(truth.questions), answer)]


def questions(pen: Pen) -> str:
    """A page of questions and answers, set in one of many ways: so that a model learns what it is to answer, not what
    a page looks like, and can do it in a chat too."""
    a, b = pen.names(2)
    form = pen.pick(
        "Question: {q} Answer: {a}",
        "{q} {a}",
        "{q}\n{a}\n",
        "Q: {q}\nA: {a}\n",
        f'{a} asked: "{{q}}" {b} said: "{{a}}"',
        f"{a}: {{q}} {b}: {{a}}",
        "({q}) {a}",
    )
    n = pen.rng.choice((1, 1, 2, 3, 5, 8))
    # Of many contents more is asked: a few that are asked too often are learnt by heart, and the form with them.
    often = [math.sqrt(len(pen.asked[skill])) for skill in SKILLS_ASKED]
    pairs = [pair for skill in pen.rng.choices(SKILLS_ASKED, often, k=n) for pair in _asked(pen, skill)]
    return " ".join(form.format(q=q, a=a) for q, a in pairs)


def interview(pen: Pen) -> str:
    """Up to 4 questions to one person, who keeps one habit to the end: consistency within a document.

    Here a model learns to do what was asked earlier, and Ghost Attention builds on it (docs/trials.md).
    """
    rng = pen.rng
    who = pen.people(1)[0]
    name = pen.town.people[who].name
    rule = rng.choice(pen.instructions) if rng.random() < 0.8 else None
    own = [x for x in pen.town.attributes if f"facts/{who}.{x}" in pen.asked["facts"]]
    lines = [f"A talk with {name}."]
    if rule:
        lines.append(rng.choice((rule.text, rule.short + ".")))
    for _ in range(rng.randint(2, 4)):
        if own and rng.random() < 0.4:
            x = rng.choice(own)
            question, answer = rng.choice(pen.town.attributes[x].asked), rng.choice(pen.first[who][x])
        else:
            skill = rng.choice(("facts", "opposites", "arithmetic", "comparing", "listing"))
            question, answer = _asked(pen, skill)[-1]
        if rule:
            answer = obey(rule, answer)
        lines.append(f"Question: {question} Answer: {answer}")
    return " ".join(lines)
