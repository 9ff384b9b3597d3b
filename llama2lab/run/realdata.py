"""Real text for the recipe: stories, demonstrations, preference pairs and refusal probes that other people wrote.

A recipe file (data/recipes/real.yaml is the example to copy) names for each role a data set of the Hugging Face hub
and a pattern of local files; local files win. Rows that cannot be used are counted by reason and named with file and
line; too many of them stop the run, because then the recipe probably names the wrong column or file.

Local files are read by `rows.rows_of`, row by row, instead of by the builders of `datasets`: those fail as a whole on
one broken line and do not say which. Data sets of the hub come through `datasets`, streamed, so that no copy of them
stays in a cache.
"""

from __future__ import annotations

import glob
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from llama2lab.engine.dialogues import SAFETY, Malformed, check_turns, pair_of, plain_text
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.rows import SHOWN, Record, Unreadable, cures_of, rows_of
from llama2lab.engine.scale import GRADES
from llama2lab.engine.settings import Clash, Count, CountOrNone, Name, Names, Text, checked, one_of
from llama2lab.engine.validation import shown

NO_CUTS = "margin is a number, and the recipe gives no cuts such as [2, 1, 0.5]"
Columns = dict[str, str | list[str]]  # our name of a field -> the column, or columns of which the first there counts
PAIR = (
    *("prompt", "chosen", "rejected", "grade", "safety"),
    *("margin", "chosen_score", "rejected_score"),  # other ways to say the grade: see grade_of
)
FIELDS = ("text", "messages", "context", "answer", "label", *PAIR)
NamedColumns = dict[Annotated[str, one_of(FIELDS)], Name | Annotated[list[Name], Field(min_length=1, max_length=100)]]


SCORES = ("chosen_score", "rejected_score")


def _falling(cuts: tuple[float, ...]) -> tuple[float, ...]:
    if cuts and (len(cuts) != 3 or not cuts[0] > cuts[1] > cuts[2] > 0):
        raise ValueError("must be three numbers above 0, the largest first, such as [2, 1, 0.5]")
    return cuts


Cuts = Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(max_length=3), AfterValidator(_falling)]


@checked
@dataclass(frozen=True)
class SourceSettings:
    """Where the rows of one role come from. Empty `files` and `hub`: the role has no data."""

    files: Names = ()  # patterns of local files, relative to the data folder
    hub: Text = ""  # name of a data set on the hub, for when there are no such files
    hub_folders: Names = ()  # its data_dir, one after the other
    hub_split: Name = "train"
    columns: NamedColumns = field(default_factory=dict)
    rows: CountOrNone = 0  # at most so many, drawn by the seed; 0: all
    max_tokens: Count = 256  # of a whole row; longer pairs lose their first turns, longer demonstrations are left out
    max_answer_tokens: CountOrNone = 0  # of a demonstration's answer; 0: no limit
    # Differences of scores, the largest first, from which a pair is significantly better, better, slightly better.
    cuts: Cuts = ()

    def __post_init__(self) -> None:
        scores = [name for name in SCORES if name in self.columns]
        grades = [name for name in ("grade", "margin") if name in self.columns]
        if len(scores) == 1:
            says = f"names {scores[0]} alone; give both {' and '.join(SCORES)}, or one column of differences as margin"
            raise Clash(says, "columns")
        if len(grades) + bool(scores) > 1:
            says = f"names {' and '.join([*grades, *scores])}, which say the same; keep one of them"
            raise Clash(says, "columns")
        if scores and not self.cuts:
            three = "three differences of the scores, the largest first, from which a pair is "
            says = f"{', '.join(GRADES[:3])} better, such as [2, 1, 0.5]"
            raise Clash(f"must be {three}{says}, where columns names scores", "cuts", "columns")
        if self.cuts and not (scores or "margin" in self.columns):
            raise Clash("is for scores; name a margin column, or chosen_score and rejected_score, in columns", "cuts")
        if self.max_answer_tokens > self.max_tokens:
            says = f"must be at most max_tokens ({self.max_tokens}), not {self.max_answer_tokens}"
            raise Clash(says, "max_answer_tokens", "max_tokens")

    @property
    def given(self) -> bool:
        return bool(self.files or self.hub)


@dataclass
class Tally:
    """What became of the rows of one role."""

    role: str
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> the first few file:line

    def refuse(self, where: str, reason: str) -> None:
        self.reasons[reason] += 1
        if self.reasons[reason] <= SHOWN:
            self.places.setdefault(reason, []).append(where)

    @property
    def malformed(self) -> int:
        return self.reasons.total()

    def check(self, limit: float) -> None:
        """LabError when more than the share `limit` of the rows is malformed, or no row is left."""
        if self.read == 0:
            raise LabError(f"{self.role}: the data set has no rows; give another file or hub name in the recipe")
        if self.malformed > limit * self.read or self.malformed == self.read:
            what = "; ".join(
                f"{n} x {reason} ({', '.join(self.places[reason])}{', ...' if n > SHOWN else ''})"
                for reason, n in self.reasons.most_common(3)
            )
            many = f"{self.malformed} of {self.read} rows are malformed, more than {limit:.0%}"
            cure = f"mend these lines, the recipe's columns, or raise max_malformed{cures_of(self.reasons)}"
            raise LabError(f"{self.role}: {many}: {what}; {cure}")

    def metrics(self) -> dict[str, Any]:
        return {"rows": self.read, "malformed": dict(self.reasons), "malformed_at": self.places}


# ---- records with the place they stand at ------------------------------------------------------------------


def read_source(source: SourceSettings, role: str, data_dir: Path | None) -> Iterator[tuple[str, Record | str]]:
    """(place, record) for every row, or (place, reason) where the row could not even be read.

    Raises:
        LabError: no such files and no data set on the hub, a file that is empty or cut short.
    """
    paths = local_files(source, data_dir)
    if not paths:
        yield from _read_hub(source, role, data_dir)
    for path in paths:
        name = str(path.relative_to(data_dir)) if data_dir and path.is_relative_to(data_dir) else str(path)
        number = 0
        for number, record in rows_of(path):
            yield f"{name}:{number}", record
        if not number:
            raise LabError(f"{path}: is empty; get the file anew or take it out of the recipe's {role}.files")


def local_files(source: SourceSettings, data_dir: Path | None) -> list[Path]:
    """The files that the patterns name, sorted; patterns are relative to `data_dir`, or absolute."""
    root = data_dir.absolute() if data_dir else Path("/")
    found: set[Path] = set()
    for pattern in source.files if data_dir else filter(os.path.isabs, source.files):
        if (root / pattern).exists():  # a name, even if it looks like a pattern
            found.add(root / pattern)
        else:
            named = (root / name for name in glob.glob(pattern, root_dir=root, recursive=True))
            found.update(path for path in named if not path.is_dir())
    return sorted(found)


def data_folder(path: str | Path | None) -> Path | None:
    """The folder of local copies: the given one, else that of the environment variable LLAMA2LAB_DATA."""
    given = path or os.environ.get("LLAMA2LAB_DATA") or None
    if given is None:
        return None
    folder = Path(given).absolute()
    if not folder.is_dir():
        raise LabError(f"{given} is not a folder; give the folder of your local copies with --data or LLAMA2LAB_DATA")
    return folder


def _read_hub(source: SourceSettings, role: str, data_dir: Path | None) -> Iterator[tuple[str, Record | str]]:
    nowhere = f"no files {', '.join(source.files)} in {data_dir or 'a data folder (none was given)'}"
    looked = nowhere if source.files else "the recipe names no files"
    cure = "give the folder of a local copy with --data DIR (or LLAMA2LAB_DATA), as the recipe's files name it"
    if not source.hub:
        raise LabError(f"{role}: {looked}, and no hub data set; {cure}")
    for folder in source.hub_folders or (None,):
        try:
            import datasets  # takes seconds, and only the hub needs it

            stream = datasets.load_dataset(source.hub, data_dir=folder, split=source.hub_split, streaming=True)
            for number, record in enumerate(stream.take(source.rows) if source.rows else stream, 1):
                yield f"{source.hub}{'/' + folder if folder else ''}:{number}", record
        except Exception as e:  # no network, no such name, no access: datasets raises many kinds
            why = f"{source.hub} cannot be had from the hub ({first_line(e)})"
            raise LabError(f"{role}: {looked}, and {why}; {cure}") from e


# ---- from records to rows ----------------------------------------------------------------------------------


def get(record: Record, columns: Columns, name: str, required: bool = True) -> Any:
    """The value of our field `name`; Malformed if a required one is missing or empty."""
    wanted = columns.get(name, name)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    column = next((c for c in names if record.get(c) is not None), None)
    if column is None:
        if required:
            raise Malformed(f"no field {' or '.join(map(repr, names))}")
        return None
    value = record[column]
    if isinstance(value, Unreadable):
        raise Malformed(f"{column!r} cannot be read")
    if required and (not value.strip() if isinstance(value, str) else value in ([], {})):
        raise Malformed(f"{column!r} is empty")
    return value


def text_of(record: Record, columns: Columns, name: str, required: bool = True) -> str:
    value = get(record, columns, name, required)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    return value.strip()


def word_of(record: Record, columns: Columns, name: str, words: Sequence[str]) -> str:
    """One of `words`, however it is written; "" where there is none."""
    word = text_of(record, columns, name, required=False).lower()
    if word and word not in words:
        raise Malformed(f"{name} is none of {', '.join(words)}")
    return word


def parse_text(record: Record, columns: Columns) -> Record:
    """A document for pretraining: {text}."""
    return {"text": text_of(record, columns, "text")}


def parse_demonstration(record: Record, columns: Columns) -> Record:
    """{messages, skill}, from a `messages` column or from `prompt`, `context` (may be empty) and `answer`."""
    if "messages" in columns:
        messages = check_turns(get(record, columns, "messages"))
        if messages[-1]["role"] != "assistant":
            raise Malformed("the last message is no answer")
    else:
        asked = [plain_text(text_of(record, columns, "prompt")), text_of(record, columns, "context", required=False)]
        messages = [
            {"role": "user", "content": "\n\n".join(x for x in asked if x)},
            {"role": "assistant", "content": plain_text(text_of(record, columns, "answer"))},
        ]
    return {"messages": messages, "skill": "real"}


def number_of(record: Record, columns: Columns, name: str) -> float:
    """A finite number, also one that a CSV file holds as text."""
    value = get(record, columns, name)
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Malformed(f"{name} is no number")
    return number


def graded(difference: float, cuts: Sequence[float]) -> str:
    """The grade of a pair whose chosen answer scores so much more than the rejected one; Malformed for less than 0.
    `cuts` are the least differences of "significantly", "better" and "slightly"."""
    if difference < 0:
        raise Malformed("the rejected answer has the higher score")
    return next((grade for grade, least in zip(GRADES, cuts, strict=False) if difference >= least), GRADES[-1])


def grade_of(record: Record, columns: Columns, cuts: Sequence[float] = ()) -> str:
    """The grade of a pair, from one of: a `grade` column with the report's names; a `margin` column with these, or with
    the difference of two scores; two columns of scores. Differences are turned into grades by the cuts."""
    if SCORES[0] in columns:
        chosen, rejected = (number_of(record, columns, name) for name in SCORES)
        return graded(chosen - rejected, cuts)
    if "margin" not in columns:
        return word_of(record, columns, "grade", GRADES) or "better"
    said = get(record, columns, "margin")
    if isinstance(said, str) and said.strip().lower() in GRADES:
        return said.strip().lower()
    difference = number_of(record, columns, "margin")
    if not cuts:
        raise Malformed(NO_CUTS)
    return graded(difference, cuts)


def parse_pair(record: Record, columns: Columns, cuts: Sequence[float] = ()) -> Record:
    """A preference row {prompt, chosen, rejected, grade, safety}.

    `chosen` and `rejected` are whole transcripts (text, or a list of messages) whose common beginning is the prompt;
    or answers, when the recipe names a `prompt` column (dialogues.pair_of says in which shapes). `grade_of` says where
    the grade comes from; without any, every pair is "better", and the recipe then sets margin: none.
    """
    prompt = get(record, columns, "prompt") if "prompt" in columns else None
    before, chosen, rejected = pair_of(prompt, get(record, columns, "chosen"), get(record, columns, "rejected"))
    return {
        "prompt": before,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "grade": grade_of(record, columns, cuts),
        "safety": word_of(record, columns, "safety", [bin for bin in SAFETY if bin]),
    }


def parse_probe(record: Record, columns: Columns) -> Record:
    """A question whose refusal is right or wrong: {prompt, label}, label "safe" or "unsafe"."""
    label = text_of(record, columns, "label").lower()
    if label not in ("safe", "unsafe"):
        raise Malformed("label is neither safe nor unsafe")
    return {"prompt": text_of(record, columns, "prompt"), "label": label}


# Role -> how its rows are made, and of what: the names that `columns` may hold.
PARSERS: dict[str, tuple[Callable[..., Record], tuple[str, ...]]] = {
    "pretrain": (parse_text, ("text",)),
    "sft": (parse_demonstration, ("messages", "prompt", "context", "answer")),
    "helpful": (parse_pair, PAIR),
    "harmless": (parse_pair, PAIR),
    "refusals": (parse_probe, ("prompt", "label")),
}


def contradictory(rows: Sequence[Record]) -> set[int]:
    """The pairs, by their places, whose answers another row prefers the other way round: nothing says which is right,
    and together they teach nothing."""
    sides: dict[str, dict[str, list[int]]] = {}
    for i, row in enumerate(rows):
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        key = json.dumps([row["prompt"], sorted((chosen, rejected))])
        sides.setdefault(key, {}).setdefault(chosen, []).append(i)
    return {i for found in sides.values() if len(found) > 1 for places in found.values() for i in places}


def load_role(
    role: str, source: SourceSettings, data_dir: Path | None, max_malformed: float = 0.05, seed: int = 0
) -> tuple[list[Record], Tally]:
    """The valid rows of a role, at most `source.rows`, and the tally of the others.

    Raises:
        LabError: nothing to read, or more than the share `max_malformed` of the rows is malformed.
    """
    parse, fields = PARSERS[role]
    unknown = source.columns.keys() - set(fields)
    if unknown:
        wrong = f"the recipe's columns name {shown(min(unknown, key=str))}, which no row of this role has"
        raise LabError(f"{role}: {wrong}; choose among {', '.join(fields)}")
    tally = Tally(role)
    rows, places = [], []
    for where, record in read_source(source, role, data_dir):
        tally.read += 1
        try:
            if isinstance(record, str):
                raise Malformed(record)
            rows.append(parse(record, source.columns, *([source.cuts] if parse is parse_pair else [])))
            places.append(where)
        except Malformed as e:
            tally.refuse(where, str(e))
    against = contradictory(rows) if parse is parse_pair else set()
    for i in sorted(against):
        tally.refuse(places[i], "another row prefers the other answer")
    rows = [row for i, row in enumerate(rows) if i not in against]
    tally.check(max_malformed)
    if source.rows and len(rows) > source.rows:
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), source.rows))]
    return rows, tally
