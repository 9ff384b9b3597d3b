"""Reading an answer: which phrases does it assert, and which does it only name or deny?

A text becomes a line of plain tokens (number words as digits, short forms written out, possessives dropped),
each with the clause it stands in. A phrase is matched on whole tokens; a negation reaches to the end of its
clause.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

_TOKEN = re.compile(r"(?<![\w.])-\d+(?:\.\d+)?|\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)*|[,;:.!?()\n+=×÷*/&-]")
_CURLY = str.maketrans({"’": "'", "‘": "'", "–": "-", "—": "-"})
_ENDS_CLAUSE = frozenset(",;:.!?()\n")
_STARTS_CLAUSE = frozenset(("but", "because", "so", "since", "although", "though", "while", "however", "whereas"))
_SPOKEN = {"+": "plus", "=": "is", "×": "times", "*": "times", "÷": "by", "/": "by", "&": "and"}
_ENDINGS = {"'m": "am", "'re": "are", "'ll": "will", "'ve": "have", "'d": "would"}
_IS_SHORT = frozenset(("it", "he", "she", "that", "there", "here", "what", "who", "where", "this"))
_NEGATORS = frozenset(
    ("not", "never", "neither", "nor", "no", "nobody", "none", "instead", "rather", "unlike", "except", "without")
)
_WEIGHTLESS = frozenset(("the", "a", "an", "some", "your", "my", "it", "them", "to", "of", "at", "in", "on"))
_NO_NEGATION_AFTER = frozenset(("only", "just", "merely", "far"))
_RELATIVE = frozenset(("who", "which", "that"))
_BE = frozenset(("is", "are", "was", "were"))
_DENIED_AFTER = re.compile(
    r"(?:is|was|are|were) (?:wrong|false|untrue|not (?:the|where|her|his|their|what|right|true|correct|it))\b"
)
_UNITS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_NUMBER = {word: n for n, word in enumerate(_UNITS.split())}
_TENS = dict(twenty=20, thirty=30, forty=40, fifty=50, sixty=60, seventy=70, eighty=80, ninety=90)
_FULL_TENS = frozenset(map(str, _TENS.values()))
READ_CHARS = 20_000  # no answer is this long; the rest of a longer text is not read


@dataclass(frozen=True)
class Reading:
    """Tokens of a text. ``line`` is " tok tok tok "; the other lists have one entry a token."""

    line: str
    tokens: list[str]
    clauses: list[int]
    sentences: list[int] = field(repr=False)
    asked: list[bool] = field(repr=False)  # the token stands in a question


def _spell_out(token: str) -> list[str]:
    """Short forms and possessives: "can't" -> can not, "it's" -> it is, "Tom's" -> tom."""
    if "'" not in token:
        return ["can", "not"] if token == "cannot" else [token]
    if token.endswith("n't"):
        stem = {"ca": "can", "wo": "will", "sha": "shall"}.get(token[:-3], token[:-3])
        return [stem, "not"]
    stem, _, tail = token.rpartition("'")
    if "'" + tail in _ENDINGS:
        return [stem, _ENDINGS["'" + tail]]
    if tail == "s":
        return [stem, "is"] if stem in _IS_SHORT else [stem]
    return token.split("'")


def _raw_tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for token in _TOKEN.findall(text[:READ_CHARS].lower().translate(_CURLY)):
        if token in _SPOKEN:
            tokens.append(_SPOKEN[token])
        elif token in _TENS:
            tokens.append(str(_TENS[token]))
        elif token in _NUMBER:
            dash = len(tokens) > 1 and tokens[-1] == "-"
            tens = tokens[-2] if dash else tokens[-1] if tokens else ""
            if 0 < _NUMBER[token] < 10 and tens in _FULL_TENS:
                del tokens[-2 if dash else -1 :]
                tokens.append(str(int(tens) + _NUMBER[token]))
            else:  # "that one is hers" is no number
                tokens.append(token if token == "one" else str(_NUMBER[token]))
        elif token in _ENDS_CLAUSE or token == "-":
            tokens.append(token)
        else:
            tokens.extend(_spell_out(token))
    return tokens


def read(text: str) -> Reading:
    """Tokens with their clauses; linear in the length of the text."""
    tokens: list[str] = []
    clauses: list[int] = []
    sentences: list[int] = []
    asked: list[bool] = []
    clause = sentence = sentence_start = 0
    raw = _raw_tokens(text)
    for i, token in enumerate(raw):
        if token in _ENDS_CLAUSE:
            clause += 1
            if token == "?":
                asked[sentence_start:] = [True] * (len(asked) - sentence_start)
            if token in ".!?\n":
                sentence_start = len(tokens)
                sentence += 1
        elif token != "-":
            next_token = raw[i + 1] if i + 1 < len(raw) else ""
            if token in _STARTS_CLAUSE or (token == "and" and next_token in ("he", "she", "it", "they", "i", "we")):
                clause += 1
            tokens.append(token)
            clauses.append(clause)
            sentences.append(sentence)
            asked.append(False)
    return Reading(f" {' '.join(tokens)} ", tokens, clauses, sentences, asked)


@lru_cache(maxsize=100_000)
def variants(phrase: str) -> tuple[str, ...]:
    """The forms in which a phrase counts: as it is, with its last word in singular or plural, 1 as one."""
    tokens = [t for t in _raw_tokens(phrase) if t not in _ENDS_CLAUSE and t != "-"]
    if not tokens:
        return ()
    last = tokens[-1]
    forms = {last}
    if last.isalpha() and len(last) > 2:
        forms |= {last + "s", last + "es"}
        if last.endswith("y"):
            forms.add(last[:-1] + "ies")
        if last.endswith("ies"):
            forms.add(last[:-3] + "y")
        elif last.endswith("s") and not last.endswith("ss") and len(last) > 3:
            forms.add(last[:-1])
    elif last == "1":
        forms.add("one")
    head = "".join(t + " " for t in tokens[:-1])
    return tuple(f" {head}{form} " for form in sorted(forms, key=lambda f: f != last))


def _denied(reading: Reading, start: int, end: int) -> bool:
    """Is the phrase at tokens start..end inside a negation of its clause (or denied right after)?"""
    tokens, clause = reading.tokens, reading.clauses[start]
    for i in range(start - 1, max(-1, start - 16), -1):
        if reading.clauses[i] != clause:
            break
        if tokens[i] in _NEGATORS and tokens[i + 1] not in _NO_NEGATION_AFTER:
            before = tokens[max(0, i - 2) : i]
            if before[-1:] == ["of"] or before == ["what", "is"]:
                continue  # "the opposite of never", "what is not hot is cold"
            if set(before) & _RELATIVE and set(tokens[i + 1 : start]) & _BE:
                continue  # "all who cannot read are ..."
            return True
    if end < len(tokens) and reading.clauses[end] == clause:
        return bool(_DENIED_AFTER.match(" ".join(tokens[end : end + 4])))
    return False


def find(reading: Reading, phrase: str, after: int = 0, questions: bool = False) -> int:
    """Position in ``line`` behind the first asserted match at or after ``after``; -1 if none.

    A match in a question counts only with ``questions``. At most 50 matches of a phrase are looked at.
    """
    best = -1
    for form in variants(phrase):
        at = reading.line.find(form, after)
        for _ in range(50):
            if at < 0:
                break
            start = reading.line.count(" ", 0, at)
            end = start + form.count(" ") - 1
            whole = reading.sentences[start] == reading.sentences[end - 1]
            if whole and (questions or not reading.asked[start]) and not _denied(reading, start, end):
                stop = at + len(form) - 1
                best = stop if best < 0 else min(best, stop)
                break
            at = reading.line.find(form, at + 1)
    return best


def find_loosely(reading: Reading, phrase: str, after: int = 0) -> int:
    """As ``find``, for all words of weight of the phrase in any form and order within one clause.

    "boil the water" is found in "start by boiling some water".
    """
    wanted = _stems(phrase)
    if len(wanted) < 2:
        return -1
    first = reading.line.count(" ", 0, after + 1) - 1 if after else 0
    clauses: dict[int, set[str]] = {}
    for i in range(first, len(reading.tokens)):
        stems = clauses.setdefault(reading.clauses[i], set())
        stems.add(_stem(reading.tokens[i]))
        if wanted <= stems and not reading.asked[i] and not _denied(reading, i, i + 1):
            return len(" ".join(reading.tokens[: i + 1])) + 1
    return -1


@lru_cache(maxsize=20_000)
def _stems(phrase: str) -> frozenset[str]:
    return frozenset(_stem(t) for t in read(phrase).tokens if t not in _WEIGHTLESS)


@lru_cache(maxsize=20_000)
def _stem(token: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if token.endswith(ending) and len(token) > len(ending) + 2:
            stem = token[: -len(ending)]
            return stem[:-1] if ending in ("ing", "ed") and len(stem) > 3 and stem[-1] == stem[-2] not in "ls" else stem
    return token


def named(reading: Reading, phrase: str) -> bool:
    """Is the phrase in the text at all, asserted or not?"""
    return any(form in reading.line for form in variants(phrase))


def blank(reading: Reading, line: str) -> Reading:
    """The reading with a whole line of tokens (" where is she ") blanked out, in its tokens as well."""
    at = reading.line.find(line)
    if at < 0:
        return reading
    start, n = reading.line.count(" ", 0, at), line.count(" ") - 1
    tokens = [*reading.tokens[:start], *["_"] * n, *reading.tokens[start + n :]]
    return blank(replace(reading, tokens=tokens, line=f" {' '.join(tokens)} "), line)


def without(reading: Reading, phrases: tuple[str, ...] | list[str]) -> Reading:
    """The same reading with these phrases blanked out (positions of tokens stay)."""
    line = reading.line
    for phrase in sorted(phrases, key=len, reverse=True):
        for form in variants(phrase):
            if form in line:
                line = line.replace(form, " " + "_ " * (form.count(" ") - 1))
    return replace(reading, line=line)


# --- comparisons: "Tom, who is 45, is older than Mira (31)." ---

_SIGN = {"older": 1, "oldest": 1, "elder": 1, "eldest": 1, "younger": -1, "youngest": -1}


def comparison_claims(
    reading: Reading, names: dict[str, str], sign: int, others: Iterable[str] = ()
) -> list[tuple[str, bool]]:
    """Who is claimed to win: (name, True) for "name is it", (name, False) for "name is not".

    ``names`` maps the lower-case names of those compared to "he", "she" or ""; ``sign`` is +1 if the question
    asks for the older one and -1 for the younger. ``others`` are names of people who are not compared.
    """
    tokens, people = reading.tokens, {*names, *others}
    claims = []
    for i, token in enumerate(tokens):
        if token in _SIGN and not reading.asked[i]:
            who = _who_is(tokens, i, names, people)
            if who is not None:
                claims.append((who, (_SIGN[token] == sign) != _denied(reading, i, i + 1)))
    return claims


def _who_is(tokens: list[str], at: int, names: dict[str, str], people: set[str]) -> str | None:
    """The nearest name (or pronoun) before the word "older", or the first one behind it: "the older one is Tom"."""
    for token in reversed(tokens[max(0, at - 24) : at]):
        meant = [token] if token in people else [name for name, pronoun in names.items() if pronoun == token]
        if len(meant) == 1:
            return meant[0]
    after = tokens[at + 1 : at + 8]
    named = next((i for i, token in enumerate(after) if token in people), None)
    return None if named is None or "than" in after[:named] else after[named]
