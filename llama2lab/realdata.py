"""Real text for the recipe: stories, demonstrations, preference pairs and refusal probes that other people wrote.

A recipe file (data/recipes/real.yaml is the example to copy) names for each role a data set of the Hugging Face hub
and a pattern of local files; local files win. Rows that cannot be used are counted by reason and named with file and
line; too many of them stop the run, because then the recipe probably names the wrong column or file.

Local JSON lines and CSV are read here, line by line, instead of by the builders of `datasets`: those fail as a whole
on one broken line and do not say which. What is valid becomes a `datasets.Dataset`. Parquet files and hub data sets
come through `datasets` itself, streamed, so that no copy of them stays in a cache.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import datasets
from pydantic import Field

from llama2lab.errors import LabError, first_line
from llama2lab.preferences import GRADES
from llama2lab.settings import Clash, Count, CountOrNone, Name, Names, Text, checked, one_of

SHOWN = 5  # malformed rows that are named, by reason

Record = dict[str, Any]
Columns = dict[str, Any]  # our name of a field -> the column, or a list of columns of which the first there counts


class Malformed(Exception):
    """Why one row cannot be used; it never leaves this module."""


# Our name of a field -> the column, or a list of columns of which the first there counts.
NamedColumns = dict[Annotated[str, one_of(("text", "messages", "prompt", "context", "answer", "chosen", "rejected",
                                           "grade", "safety", "label"))],
                    Name | Annotated[list[Name], Field(min_length=1, max_length=100)]]


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

    def __post_init__(self) -> None:
        if self.max_answer_tokens > self.max_tokens:
            raise Clash(f"must be at most max_tokens ({self.max_tokens}), not {self.max_answer_tokens}",
                        "max_answer_tokens", "max_tokens")


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
        return sum(self.reasons.values())

    def check(self, limit: float) -> None:
        """LabError when more than the share `limit` of the rows is malformed, or no row is left."""
        if self.read == 0:
            raise LabError(f"{self.role}: the data set has no rows; give another file or hub name in the recipe")
        if self.malformed > limit * self.read or self.malformed == self.read:
            what = "; ".join(f"{n} x {reason} ({', '.join(self.places[reason])}{', ...' if n > SHOWN else ''})"
                             for reason, n in self.reasons.most_common(3))
            raise LabError(f"{self.role}: {self.malformed} of {self.read} rows are malformed, more than "
                           f"{limit:.0%}: {what}; mend these lines, the recipe's columns, or raise max_malformed")

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
        reader = _reader(path)
        empty = True
        try:
            for number, record in reader(path):
                empty = False
                yield f"{name}:{number}", record
        except (OSError, EOFError, zlib.error) as e:  # a damaged .gz is an OSError, EOFError or zlib.error
            raise LabError(f"{path}: cannot be read ({e}); get the file anew") from e
        if empty:
            raise LabError(f"{path}: is empty; get the file anew or take it out of the recipe's {role}.files")


def local_files(source: SourceSettings, data_dir: Path | None) -> list[Path]:
    """The files that the patterns name, sorted; patterns are relative to `data_dir`, or absolute."""
    patterns = [p if data_dir is None else str(data_dir / p) for p in source.files]
    return sorted({Path(f) for p in patterns if Path(p).is_absolute() for f in glob.glob(p, recursive=True)})


def data_folder(path: str | Path | None) -> Path | None:
    """The folder of local copies: the given one, else that of the environment variable LLAMA2LAB_DATA."""
    given = path or os.environ.get("LLAMA2LAB_DATA") or None
    if given is None:
        return None
    folder = Path(given).absolute()
    if not folder.is_dir():
        raise LabError(f"{given} is not a folder; give the folder of your local copies with --data or LLAMA2LAB_DATA")
    return folder


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, Record | str]]]:
    name = path.name.removesuffix(".gz")
    for suffix, reader in ((".jsonl", _read_json_lines), (".json", _read_json_lines), (".csv", _read_csv),
                           (".parquet", _read_parquet), (".txt", _read_text)):
        if name.endswith(suffix):
            return reader
    raise LabError(f"{path}: what kind of file is this? Give .jsonl, .csv or .txt (also as .gz), or .parquet")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def _read_json_lines(path: Path) -> Iterator[tuple[int, Record | str]]:
    with _open(path) as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                record = "not UTF-8"
            except (json.JSONDecodeError, RecursionError):
                record = "broken JSON"
            yield number, record if isinstance(record, dict | str) else "not a JSON object"


def _read_csv(path: Path) -> Iterator[tuple[int, Record | str]]:
    with _open(path) as f:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(f))
        rows = csv.DictReader(lines, strict=True)
        try:
            for row in rows:
                whole = None not in row and None not in row.values()
                yield rows.line_num, row if whole else "wrong number of columns"
        except (csv.Error, UnicodeDecodeError) as e:
            raise LabError(f"{path}:{rows.line_num + 1}: is not CSV in UTF-8 ({e}); mend or export it anew") from e


def _read_text(path: Path) -> Iterator[tuple[int, Record | str]]:
    """Plain text: documents are divided by blank lines."""
    with _open(path) as f:
        start = 1
        lines: list[bytes] = []
        for number, line in enumerate([*f, b""], 1):
            if line.strip():
                start = start if lines else number
                lines.append(line)
            elif lines:
                try:
                    yield start, {"text": b"".join(lines).decode("utf-8").strip()}
                except UnicodeDecodeError:
                    yield start, "not UTF-8"
                lines = []


def _read_parquet(path: Path) -> Iterator[tuple[int, Record | str]]:
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from enumerate(rows, 1)
    except Exception as e:  # datasets and pyarrow raise many kinds
        raise LabError(f"{path}: is not a Parquet file ({first_line(e)}); get the file anew") from e


def _read_hub(source: SourceSettings, role: str, data_dir: Path | None) -> Iterator[tuple[str, Record | str]]:
    looked = (f"no files {', '.join(source.files)} in {data_dir or 'a data folder (none was given)'}" if source.files
              else "the recipe names no files")
    cure = "give the folder of a local copy with --data DIR (or LLAMA2LAB_DATA), as the recipe's files name it"
    if not source.hub:
        raise LabError(f"{role}: {looked}, and no hub data set; {cure}")
    for folder in source.hub_folders or (None,):
        try:
            stream = datasets.load_dataset(source.hub, data_dir=folder, split=source.hub_split, streaming=True)
            for number, record in enumerate(stream.take(source.rows) if source.rows else stream, 1):
                yield f"{source.hub}{'/' + folder if folder else ''}:{number}", record
        except Exception as e:  # no network, no such name, no access: datasets raises many kinds
            raise LabError(f"{role}: {looked}, and {source.hub} cannot be had from the hub ({first_line(e)}); "
                           f"{cure}") from e


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
    if required and not (value.strip() if isinstance(value, str) else value):
        raise Malformed(f"{column!r} is empty")
    return value


def text_of(record: Record, columns: Columns, name: str, required: bool = True) -> str:
    value = get(record, columns, name, required)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{name} is not text")
    return value.strip()


_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def parse_transcript(text: str) -> list[dict]:
    """Messages of an Anthropic transcript, "\\n\\nHuman: ...\\n\\nAssistant: ...". Malformed unless the two take
    turns, the human first, and say something each time."""
    parts = _SPEAKER.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise Malformed("not a transcript of Human and Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return check_turns([{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2])])


def check_turns(messages: Any) -> list[dict]:
    """The messages themselves, if they are messages that take turns: [system] user assistant user ..."""
    if not isinstance(messages, list | tuple) or not messages:
        raise Malformed("not a list of messages")
    for m in messages:
        if not isinstance(m, dict) or not isinstance(m.get("content"), str) or not isinstance(m.get("role"), str):
            raise Malformed("a message is not {role, content}")
        if not m["content"].strip():
            raise Malformed("a turn is empty")
    start = 1 if messages[0]["role"] == "system" else 0
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(messages) - start)]
    if not expected or [m["role"] for m in messages[start:]] != expected:
        raise Malformed("turns do not alternate")
    return [{"role": m["role"], "content": m["content"].strip()} for m in messages]


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
        asked = [text_of(record, columns, "prompt"), text_of(record, columns, "context", required=False)]
        messages = [{"role": "user", "content": "\n\n".join(x for x in asked if x)},
                    {"role": "assistant", "content": text_of(record, columns, "answer")}]
    return {"messages": messages, "skill": "real"}


def parse_pair(record: Record, columns: Columns) -> Record:
    """A preference row {prompt, chosen, rejected, grade, safety}.

    `chosen` and `rejected` are whole transcripts (text, or a list of messages) whose common beginning is the prompt;
    or answers only, when the recipe names a `prompt` column. Without a `grade` column every pair is "better"; the
    recipe then sets margin: none.
    """
    sides = []
    for name in ("chosen", "rejected"):
        value = get(record, columns, name)
        if "prompt" in columns:
            answer = value[-1].get("content") if isinstance(value, list) and isinstance(value[-1], dict) else value
            if not isinstance(answer, str):
                raise Malformed(f"{name} is not text")
            prompt = get(record, columns, "prompt")
            before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            sides.append(check_turns([*before, {"role": "assistant", "content": answer}]))
        else:
            sides.append(parse_transcript(value) if isinstance(value, str) else check_turns(value))
    chosen, rejected = sides
    if chosen == rejected:
        raise Malformed("equal sides")
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("no common prompt")
    if chosen[-1]["role"] != "assistant":
        raise Malformed("the last message is no answer")
    grade = text_of(record, columns, "grade", required=False) or "better"
    if grade not in GRADES:
        raise Malformed(f"grade is none of {', '.join(GRADES)}")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:], "grade": grade,
            "safety": text_of(record, columns, "safety", required=False)}


def parse_probe(record: Record, columns: Columns) -> Record:
    """A question whose refusal is right or wrong: {prompt, label}, label "safe" or "unsafe"."""
    label = text_of(record, columns, "label").lower()
    if label not in ("safe", "unsafe"):
        raise Malformed("label is neither safe nor unsafe")
    return {"prompt": text_of(record, columns, "prompt"), "label": label}


PARSERS: dict[str, Callable[[Record, Columns], Record]] = {
    "pretrain": parse_text, "sft": parse_demonstration, "helpful": parse_pair, "harmless": parse_pair,
    "refusals": parse_probe,
}


def load_role(role: str, source: SourceSettings, data_dir: Path | None, max_malformed: float = 0.05, seed: int = 0,
              ) -> tuple[datasets.Dataset, Tally]:
    """The valid rows of a role, at most `source.rows`, and the tally of the others.

    Raises:
        LabError: nothing to read, or more than the share `max_malformed` of the rows is malformed.
    """
    tally = Tally(role)
    rows = []
    for where, record in read_source(source, role, data_dir):
        tally.read += 1
        try:
            if isinstance(record, str):
                raise Malformed(record)
            rows.append(PARSERS[role](record, source.columns))
        except Malformed as e:
            tally.refuse(where, str(e))
    tally.check(max_malformed)
    if source.rows and len(rows) > source.rows:
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), source.rows))]
    return datasets.Dataset.from_list(rows), tally
