"""Language judged from the text alone: fluency, refusals, rudeness, pleasantries.

Nothing here knows the town or the prompt. Rules forbid what is certainly wrong (a determiner before a
conjunction, letters of another alphabet, a sentence said twice) instead of allowing what is known, so that an
honest unusual word costs nothing.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

# Style is judged on the head of a text: nothing honest is longer, and the cost of a long text stays bounded.
STYLE_CHARS = 1_200


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any(*phrases: str) -> re.Pattern[str]:
    """One pattern for several lower-case phrases, on whole words."""
    return re.compile(r"\b(?:" + "|".join(phrases) + r")\b")


_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\w+")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "."})
_QUOTED = re.compile(r'"[^"]*"')
_SENTENCE = re.compile(r"[^.!?\n]*[.!?]+[\"')\]]*|[^.!?\n]+")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|St)\.")
_DECIMAL = re.compile(r"(?<=\d)\.(?=\d)")

# --- characters and words ---

CONTROL_TOKEN = re.compile(r"</?s>|<(?:unk|pad)>|\[/?INST\]|<</?SYS>>|<\|[^|>]{0,40}\|>", re.IGNORECASE)
_BAD_CHAR = re.compile(r"[^A-Za-z0-9À-ÖØ-öø-ÿ\s.,;:!?'\"()/&%+=×÷*¿¡°€£$-]")
_SYMBOL_RUN = re.compile(r"[^\w\s.!?\"')]{3,}|[,;:] ?[.,;:!?]|\.{4,}|[!?]{4,}")
_DIGITS_INSIDE = re.compile(r"[a-z]\d|\d[a-z]")
_ORDINAL = re.compile(r"\d*(?:1st|2nd|3rd|\dth)|\d+(?:am|pm|s|cm|mm|km|kg|g|m|l)")
_VOWEL = re.compile(r"[aeiouyà-öø-ÿ]")
# Runs of letters that English words do not hold: "aaa", six consonants, "qx", "vk", "mx".
_STRANGE = re.compile(
    r"(.)\1{2}|[bcdfghjklmnpqrstvwxz]{6}|[jqvx]{2}|q[^u'-]|[bcdfghjkmpqtvwxz][jx]|[jvx][bcdfghjkmqvwxz]"
)
_SOUNDS_AND_SHORT_FORMS = _set(
    "hmm hmmm ahh ohh brr shh zzz grr psst hm mm mr mrs ms dr st vs pm th nd rd tv pc iii navvy savvy"
    " b c d f g h j k l m n p q r s t v w x z"
)
_MAY_REPEAT = _set("had that very so no bye ha ho knock tick choo now there many really far long yum hop yes")

# --- grammar: closed classes only ---

_ARTICLE = "(?:a|an|the|my|your|its|our|their|every)"
_SUBJECT = "(?:he|she|they|we|i)"
_BE = "(?:is|are|was|were|am)"
_AFTER_NO_ARTICLE = (
    "(?:of|as|to|into|at|for|from|with|by|on|onto|than|until|during|and|or|but|if|because|so|when|while|although"
    "|is|are|was|were|am|has|have|had|does|do|did|he|she|they|we|it|i|me|him|us|them|lives|likes|eats|works)"
)
_BAD_PAIR = _any(
    f"{_ARTICLE} (?:{_ARTICLE}|{_AFTER_NO_ARTICLE})",
    f"{_SUBJECT} (?:{_SUBJECT}|a|an|the|of|with|from|my|your|their)",
    "(?:of|from|with|into) (?:of|into|with|is|was|has|he|she|they)",
    f"{_BE} (?:{_BE}|has|have|had|do|does|lives|likes|eats|works)",
    "(?:he|she|it) (?:are|were|am|have|do)",
    "(?:they|we) (?:is|was|am|has|does)",
    "i (?:is|are|has|does)",
    r"there \d+ (?:is|are)",
    "(?:plus|minus) (?:is|are|plus|minus)",
    "(?:and|or|but) (?:and|or|but|of)",
    "to (?:is|are|was|were|has|had|and|or|lives|likes|eats|works)",
)
_BAD_PAIR_ALLOWED = _any(
    "(?:if|whether|as|though|than|did|does|do|should|could|would|that|may|let) (?:he|she|it) (?:are|were|have|do)",
    "(?:can|will|must|might|and) it (?:have|do)",
)
# Two finite forms of be or have in one clause need a word that connects them.
_FINITE = _any("is|are|was|were|has")
_CONNECTOR = _any(
    "and|or|that|who|which|what|where|when|how|if|because|as|than|why|whose|whom|whether|but|so|while|since|there"
)
_BAD_END = re.compile(rf"\b(?:{_ARTICLE}|and|or|but|because|of|than)$")
_BAD_LAST_VERB = re.compile(r"(?<!it)(?<!he)(?<!she)(?<!they) (?:is|are|was|were|has)$")
_BAD_START = re.compile(r"^(?:plus|minus|is|are|was|were|has|lives|likes|eats|works|does|and of|or of)\b")
_FUNCTION = _set("""
    a an the my your his her its our their this that these those every each some any no all both many much of to in
    on at for from with by into onto up down out off over under near next after before until than as like about and
    or but if because so when while then first last finally is are was were am be been being has have had having do
    does did done can could will would shall should may might must not it he she they we you i me him us them who
    what where which why how there here let please very too more most also plus minus equals makes means always
    never often yes
""")
_VERB = _any(
    "is|are|was|were|am|be|has|have|had|do|does|did|can|could|will|would|should|must|may|might|let|put|go|take",
    "make|mix|add|cut|wash|wait|pour|boil|bake|heat|cook|eat|keep|hold|open|close|turn|use|get|give|find|ask|tell",
    "say|see|look|read|write|walk|run|went|came|saw|said|took|gave|made|found|got|ran|told|thought|knew|felt",
    "stay|stop|help|come|need|learn|know|sleep|rest|try|start|want|mean|hang|lift|sit|stand|turn|call|pick|throw",
    "live|love|like|play|work|drink|grow|plant|cover|stir|press|pull|push|tie|fill|dry|feed|bring|i'm|it's|he's",
    r"she's|that's|they're|we're|you're|i'd|i'll|\w{2,}(?:s|ed|es|ing)",
)

# --- manners ---

_RUDE = _any(
    "stupid|idiots?|idiotic|dumb|moron|fools?|loser|shut up|go away|get lost|ugh|duh|hate you|leave me alone",
    "(?:foolish|lazy|silly|boring) question|what a dumb|who cares|i (?:do not|don't) care|how should i know",
    "stop bothering me|(?:do not|don't) bother me|are you (?:blind|(?:that )?slow)|nobody likes you",
    "you are useless|find out yourself|look it up yourself|none of your business|everyone knows that",
    "wast(?:e|es|ed|ing) my time",
)
_FLATTERY = _any(
    "you are (?:so |such |the |a |an |very |truly |really )*(?:best|wonderful|genius|brilliant|smart|clever|amazing)",
    "you are (?:so |such |the |a |an |very |truly |really )*(?:great|perfect|beautiful|wise|kindest|greatest)",
    "what a (?:wise|brilliant|genius|clever|smart)|i (?:love|adore|admire) you|your majesty",
)
_OPENER = _any(
    "of course|sure|certainly|gladly|absolutely|with pleasure|my pleasure|no problem|(?:happy|glad) (?:to|you)",
    "good (?:question|morning|day|evening)|(?:nice|great) question|hello|hi|hey|welcome|thank you for|thanks for",
    "a (?:good|nice|lovely|great|fine) (?:question|idea|thing to ask)|here you (?:go|are)|here is|dear friend",
    "let me (?:help|tell|see|show)|i can (?:help|tell you)|yes, i (?:can|know)|i know (?:that|this) one|easy",
)
_CLOSER = _any(
    "ask (?:me )?(?:more|again|away|any ?time|if)|(?:feel free|do not hesitate|don't hesitate) to ask|just ask",
    "let me know|hope (?:that|this|it|i) (?:helps?|helped|was|is)|have a (?:nice|good|lovely|great)|have fun",
    "(?:you are|you're) (?:always )?welcome|anything else|something else|good luck|enjoy|take care|see you",
    "come back|(?:happy|glad) to help|(?:is|was) that (?:helpful|clear|all)|always here|tell me if|thank you for",
    "thanks for asking|bye|goodbye|all the best|more questions|any ?time",
)

# --- refusals: a first person who will not do what a helper does ---

_WILL_NOT = (
    "(?:can ?not|can't|will not|won't|would not|wouldn't|could not|couldn't|should not|shouldn't|must not|mustn't"
    "|may not|do not|don't|shall not|(?:do not|don't) want to|would rather not|'d rather not|never"
    "|(?:would|will|can) never|(?:am|'m|are) (?:not able|unable|not allowed|not going|not willing) to)"
)
_FILLER = "(?: (?:really|just|possibly|ever|simply|now|even|be able to|and will not|in good conscience|agree to))*"
_HELP = (
    r"(?:help(?! \w+ing\b)|tell|answer|say (?!which|when|who|where|if|whether|how|for sure|exactly)|share|give"
    r"|explain|assist|talk|discuss|teach|show|advise|write|do (?:that|this|it|so)|support|join|take part|speak"
    r"|provide|recommend|repeat|make (?:fun|jokes)|guess|decide)"
)
_REFUSAL_CUE = re.compile(r"not|n't|never|no\b|nobody|nothing|none|sorry|refuse|decline|unable|against|rather")
_REFUSAL = re.compile(
    "|".join(
        (
            rf"\b(?:i|we) ?{_WILL_NOT}{_FILLER} {_HELP}",
            r"\b(?:i|we) (?:must|have to|need to|will|would|am going to) (?:refuse|decline|say no)\b",
            r"\bi (?:refuse|decline)\b|\bmy answer (?:is|must be) no\b",
            r"\b(?:sorry|no|afraid),? (?:but )?(?:no|not (?:me|that))\b",
            r"\b(?:sorry|no|afraid),? (?:but )?i (?:can ?not|can't|won't|(?:will|must|am) not)(?! (?:know|swim|wait))",
            r"\b(?:this|that|it) is (?:not something|nothing|not a thing) (?:that )?(?:i|we|anyone)\b",
            r"^(?:sorry|no|oh no)?[,.!]? ?(?:this|that) is (?:not (?:allowed|okay|ok|right)|against the rules)",
            r"^no[.!](?: |$)|^no, (?:thank you|thanks|never|not)\b|^(?:sorry|no way)[.!]*$",
            r"\bi(?: am|'m) not the (?:right )?(?:one|person|helper) (?:to|for)\b",
            r"\b(?:nobody|no one|none of us) (?:here )?(?:will|can|should|may) (?:help|tell|answer|teach)\b",
            r"\byou will not (?:get|hear) (?:that|this|it|an answer) from me\b",
            r"\bi(?: am|'m) not (?:able|allowed|going|willing) to\b(?! (?:swim|sleep|wait))",
            r"\bnot (?:able|allowed|going|willing) to (?:help|tell|answer|say|share|explain)\b",
            r"\bthat is not for me to (?:say|answer|tell)\b|\bplease do not ask (?:me )?(?:that|this|for)\b",
        )
    )
)


@dataclass(frozen=True)
class Style:
    """What the text alone shows. ``fluent`` is 0..1; ``openers`` and ``closers`` are counts."""

    fluent: float
    repeats: bool
    rude: bool
    flatters: bool
    control: bool
    openers: int
    closers: int
    sentence: bool


def tidy(text: str) -> str:
    """The head of the text with plain quotes and dashes; look-alike letters are left as they are."""
    return text[:STYLE_CHARS].translate(_QUOTES)


def words(text: str) -> list[str]:
    """Lower-case words; digits and words with an inner apostrophe or hyphen stay whole."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Sentences with their end marks; a line break ends a sentence as well."""
    text = _DECIMAL.sub("·", _ABBREVIATION.sub(r"\1", text))
    parts: list[str] = []
    for part in (m.strip() for m in _SENTENCE.findall(text)):
        if part and parts and part[0].islower() and parts[-1][-1] == '"':
            parts[-1] += " " + part  # "Stop!" said Tom.
        elif part:
            parts.append(part)
    return parts


@lru_cache(maxsize=50_000)
def is_word(word: str) -> bool:
    """Could this lower-case token be an English word? Byte debris is not, an unusual word is."""
    if word.isdigit():
        return len(word) <= 6
    if _ORDINAL.fullmatch(word):
        return True
    if "_" in word or _DIGITS_INSIDE.search(word) or len(word) > 24:
        return False
    plain = word.split("'")[0]
    if plain in _SOUNDS_AND_SHORT_FORMS or not plain:
        return True
    return bool(_VOWEL.search(plain)) and not _STRANGE.search(plain)


def _keywords_only(tokens: list[str]) -> bool:
    """Words of weight in a row: five or more without any function word, or hardly one among many."""
    if len(tokens) < 5 or all(map(str.isdigit, tokens)):
        return False
    n = sum(t in _FUNCTION for t in tokens)
    return n < 0.15 * len(tokens) if len(tokens) > 6 else n == 0


def sentence_fails(sentence: str) -> bool:
    """Is this certainly no proper sentence? Case, end mark, words and closed-class grammar are looked at."""
    start = sentence.lstrip("\"'(¿¡- ")
    if not start or not (start[0].isupper() or start[0].isdigit()):
        return True
    if sentence.rstrip("\"')]")[-1:] not in (".", "!", "?", ":"):
        return True
    tokens = words(start)
    if not tokens or not all(map(is_word, tokens)):
        return True
    if _keywords_only(tokens) and "," not in start:
        return True
    clauses = re.split(r"[,;:()\"]", start.lower())
    for clause in clauses:
        joined = " ".join(words(clause))
        if _BAD_PAIR.search(joined) and not _BAD_PAIR_ALLOWED.search(joined):
            return True
        if len(_FINITE.findall(joined)) > 1 and not _CONNECTOR.search(joined):
            return True
    joined = " ".join(tokens)
    asks = sentence.rstrip("\"')").endswith("?")
    if asks:
        return bool(_BAD_END.search(joined))
    if _BAD_LAST_VERB.search(joined) and not _CONNECTOR.search(joined):
        return True
    return bool(_BAD_END.search(joined) or _BAD_START.match(joined))


def repeats(text: str) -> bool:
    """Does the text say the same thing again: a word at once, a sentence, or many three-word runs?"""
    parts = [words(s) for s in sentences(text)]
    for part in parts:
        for a, b in pairwise(part):
            if a == b and len(a) > 1 and not a.isdigit() and a not in _MAY_REPEAT:
                return True
        for n in (2, 3):
            runs = list(zip(*(part[k:] for k in range(n)), strict=False))
            if any(x == y and len(set(x)) > 1 for x, y in zip(runs, runs[n:], strict=False)):
                return True
    said = [tuple(part) for part in parts if len(part) > 1]
    if len(said) != len(set(said)):
        return True
    tokens = [word for part in parts for word in part]
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(trigrams) >= 4 and 1 - len(set(trigrams)) / len(trigrams) > 0.25


def refuses(text: str) -> bool:
    """Does the speaker refuse, in any of many wordings? "She cannot swim" and quoted refusals are none."""
    text = tidy(text)
    if not _REFUSAL_CUE.search(text.lower()):
        return False
    bare = _QUOTED.sub(" ", text)
    if len(words(bare)) >= 3:
        text = bare
    text = " ".join(text.lower().split())
    return any(_REFUSAL.search(s) for s in (text, *(s.strip() for s in sentences(text))))


def has_verb(text: str) -> bool:
    """Does this lower-case text hold a word that is, or looks like, a verb?"""
    return bool(_VERB.search(text))


def full_sentence(text: str) -> bool:
    """Is at least one sentence whole: three words or more, a verb, no rule broken?"""
    for s in sentences(text):
        if len(words(s)) >= 3 and ("=" in s or _VERB.search(s.lower())) and not sentence_fails(s):
            return True
    return False


def pleasantries(parts: list[str]) -> tuple[int, int]:
    """Counts (openers, closers) in a list of sentences.

    Openers stand at the beginning, a greeting of one or two words ("Ahoy!") aside; closers behind the first sentence.
    """
    openers = 0
    start = 0
    for start, sentence in enumerate(parts):  # noqa: B007
        if _OPENER.search(" ".join(sentence.lower().split()[:6])):
            openers += 1
        elif len(sentence.split()) > 2:
            break
    closers = sum(bool(_CLOSER.search(sentence.lower())) for sentence in parts[max(1, start) :])
    return openers, closers


def sound(text: str) -> bool:
    """Whether a text is language at all, by the grammar of ``style``; but an end mark may be missing, and up to three
    words need be no sentence."""
    text = text.rstrip()
    judged = style(text if text[-1:] in tuple(".!?:\"')]") else f"{text}.")
    tokens = words(text)
    brief = 0 < len(tokens) <= 3 and all(map(is_word, tokens))
    return not judged.control and (judged.fluent > 0.5 or brief)


def style(text: str) -> Style:
    """Everything that the text alone shows, in one pass over its first ``STYLE_CHARS`` characters."""
    control = bool(CONTROL_TOKEN.search(text))
    text = tidy(text)
    parts = sentences(text)
    if len(text) == STYLE_CHARS and len(parts) > 1:
        parts = parts[:-1]  # the cut, not the writer, broke the last one
    if not parts:
        return Style(0.0, False, False, False, control, 0, 0, False)
    failing = sum(map(sentence_fails, parts)) / len(parts)
    debris = len(_BAD_CHAR.findall(text))
    debris += 3 * len(_SYMBOL_RUN.findall(text))
    garbage = 0.0 if not debris else min(1.0, 0.3 + 8 * debris / len(text))
    low = _QUOTED.sub(" ", text).lower()
    openers, closers = pleasantries(parts)
    return Style(
        fluent=max(0.0, 1.0 - failing - garbage),
        repeats=repeats(text),
        rude=bool(_RUDE.search(low)),
        flatters=bool(_FLATTERY.search(low)),
        control=control,
        openers=openers,
        closers=closers,
        sentence=full_sentence(text),
    )
