"""The town's data, read from data/world/*.yaml and checked: a mistake is named with file, line and cure."""

import difflib
import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import DATA
from llama2lab.engine.recipefile import Loader
from llama2lab.engine.rows import has_end
from llama2lab.engine.validation import shown
from llama2lab.town import schema
from llama2lab.town.items import Instruction
from llama2lab.town.wording import with_article

TOWN_NAME = "Willowbrook"
# What the wordings of each kind of question name.
QUESTION_FIELDS: dict[str, tuple[str, ...]] = {
    "counting": ("items",),
    "listing": ("n", "category"),
    **dict.fromkeys(("how_to", "saying"), ("do",)),
    **dict.fromkeys(("plus", "minus", "older", "younger"), ("a", "b")),
    "opposites": ("word",),
    "stories": ("hero", "thing"),
    **dict.fromkeys(("past", "question", "negative", "future", "polite"), ("sentence",)),
    **dict.fromkeys(("offers", "closed", "keeper"), ("place",)),
}


def slug(text: str) -> str:
    """ "make tea" -> "make-tea": the form of names in prompt ids."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class Person:
    """One person of the town; facts maps the attribute's id to the value, e.g. "home" -> "Mill Lane"."""

    name: str
    pronoun: str  # "she" | "he"
    facts: dict[str, str] = field(hash=False)

    @property
    def forms(self) -> dict[str, str]:
        """What the templates name: {name}, {he}, {He}, {his}, {His}."""
        he, his = self.pronoun, "her" if self.pronoun == "she" else "his"
        return {"name": self.name, "he": he, "He": he.capitalize(), "his": his, "His": his.capitalize()}


@dataclass(frozen=True, eq=False)
class Town:
    """All that is true in the town. Compared and hashed by identity, so that answers can be cached per town."""

    people: dict[str, Person]  # by slug, e.g. "mira"
    attributes: dict[str, schema.Attribute]  # by id
    places: dict[str, schema.Place]  # by slug
    procedures: dict[str, schema.Procedure]  # by slug
    opposites: tuple[tuple[str, str], ...]
    categories: dict[str, schema.Category]  # by slug
    small_talk: dict[str, schema.Talk]  # by id
    stories: schema.Stories
    rewriting: schema.Rewriting
    unsafe: dict[str, schema.UnsafeCategory]  # by the report's name of the category
    borderline: schema.Borderline
    questions: schema.Questions
    instructions: tuple[Instruction, ...]
    digest: str  # of all the files: stages that depend on the town are run again when it changes

    def values(self, attribute: str) -> tuple[str, ...]:
        """Every value that some person has for this attribute, sorted."""
        return tuple(sorted({person.facts[attribute] for person in self.people.values()}))

    def friend(self, person: Person) -> Person:
        """The person's best friend."""
        return self.people[slug(person.facts["friend"])]


WHOLE = re.compile("[-+]?[0-9]{1,18}", re.ASCII)


class _Source:
    """One YAML file: its data, and the line of every entry by its path, e.g. (3, "home") -> 25."""

    def __init__(self, path: Path):
        self.shown = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
        self.lines: dict[tuple, int] = {}
        try:
            has_end(path)
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise LabError(f"{self.shown}: the file is missing; copy it back from the repository") from None
        except OSError as e:
            cure = "mend its permissions, or copy it back from the repository"
            raise LabError(f"{self.shown}: cannot be read ({e.strerror}); {cure}") from None
        except UnicodeDecodeError as e:
            line = path.read_bytes()[: e.start].count(b"\n") + 1
            raise LabError(f"{self.shown}:{line}: not UTF-8 text; save the file as UTF-8") from None
        for number, row in enumerate(text.split("\n"), 1):
            if "\t" in row:
                raise LabError(f"{self.shown}:{number}: a tab character; indent with spaces")
        try:
            node = yaml.compose(text, Loader=Loader)
        except yaml.MarkedYAMLError as e:
            mark = e.problem_mark or e.context_mark
            at, cure = f"{self.shown}:{mark.line + 1 if mark else 1}", "check the indent, the quotes and the colons"
            raise LabError(f"{at}: not valid YAML ({e.problem}); {cure}") from None
        except yaml.YAMLError:
            raise LabError(f"{self.shown}:1: not valid YAML; remove the control characters") from None
        if node is None:
            raise LabError(f"{self.shown}:1: the file is empty; copy it back from the repository")
        self.data = self._build(node, ())

    def _build(self, node: Any, path: tuple) -> Any:
        # Only whole numbers are not text: in this town "yes", "no" and "true" are words.
        line = self.lines[path] = node.start_mark.line + 1
        if not node.tag.endswith((":seq", ":map", ":str")):
            raise self.error(path, f"a tag ({shown(node.tag)}); write a plain value", line)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            data: dict = {}
            for key, value in node.value:
                name, line = key.value, key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise self.error(path, "a list or a mapping stands where a name should; check the colons", line)
                if name in data:
                    raise self.error((*path, name), f"'{name}' stands twice; remove one", line)
                data[name] = self._build(value, (*path, name))
                self.lines[(*path, name)] = line
            return data
        return int(node.value) if not node.style and WHOLE.fullmatch(node.value) else node.value

    def line(self, path: tuple) -> int:
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def error(self, path: tuple, message: str, line: int | None = None) -> LabError:
        return LabError(f"{self.shown}:{line or self.line(path)}: {message}")


def _validated(source: _Source, kind: Any) -> Any:
    """The file's data in its type; the first mistake as a LabError."""
    try:
        return TypeAdapter(kind).validate_python(source.data)
    except ValidationError as e:
        # Of a union's complaints the one that goes deepest into the file is the useful one.
        def depth(error: Any) -> int:
            return max(k for k in range(len(error["loc"]) + 1) if _clean(error["loc"])[:k] in source.lines)

        first = max(e.errors(), key=depth)
        path = _clean(first["loc"])
        name = path[-1] if path else "the file"
        cure = {
            "missing": f"add the line '{name}: ...'",
            "extra_forbidden": "remove it or mend its spelling",
            "string_type": "write a text (in quotes if it is a number)",
            "too_short": "add entries",
            "string_too_short": "write a text",
        }.get(first["type"], "correct it")
        raise source.error(path, f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}; {cure}") from None


def _clean(loc: tuple) -> tuple:
    """Pydantic's location without the names of union members ("list[Deed]", "[key]")."""
    return tuple(p for p in loc if isinstance(p, int) or (re.fullmatch(r"[\w -]+", p) and p != "list"))


def _characters(source: _Source, attributes: dict[str, schema.Attribute]) -> dict[str, Person]:
    if not isinstance(source.data, list) or len(source.data) < 4:
        raise source.error((), "at least four people are needed; write a list of '- name: ...' blocks")
    fields = ["name", "pronoun", *attributes]
    names = [row.get("name") for row in source.data if isinstance(row, dict)]
    people: dict[str, Person] = {}
    for i, row in enumerate(source.data):
        if not isinstance(row, dict):
            raise source.error((i,), "a person must be a block of 'field: value' lines; start it with '- name: ...'")
        for key in fields:
            if key not in row:
                raise source.error((i,), f"{row.get('name', 'a person')} has no {key}; add the line '{key}: ...'")
        for key in row:
            if key not in fields:
                raise source.error((i, key), f"unknown field '{key}'; {_suggest(key, fields)}")
        name = row["name"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Z][a-z]+", name):
            raise source.error((i, "name"), f"'{name}' is not a name; write one word with a capital, such as Mira")
        if slug(name) in people:
            raise source.error((i, "name"), f"the name {name} stands twice; choose another name")
        if row["pronoun"] not in ("she", "he"):
            raise source.error((i, "pronoun"), f"pronoun '{row['pronoun']}' is unknown; write she or he")
        for key, attribute in attributes.items():
            wrong = _wrong_fact(name, attribute, row[key], names)
            if wrong:
                raise source.error((i, key), wrong)
        people[slug(name)] = Person(name, row["pronoun"], {key: str(row[key]) for key in attributes})
    return people


def _wrong_fact(name: str, attribute: schema.Attribute, value: Any, names: list[Any]) -> str:
    """Why a person cannot have this value; "" for one that fits."""
    what, values = attribute.id, attribute.values
    if values == "numbers":
        fits = isinstance(value, int) and 1 <= value <= 120
        return "" if fits else f"{what} of {name} is '{value}'; write whole years from 1 to 120"
    if values == "people":
        if value == name:
            return f"{name} is the {what} of {name}; choose somebody else"
        known, why = [n for n in names if isinstance(n, str)], "does not live here"
    else:
        known, why = list(values), "is not in attributes.yaml"
    return "" if value in known else f"{what} of {name}, '{value}', {why}; {_suggest(value, known)}"


def _suggest(word: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"write one of: {', '.join(known[:12])}"


def _check_fields(source: _Source, path: tuple, templates: Sequence[str], *allowed: str) -> None:
    """Every {field} of the templates must be one that is filled in."""
    for j, template in enumerate(templates):
        try:
            fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
        except ValueError as e:
            raise source.error((*path, j), f"{e} in '{template}'; write fields as {{name}}") from None
        for _, name, form, conversion in fields:
            if form or conversion:
                raise source.error((*path, j), f"more than a name in {{{name}}}; write fields as {{name}}")
            if name not in allowed:
                known = ", ".join(f"{{{n}}}" for n in sorted(allowed))
                raise source.error((*path, j), f"unknown field {{{name}}}; use {known}")


def _unique(source: _Source, rows: list[tuple[tuple, str]]) -> None:
    """Names by which entries are told apart may stand once only."""
    seen: set[str] = set()
    for path, name in rows:
        if not slug(name):
            raise source.error(path, f"'{name}' holds no letter; write a name")
        if slug(name) in seen:
            raise source.error(path, f"'{name}' stands twice; remove or rename one")
        seen.add(slug(name))


def _check(sources: dict[str, _Source], data: dict[str, Any], people: dict[str, Person]) -> None:
    """What one file alone cannot show: references, doubles, and the fields of the templates."""
    of_person = ("name", "he", "He", "his", "His", "value")
    for i, attribute in enumerate(data["attributes"]):
        source = sources["attributes"]
        for kind in ("statements", "pronoun", "first", "group", "questions", "follow_up", "asked"):
            _check_fields(source, (i, kind), getattr(attribute, kind), *of_person)
        if not attribute.statements[0].endswith("{value}."):
            at = (i, "statements", 0)
            raise source.error(at, "the first statement must end in '{value}.'; put another one first")
    names = [p.name for p in people.values()]
    for i, place in enumerate(data["places"]):
        if place.keeper not in names:
            hint = _suggest(place.keeper, names)
            raise sources["places"].error((i, "keeper"), f"'{place.keeper}' does not live here; {hint}")
    for name, fields in QUESTION_FIELDS.items():
        if name not in data["questions"]:
            raise sources["questions"].error((), f"no wordings for '{name}'; add the line '{name}: [...]'")
        _check_fields(sources["questions"], (name,), data["questions"][name], *fields)
    for part in ("beginnings", "middles", "ends"):
        _check_fields(sources["stories"], (part,), getattr(data["stories"], part), "hero", "thing")
    for name, category in data["unsafe"].items():
        source, asked = sources["unsafe"], "group" if isinstance(category.topics[0], schema.Group) else "do"
        _check_fields(source, (name, "wordings"), category.wordings, asked)
        _check_fields(source, (name, "comply"), [category.comply], "harm0", "harm1", asked)
        _check_fields(source, (name, "rule"), [category.rule], "reason", asked)
        _unique(source, [((name, "topics", j), getattr(t, asked)) for j, t in enumerate(category.topics)])
    # An answer that obeys "You love kites" would name a toy wherever toys are asked for.
    answers = {slug(i) for c in data["categories"] for i in c.items} | {slug(p.offers) for p in data["places"]}
    answers |= {slug(value) for person in people.values() for value in person.facts.values()}
    for j, hobby in enumerate(data["instructions"].hobbies):
        if {slug(hobby), slug(hobby).removesuffix("s")} & answers:
            wrong = f"'{hobby}' is also an answer to questions of the town; choose another word"
            raise sources["instructions"].error(("hobbies", j), wrong)
    for file, key in (("attributes", "id"), ("places", "name"), ("procedures", "do")):
        _unique(sources[file], [((i, key), getattr(entry, key)) for i, entry in enumerate(data[file])])
    items = [((i, "items", j), x) for i, c in enumerate(data["categories"]) for j, x in enumerate(c.items)]
    _unique(sources["categories"], items)
    _unique(sources["opposites"], [((i, j), w) for i, pair in enumerate(data["opposites"]) for j, w in enumerate(pair)])
    _unique(sources["small_talk"], [((i, "id"), t.id) for i, t in enumerate(data["small_talk"])])
    harmless = [
        (kind, i, b.do) for kind in ("how_to", "sayings") for i, b in enumerate(getattr(data["borderline"], kind))
    ]
    _unique(sources["borderline"], [((kind, i, "do"), do) for kind, i, do in harmless])
    _unique(sources["categories"], [((i, "name"), c.name) for i, c in enumerate(data["categories"])])


def _instructions(rows: schema.Instructions) -> tuple[Instruction, ...]:
    """The rules for whole dialogues, the three kinds well mixed."""

    def rule(kind: Any, name: str, text: str, word: str, position: Any, phrase: str) -> Instruction:
        return Instruction(
            f"{kind}/{slug(name)}", kind, text, f"{kind.capitalize()}: {name}", (word,), position, phrase
        )

    made = [
        rule("figure", f, f"Always answer as {with_article(f)}.", w, "start", f"{w}!") for f, w in rows.figures.items()
    ]
    made += [rule("hobby", h, f"You love {h}.", h, "end", f"That reminds me of {h}.") for h in rows.hobbies]
    made += [rule("language", n, f"Always greet in {n}.", w, "start", f"{w}!") for n, w in rows.languages.items()]
    return tuple(sorted(made, key=lambda i: hashlib.sha256(i.id.encode()).hexdigest()))


def load_town(path: str | Path | None = None) -> Town:
    """Read and check the town.

    Args:
        path: folder of the YAML files; None: the town that comes with the lab.

    Raises:
        LabError: one line with file, line and cure, for the first mistake found.
    """
    folder = Path(path) if path is not None else DATA / "world"
    if not folder.is_dir():
        raise LabError(f"{folder}: no such folder; give the folder that holds characters.yaml")
    sources = {name: _Source(folder / f"{name}.yaml") for name in ("characters", *schema.FILES)}
    data = {name: _validated(sources[name], kind) for name, kind in schema.FILES.items()}
    data["unsafe"] = dict(data["unsafe"])  # the fields of the model by their names
    attributes = {a.id: a for a in data["attributes"]}
    for needed in ("friend", "age"):
        if needed not in attributes:
            wrong = f"the attribute '{needed}' is needed for two-step and comparing questions; put it back"
            raise sources["attributes"].error((), wrong)
    people = _characters(sources["characters"], attributes)
    _check(sources, data, people)
    digest = hashlib.sha256(b"".join((folder / f"{name}.yaml").read_bytes() for name in sorted(sources)))
    return Town(
        **data
        | {
            "people": people,
            "attributes": attributes,
            "places": {slug(p.name): p for p in data["places"]},
            "procedures": {slug(p.do): p for p in data["procedures"]},
            "opposites": tuple((a, b) for a, b in data["opposites"]),
            "categories": {slug(c.name): c for c in data["categories"]},
            "small_talk": {t.id: t for t in data["small_talk"]},
            "instructions": _instructions(data["instructions"]),
            "digest": digest.hexdigest()[:16],
        }
    )
