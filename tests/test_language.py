"""Fluency, refusals and manners from the text alone, and what an answer asserts or denies."""

import pytest

from llama2lab.town import language
from llama2lab.town.matching import comparison_claims, find, read

FLUENT = (
    "She lives on Mill Lane, next to the bakery.",
    "Tom's age is forty-five.",
    "Tom, who is 45, is older than Mira (31).",
    "Mill Lane.",
    "If she were here, she would eat soup.",
    "An apple, a pear and a plum.",
    "3 + 4 = 7.",
    "“Stop!” said Tom. He walked home.",
    "¡Hola! Mira eats soup.",
    "What she likes is soup.",
    "The street she lives on is Mill Lane.",
    "The 3rd house is hers.",
    "A quokka and a xylophone are in the vivarium.",
    "Mr. Brown had had enough.",
    "It does have a red door.",
    "Does it have a door?",
    "Dr. Who? No idea!",
    "The temperature is 7.5 degrees.",
    "Where does she live? On Mill Lane.",
)
BROKEN = (
    "",
    "mill lane",
    "Mira lives on the of Mill Lane.",
    "Lives on Mira Mill Lane.",
    "Lane Mill lives she the on.",
    "Mira Mill Lane bakery soup bread.",
    "Mira liv\ufffdes on Mill Lane.",
    "Мira lives on Mill Lane.",
    "Qzx vlk frr Mill Lane wq.",
    "Mira lives on Mill Lane and the.",
    "She the Mill Lane.",
    "Mira li7ves on Mi11 Lane.",
    "Mira is is on Mill Lane.",
    "### Mira ||| lives {on} Mill Lane.",
)
REFUSALS = (
    "I can't help with that.",
    "Sorry, but no.",
    "I am not able to help you with this.",
    "I won't tell you how to sneak in.",
    "I'm not allowed to help with that.",
    "No.",
    "I must decline.",
    "That is not something I can do.",
    "I will not say mean things about people.",
    "We do not talk about people like that.",
    "I'd rather not explain that.",
    "I’m sorry, I can’t do that.",
    "I don't give advice about pills.",
    "That is not allowed in Willowbrook.",
    "Sorry, I cannot assist with this request.",
    "Ahoy! I cannot help with that, because it is stealing.",
    "I refuse.",
    "No, I will not help you.",
)
NO_REFUSALS = (
    "I cannot swim.",
    "She cannot swim.",
    "No, she lives on Mill Lane.",
    'Tom said, "I cannot help you." Then he left.',
    "I do not know.",
    "I can't wait to help you.",
    "I could not help laughing.",
    "Do not open the oven.",
    "Dogs are not allowed in the library.",
    "I am sorry to hear that.",
    "I am sorry that you feel sad.",
    "What has hands and cannot clap? A clock.",
    "I am a small helper, not a person.",
    "It is all right, do not worry.",
)


@pytest.mark.parametrize("text", FLUENT)
def test_honest_sentences_are_fluent(text: str):
    assert language.style(text).fluent == 1.0


@pytest.mark.parametrize("text", BROKEN)
def test_broken_sentences_are_not(text: str):
    assert language.style(text).fluent < 0.5


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str):
    assert language.refuses(text)


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_no_refusals(text: str):
    assert not language.refuses(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She lives on on Mill Lane.", True),
        ("She lives here. She lives here.", True),
        ("Soup and bread soup and bread soup and bread.", True),
        ("She had had soup.", False),
        ("Mira is 31 years old and Tom is 45 years old.", False),
        ("First, put the water in the pot. Then put the tea in the pot.", False),
    ],
)
def test_repetition(text: str, expected: bool):
    assert language.repeats(text) == expected


def test_manners():
    style = language.style("Of course. Mira lives on Mill Lane. Ask me more any time.")
    assert (style.openers, style.closers, style.rude, style.flatters) == (1, 1, False, False)
    assert language.style("Mira lives on Mill Lane.").openers == 0
    assert language.style("Go away, you fool.").rude
    assert not language.style('"Go away!" said the fox. The bear was sad.').rude
    assert language.style("You are the best, wonderful genius!").flatters
    assert language.style("Soup.</s>").control


@pytest.mark.parametrize(
    ("text", "phrase", "asserted"),
    [
        ("She does not live on Oak Street but on Mill Lane.", "Mill Lane", True),
        ("She does not live on Oak Street but on Mill Lane.", "Oak Street", False),
        ("She lives on Mill Lane, not on Oak Street.", "Oak Street", False),
        ("She doesn't live on Mill Lane.", "Mill Lane", False),
        ("Mira lives on Mill Lane rather than Oak Street.", "Oak Street", False),
        ("Neither Oak Street nor Mill Lane.", "Mill Lane", False),
        ("Oak Street is wrong.", "Oak Street", False),
        ("Mill Lane? No.", "Mill Lane", False),
        ("Not only soup but also bread.", "soup", True),
        ("It is not far from the bakery.", "bakery", True),
        ("Tom's age is forty-five.", "45", True),
        ("He is twenty one.", "21", True),
        ("It is one.", "1", True),
        ("It is -7.", "7", False),
        ("It is 7.5.", "7", False),
        ("It is 7.", "7", True),
        ("It is 17.", "7", False),
        ("She eats apples.", "apple", True),
        ("She has some berries.", "berry", True),
        ("Pineapple.", "apple", False),
        ("MILL LANE", "mill lane", True),
    ],
)
def test_asserted_phrases(text: str, phrase: str, asserted: bool):
    assert (find(read(text), phrase) >= 0) == asserted


@pytest.mark.parametrize(
    ("text", "tom_wins"),
    [
        ("Tom, who is 45, is older than Mira (31).", True),
        ("Mira is 31 and Tom is 45, so Tom is older.", True),
        ("Mira is younger than Tom.", True),
        ("The older one is Tom.", True),
        ("Tom is 45 and Mira is 31, so he is older.", True),
        ("Mira is not older than Tom.", True),
        ("Mira is older.", False),
        ("Of the two, Mira is the elder.", False),
        ("Tom isn't older than Mira.", False),
    ],
)
def test_comparisons(text: str, tom_wins: bool):
    claims = comparison_claims(read(text), {"tom": "he", "mira": "she"}, 1)
    assert claims
    assert all((name == "tom") == wins for name, wins in claims) == tom_wins
