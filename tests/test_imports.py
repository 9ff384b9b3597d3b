"""Arrows run one way: what each folder of the house may know, read from the imports, inside functions too."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama2lab

ROOT = Path(llama2lab.__file__).parent
FILES = {
    ".".join(("llama2lab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
# Each folder and those that it may import from, beside itself.
BELOW = {
    "engine": (),
    "model": ("engine",),
    "town": ("engine",),
    "report": ("engine",),
    "stages": ("engine", "model", "town"),
    "annotation": ("engine", "town", "report"),
    "run": ("engine", "model", "town", "stages", "annotation", "report"),
    "lab": ("engine", "model", "town", "stages", "annotation", "report", "run"),
    "lessons": ("engine", "model", "town", "stages", "annotation", "report", "run", "lab"),
    "evidence": ("engine", "model", "town", "stages", "annotation", "report", "run", "lab", "lessons"),
    "cli": ("engine", "model", "town", "stages", "annotation", "report", "run", "lab", "lessons", "evidence"),
    "notebooks": ("engine", "model", "town", "stages", "annotation", "report", "run", "lab", "lessons", "evidence"),
}
WIDGETS = {f"llama2lab.lab.{name}" for name in ("explorer", "picture", "live_view")}  # what a widget is made of
# Which other stages a stage builds on in the report; `rounds` on all.
STAGES = {
    "pretrain": (),
    "sft": ("pretrain",),
    "preferences": (),
    "reward": ("pretrain",),
    "gate": ("reward",),
    "rejection": ("gate", "reward"),
    "ppo": ("pretrain", "reward", "gate"),
    "gatt": (),
    "evaluate": ("gatt", "reward"),
}


def imports_of(name: str, source: str, package: bool = False) -> set[str]:
    """The library's modules that a source names in import statements."""
    found: set[str] = set()
    home = name if package else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = home.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def modules(names: set[str]) -> set[str]:
    """Those of ours that are no mere packages: importing a.b imports a too, and packages only hold a docstring."""
    return {n for n in names & FILES.keys() if FILES[n].name != "__init__.py" or n.endswith("migrations")}


SOURCES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
GRAPH = {name: imports_of(name, SOURCES[name], path.name == "__init__.py") for name, path in FILES.items()}


def faults(name: str, targets: set[str]) -> list[str]:
    """What of a module's imports the house forbids."""
    found, place = [], name.split(".")[1:]
    for target in sorted(modules(targets)):
        to = target.split(".")[1:]
        here, there = place[0], to[0]
        if here == "__main__":
            continue
        if there != here and there not in BELOW[here]:
            found.append(f"{name} -> {target}: {here} may not know {there}")
        if (here, there) == ("stages", "stages") and place[1] != "rounds" and to[1] not in STAGES[place[1]]:
            found.append(f"{name} -> {target}: the report does not build {place[1]} on {to[1]}")
        if (here, there) == ("stages", "town") and to[1] not in ("items", "prompts"):
            found.append(f"{name} -> {target}: of the town a stage knows items and prompts")
        if (here, there) == ("annotation", "town") and place != ["annotation", "agreement", "simulate"]:
            found.append(f"{name} -> {target}: only agreement/simulate knows the town")
        if (here, there) == ("annotation", "report") and to[1] != "look":
            found.append(f"{name} -> {target}: of the report only its look")
        if (here, there) == ("lessons", "lessons") and place[1][0] == "n" and to[1] > place[1]:
            found.append(f"{name} -> {target}: a lesson knows earlier ones only")
        if place[-1] == "experiments" and not WIDGETS.isdisjoint(GRAPH.get(target, ())):
            found.append(f"{name} -> {target}: an experiment knows no widget")
        if there in ("cli", "notebooks") and here != there:
            found.append(f"{name} -> {target}: nobody knows {there}")
    return found


@pytest.mark.parametrize("folder", BELOW)
def test_no_arrow_points_upwards(folder: str) -> None:
    found = [f for name in FILES if name.startswith(f"llama2lab.{folder}.") for f in faults(name, GRAPH[name])]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("llama2lab.engine.loop", "from llama2lab.model.network import Llama"),
        ("llama2lab.model.chat", "from llama2lab.stages import sft"),
        ("llama2lab.stages.reward", "from llama2lab.stages.ppo import ppo"),
        ("llama2lab.stages.evaluate", "from llama2lab.town.oracle import Oracle"),
        ("llama2lab.annotation.rows", "from llama2lab.town.town import Town"),
        ("llama2lab.annotation.agreement.charts", "from llama2lab.report import plots"),
        ("llama2lab.run.town", "from llama2lab.lab.finished import Finished"),
        ("llama2lab.lessons.n02_transformer.exercises", "from llama2lab.lessons.n08_ppo import ppo_view"),
        ("llama2lab.lessons.n08_ppo.experiments", "from llama2lab.lessons.n08_ppo.ppo_view import PpoView"),
        ("llama2lab.lessons.catalogue", "from llama2lab.evidence import ship"),
        ("llama2lab.lab.finished", "def f():\n    import llama2lab.cli.main"),
        ("llama2lab.evidence.page", "from llama2lab.notebooks import n08_ppo"),
    ],
)
def test_an_arrow_upwards_is_seen(name: str, line: str) -> None:
    assert name in FILES and faults(name, imports_of(name, line))


def reachable(start: str) -> dict[str, str]:
    """Every module that importing `start` leads to, and the way there."""
    ways = {start: start}
    queue = [start]
    while queue:
        name = queue.pop()
        for target in sorted(GRAPH.get(name, ())):
            if target not in ways:
                ways[target] = f"{ways[name]} -> {target}"
                queue.append(target)
    return ways


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("llama2lab.model.", "llama2lab.stages."))])
def test_the_oracle_is_out_of_reach(name: str) -> None:
    """A reward model, sampler or trainer that could ask the oracle would make every figure a lie."""
    ways = reachable(name)
    for hidden in ("llama2lab.town.oracle", "llama2lab.town.annotators"):
        assert hidden not in ways, ways.get(hidden)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("llama2lab.town", "llama2lab.annotation"))])
def test_the_town_and_annotation_need_no_torch(name: str) -> None:
    ways = reachable(name)
    for heavy in ("torch", "transformers", "tokenizers"):
        found = [other for other in ways if other.split(".")[0] == heavy]
        assert not found, ways[found[0]]


def test_packages_hold_nothing_that_imports() -> None:
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"} - {
        "llama2lab.annotation.store.migrations"
    }
    assert not {name: GRAPH[name] for name in packages if GRAPH[name]}


def circle(arrows: dict[str, set[str]]) -> str:
    """A circle in a graph, or ""."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> str:
        if name in path:
            return " -> ".join((*path[path.index(name) :], name))
        for target in sorted(arrows.get(name, set()) - done):
            if found := visit(target, (*path, name)):
                return found
        done.add(name)
        return ""

    return next((found for name in sorted(arrows) if (found := visit(name, ()))), "")


def test_there_are_no_circles_between_files() -> None:
    assert not circle({name: modules(GRAPH[name]) - {name} for name in FILES})


def test_there_are_no_circles_between_folders() -> None:
    folders: dict[str, set[str]] = {}
    for name in FILES:
        home = name.rpartition(".")[0]
        folders.setdefault(home, set()).update(t.rpartition(".")[0] for t in modules(GRAPH[name]))
    assert not circle({home: targets - {home} for home, targets in folders.items()})


def test_no_folder_beside_the_checkout_is_named() -> None:
    data = ROOT.parent / "data"
    written = [p for part in ("guidelines", "recipes", "world") for p in (data / part).rglob("*.*")]  # not the run
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.j2"), *written]:
        found = re.search(r"(\.\./|\bshared/)", path.read_text(encoding="utf-8"))
        assert not found, f"{path} names {found and found.group()}"


def test_notebook_00_opens_without_the_checker_of_notebooks() -> None:
    """nbformat loads jsonschema, and that a grammar of addresses: seconds of processor time before anything is seen."""
    asked = "import sys, llama2lab.notebooks.n00_start; print('nbformat' in sys.modules, 'jsonschema' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
