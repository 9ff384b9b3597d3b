"""Small English: articles, verb forms, enumerations."""

from collections.abc import Sequence


def with_article(noun: str) -> str:
    """ "dog" -> "a dog", "owl" -> "an owl"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def conjugated(action: str) -> tuple[str, str]:
    """Third person and past of an action with a regular verb: "close the door" -> "closes ...", "closed ..."."""
    verb, _, rest = action.partition(" ")
    third = verb + ("es" if verb.endswith(("sh", "ch", "s", "x", "o")) else "s")
    past = verb + ("d" if verb.endswith("e") else "ed")
    return f"{third} {rest}".strip(), f"{past} {rest}".strip()


def enumerate_words(words: Sequence[str]) -> str:
    """["apple", "pear", "plum"] -> "apple, pear and plum"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def capital(text: str) -> str:
    """First letter as a capital."""
    return text[0].upper() + text[1:]


def sentence(text: str) -> str:
    """First letter as a capital, a full stop at the end."""
    return capital(text) + ("" if text.endswith((".", "!", "?")) else ".")


def phrases(text: str) -> tuple[str, ...]:
    """Phrases between commas, over several lines."""
    return tuple(" ".join(text.split()).split(", "))
