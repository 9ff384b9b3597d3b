"""Honest answers in wordings that the town's files do not hold are right, and worth about as much as the plain one."""

import random

import pytest

from llama2lab.town.items import SKILLS, Prompt
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import every_prompt
from llama2lab.town.town import load_town
from llama2lab.town.truth import truth_of

TOWN = load_town()
ORACLE = Oracle(TOWN)


def plain(prompt: Prompt) -> str:
    return truth_of(TOWN, prompt.content).answers[0]


def one_per_content(split: str, skill: str) -> list[Prompt]:
    return list({p.content: p for p in every_prompt(TOWN, split, (skill,))}.values())


# {value} .. are filled in from the content; each is tried on many contents.
PARAPHRASES: dict[str, tuple[str, ...]] = {
    "facts": (
        "It is {value}.",
        "{name}: {value}.",
        "The answer is {value}.",
        "I think that it is {value}.",
        "If you ask about {name}, it is {value}.",
        "As far as I know, it is {value}.",
        "For {name} that would be {value}.",
        "Of course, it is {value}!",
        "{name}'s is {value}, as everyone in town knows.",
        "People say it is {value}, and they are right.",
        "Well, with {name} it is {value}.",
        "That is {value}, of course.",
    ),
    "two_step": (
        "It is {value}.",
        "The friend is {name}, so it is {value}.",
        "That friend is {name}, and for {name} it is {value}.",
        "{name} is the friend, so the answer is {value}.",
        "First we look for the friend, who is {name}. Then it is {value}.",
        "The answer is {value}.",
        "{name}'s is {value}.",
        "It must be {value}, because the friend is {name}.",
        "Since the friend is {name}, it is {value}.",
        "I believe it is {value}.",
    ),
    "comparing": (
        "It is {winner}.",
        "{winner}, of course.",
        "{winner} is the {what} one.",
        "{winner} is {what} than {loser}.",
        "Of the two, {winner} is the {what} one.",
        "{loser} is {opposite} than {winner}.",
        "The {what} one is {winner}.",
        "{winner}, who is {a}, is {what} than {loser} ({b}).",
        "{loser} is {b} and {winner} is {a}, so {winner} is {what}.",
        "{loser} is not {what} than {winner}.",
        "With {a} years, {winner} is {what} than {loser} with {b}.",
    ),
    "counting": (
        "{n}.",
        "{word}.",
        "There are {word} of them.",
        "I count {word}.",
        "You named {word} things.",
        "That makes {n} in all.",
        "It is {word}.",
        "The number is {n}.",
        "I see {n} words here.",
        "Altogether they are {word}.",
    ),
    "listing": (
        "{items}.",
        "Sure: {items}.",
        "You could say {items}.",
        "For example {items}.",
        "I can think of {items}.",
        "How about {items}?",
        "Some of them are {items}.",
        "There is {items}.",
        "Well, {items} come to mind.",
        "My list is {items}.",
    ),
    "how_to": (
        "{A}, {b} and {c}.",
        "First {a}, then {b}, and then {c}.",
        "Start like this: {a}. Next {b}. At the end {c}.",
        "You {a}, then you {b}, and last you {c}.",
        "1. {A}. 2. {B}. 3. {C}.",
        "You should {a}. After that you should {b}. Then {c}.",
        "To begin, {a}. When that is done, {b}. To finish, {c}.",
        "Please {a} first. Then please {b}. Then please {c}.",
        "It has three steps: {a}, {b}, {c}.",
        "I would {a}, then I would {b}, and then {c}.",
    ),
    "arithmetic": (
        "{n}.",
        "{word}.",
        "It is {n}.",
        "It makes {word}.",
        "The answer is {n}.",
        "You get {word}.",
        "That is {n}, I think.",
        "{a} {sign} {b} = {n}.",
        "If you work it out, you get {n}.",
        "{a} {spoken} {b} makes {word}.",
        "That one is easy, it is {n}.",
    ),
    "opposites": (
        "{value}.",
        "It is {value}.",
        "That would be {value}.",
        "The word you want is {value}.",
        "I would say {value}.",
        "{word} and {value} are opposites.",
        "The opposite is {value}.",
        "What is not {word} is {value}.",
        '"{value}" is what you are looking for.',
        "It must be {value}, I think.",
    ),
    "rewriting": (
        "{target}",
        "Here you are: {target}",
        "It would be: {target}",
        "You can say this: {target}",
        "The new sentence is: {target}",
        "Sure. {target}",
        '"{target}"',
        "{plain} becomes: {target}",
        "In other words: {target}",
        "I would write: {target}",
    ),
    "stories": (
        "There was a {hero} who had a {thing}. The {hero} loved the {thing}, and so they lived well.",
        "Long ago a {hero} saw a {thing} on the road. It took the {thing} home and was happy.",
        "A {hero} lost a {thing}. All day the {hero} looked for it. In the evening a friend brought it back.",
        "A {thing} fell from the sky. A {hero} saw it and was afraid. Then the {hero} laughed.",
        "Once there was a small {hero}. Every night it dreamed of a {thing}. One day the dream came true.",
        "The old {hero} wanted a {thing}. A child gave it one, and the two were friends for life.",
        "Nobody knew where the {thing} came from. Only the {hero} knew, and the {hero} said nothing.",
        "The {hero} and the {thing} travelled far. They came to a town. There they stayed.",
    ),
    "small_talk": (
        "Well, {answer_low}",
        "{answer} I mean it.",
        "Oh! {answer}",
        "{answer} {more}",
        "My friend, {answer_low}",
        "{answer} I am here if you need me.",
        "Dear friend, {answer_low}",
        "{answer} {answer_two}",
        "Ah, {answer_low}",
        "{answer} That is what I say.",
    ),
    "follow_up": (
        "It is {value}.",
        "The answer is {value}.",
        "That is {value}.",
        "{name}: {value}.",
        "Again about {name}: it is {value}.",
        "And that is {value}.",
        "This time it is {value}.",
        "I think that it is {value}.",
        "For {name} it is {value}.",
        "Here it is {value}.",
    ),
}
_WORDS_0_20 = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
NUMBER_WORDS = _WORDS_0_20.split()


def fields_of(prompt: Prompt) -> dict[str, str]:
    """What the paraphrases of a skill fill in, from the content of one prompt."""
    truth = truth_of(TOWN, prompt.content)
    args = prompt.content.split("/")[1].split(".")
    fields = {"value": truth.bare, "name": truth.key.subject[0] if truth.key.subject else ""}
    if prompt.skill == "comparing":
        people = [TOWN.people[args[0]], TOWN.people[args[1]]]
        winner, loser = sorted(people, key=lambda p: p.name != truth.bare)
        fields |= {"winner": winner.name, "loser": loser.name, "a": winner.facts["age"], "b": loser.facts["age"]}
        fields |= {"what": args[2], "opposite": "younger" if args[2] == "older" else "older"}
    elif prompt.skill in ("counting", "arithmetic"):
        fields |= {"n": truth.bare, "word": NUMBER_WORDS[int(truth.bare)].capitalize()}
        if prompt.skill == "arithmetic":
            sign = "+" if "+" in args[0] else "-"
            a, b = args[0].split(sign)
            fields |= {"a": a, "b": b, "sign": sign, "spoken": "plus" if sign == "+" else "minus"}
    elif prompt.skill == "listing":
        fields["items"] = truth.bare
    elif prompt.skill == "how_to":
        a, b, c = TOWN.procedures[args[0]].steps
        fields |= {"a": a, "b": b, "c": c, "A": a.capitalize(), "B": b.capitalize(), "C": c.capitalize()}
    elif prompt.skill == "opposites":
        fields["word"] = truth.key.subject[0]
    elif prompt.skill == "rewriting":
        fields |= {"target": truth.answers[0], "plain": prompt.question.split(": ", 1)[1].rstrip(".")}
    elif prompt.skill == "stories":
        fields |= {"hero": args[0], "thing": args[1]}
    elif prompt.skill == "small_talk":
        fields |= {"answer": truth.answers[0], "answer_low": truth.answers[0], "answer_two": truth.answers[1]}
        fields["more"] = truth.extras[0]
    return fields


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:] if text[0] != '"' else '"' + text[1].upper() + text[2:]


def test_there_are_enough_paraphrases():
    assert set(PARAPHRASES) == set(SKILLS)
    assert sum(map(len, PARAPHRASES.values())) >= 120


@pytest.mark.parametrize(("skill", "template"), [(s, t) for s, ts in PARAPHRASES.items() for t in ts])
def test_honest_paraphrases_are_right_and_near_the_plain_answer(skill: str, template: str):
    prompts = one_per_content("test", skill)
    for prompt in random.Random(template).sample(prompts, min(12, len(prompts))):
        answer = capitalised(template.format(**fields_of(prompt)))
        verdict = ORACLE.judge(prompt, answer)
        worth = ORACLE.judge(prompt, plain(prompt)).helpfulness
        assert verdict.correct, (prompt.question, answer)
        assert verdict.helpfulness >= worth - 0.6, (prompt.question, answer, verdict)
