"""Recipe files: YAML that changes settings, checked whole before anything is trained.

The YAML is what its version 1.2 calls the core schema: text, numbers, true and false, null, lists and mappings. What
recipes do not need and what can be meant otherwise is refused with its line: tags, aliases, keys that stand twice or
are no text, several documents, deep nesting.

A recipe may say `like: FILE`, another recipe, and then holds only what differs from that one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from llama2lab.engine.errors import LabError
from llama2lab.engine.settings import MISSING, UNKNOWN, Clash, complaint, dotted
from llama2lab.engine.validation import shown

T = TypeVar("T")
Place = tuple[Any, ...]  # the keys that lead to a setting

DEEPEST = 12  # levels of a recipe; the settings have five
LARGEST = 200_000  # bytes of a recipe file
LIKE = "like"
# YAML 1.2's core schema: 1e-4 is a number, "yes" and 1:30 are text, 010 is ten.
SCALARS: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)


class Loader(yaml.SafeLoader):
    """Composes nodes, without resolving scalars, and goes no deeper than DEEPEST."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*name): write the value itself", problem_mark=mark)
        if self.depth >= DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


Loader.yaml_implicit_resolvers = {}


@dataclass
class RecipeFile:
    """What a recipe file holds, and the line of every setting by its path."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    like: RecipeFile | None = None  # the recipe that this one changes

    @property
    def whole(self) -> dict[str, Any]:
        """All that it and the one that it is like set."""
        return laid_over(self.like.whole, self.data) if self.like else self.data

    def line(self, path: Place) -> int:
        """The line of the setting, or of what it would stand in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def refuse(self, line: int, what: str) -> NoReturn:
        raise LabError(f"{self.path}:{line}: {what}")

    def build(self, node: Any, path: Place) -> Any:
        """The plain value of a node."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)  # a mapping's key came first
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        name = f"{dotted(path)}: " if path else ""
        if tag not in {yaml.SequenceNode: ("seq",), yaml.MappingNode: ("map",)}.get(type(node), ("str",)):
            self.refuse(line, f"{name}a tag ({shown(node.tag)}): write a plain value")
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.build_mapping(node, path)
        if any(0xD800 <= ord(c) < 0xE000 for c in node.value):
            self.refuse(line, f"{name}half a character (a lone surrogate such as \\ud83d), which no text may hold")
        return node.value if node.style else self.plain(node.value, line, name)

    def build_mapping(self, node: Any, path: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            key = self.build(key_node, (*path, "key")) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                self.refuse(line, f"a key must be the name of a setting, not {shown(key_node.value)}")
            if key in found:
                self.refuse(line, f"{dotted((*path, key))} stands twice; remove one")
            self.lines[*path, key] = line
            found[key] = self.build(value, (*path, key))
        return found

    def plain(self, text: str, line: int, name: str) -> Any:
        """The value of a scalar without quotes."""
        for pattern, value in SCALARS:
            if pattern.fullmatch(text):
                try:
                    return value(text)
                except ValueError:  # Python's limit for the digits of a whole number
                    self.refuse(line, f"{name}a number with thousands of digits")
        return text


def read_recipe(path: str | Path, above: tuple[Path, ...] = ()) -> RecipeFile:
    """The contents of a recipe file, and of the one that it is like; `above` are those that are like it. LabError with
    file and line for what is no mapping in plain YAML."""
    file = RecipeFile(Path(path))
    try:
        if Path(path).is_fifo():  # whose opening might never end
            raise LabError(f"{path}: is a pipe; give the path of a recipe file (YAML)")
        with open(path, "rb") as f:
            content = f.read(LARGEST + 1)
        text = content.decode("utf-8-sig")
        if len(content) > LARGEST:
            raise LabError(f"{path}: is larger than {LARGEST:,} bytes; give the path of a recipe file (YAML)")
        node = yaml.compose(text, Loader=Loader)
    except (OSError, ValueError) as e:
        if isinstance(e, UnicodeDecodeError):
            raise LabError(f"{path}: is not UTF-8 text; save the recipe as UTF-8") from e
        why = e.strerror if isinstance(e, OSError) else str(e)  # a ValueError: NUL in the path
        raise LabError(f"{path}: {why}; give the path of a recipe file (YAML)") from e
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        raise LabError(f"{path}:{mark.line + 1 if mark else 1}: broken YAML ({e.problem}); mend this line") from e
    except yaml.YAMLError as e:  # control characters
        raise LabError(f"{path}: is not a text file; give the path of a recipe file (YAML)") from e
    if node is None or node.value == "":
        file.refuse(1, "the recipe is empty; a recipe is a mapping such as 'preset: mini', see the README")
    if not isinstance(node, yaml.MappingNode):
        file.refuse(node.start_mark.line + 1, "a recipe is a mapping such as 'preset: mini'; see the README")
    file.data = file.build(node, ())
    if LIKE in file.data:
        file.like = read_like(file, file.data.pop(LIKE), above)
    return file


def read_like(file: RecipeFile, name: Any, above: tuple[Path, ...]) -> RecipeFile:
    """The recipe that `file` names as the one it changes, a path from where it lies. LabError as `read_recipe`."""
    line = file.line((LIKE,))
    if not isinstance(name, str) or not name:
        file.refuse(line, f"{LIKE} must be the path of another recipe, not {shown(name)}")
    below = file.path.parent / name
    if "\0" in name or not below.is_file():
        file.refuse(line, f"{LIKE} names no file: {shown(str(below))}; give a path from this recipe's folder")
    above = (*above, file.path)
    if any(below.samefile(path) for path in above):
        file.refuse(line, f"{LIKE} names {shown(name)}, which is like this recipe itself; one of them must stand alone")
    return read_recipe(below, above)


def changed(settings: T, file: RecipeFile) -> T:
    """`settings` with the file's values in place of its own, all checked. LabError with file and line of the first
    that does not fit, the setting's name, what may stand there and what does."""
    if file.like:
        settings = changed(settings, file.like)
    kind = type(settings)
    before = json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]
    try:
        return TypeAdapter(kind).validate_json(json.dumps(laid_over(before, file.data)))
    except ValidationError as e:
        line, place, says = min((located(error, file) for error in e.errors(include_url=False)), key=lambda at: at[0])
    where = f"{file.path}:{line}"
    if says == UNKNOWN:
        known = ", ".join(sorted([*names_at(kind, place[:-1]), *([LIKE] if len(place) == 1 else [])]))
        raise LabError(f"{where}: unknown setting {dotted(place)}; choose one of {known}")
    default = value_at(before, place) if place in file.lines else None
    known = "" if default is None or isinstance(default, dict) else f" (it is {shown(default)} by default)"
    raise LabError(f"{where}: {dotted(place) or 'the recipe'} {says}{known}")


def laid_over(below: Any, above: Any) -> Any:
    """Mappings are merged, key by key; of anything else `above` counts."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: laid_over(below.get(key), value) for key, value in above.items()}}


def located(error: Any, file: RecipeFile) -> tuple[int, Place, str]:
    """The line of one of pydantic's errors, the setting that it is about, and what it says. Of settings that clash, the
    line is that of the first that the file holds."""
    place, says = complaint(error)
    clash = error.get("ctx", {}).get("error")
    if isinstance(clash, Clash):
        concerned = [(*error["loc"], *name.split(".")) for name in clash.settings]
        return file.line(next((p for p in concerned if p in file.lines), place)), place, says
    while says != MISSING and place and place not in file.lines:  # pydantic's names for the alternatives of a type
        place = place[:-1]
    return file.line(place), place, says


def names_at(kind: Any, path: Place) -> list[str]:
    """The names of the settings that may stand at `path` in a dataclass or typed dictionary."""
    for step in path:
        kind = get_type_hints(kind).get(step)
        if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
            kind = next((k for k in get_args(kind) if k is not type(None)), None)
    return list(get_type_hints(kind)) if isinstance(kind, type) and not get_origin(kind) else []


def value_at(tree: Any, path: Place) -> Any:
    """What stands at `path`, or None."""
    for step in path:
        tree = tree.get(step) if isinstance(tree, dict) else None
    return tree
