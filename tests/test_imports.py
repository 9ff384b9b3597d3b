"""Arrows run one way: what each module of the house may know, read from its imports."""

import ast
import re
from pathlib import Path

import pytest

import llama2lab

ROOT = Path(llama2lab.__file__).parent
FILES = {".".join(("llama2lab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
         for path in ROOT.rglob("*.py")}
WORLD = sorted(name for name in FILES if name.startswith("llama2lab.town"))
# What notebooks stand on: it may know everything but the command line, and only that and notebooks know it.
LAB = {name for name in FILES if name.startswith(("llama2lab.lab", "llama2lab.widgets", "llama2lab.lab.measure"))}
TRAINING = ("train", "pretrain", "sft", "preferences", "reward", "rejection", "ppo", "gatt", "rlhf")


def imports_of(name: str, path: Path) -> set[str]:
    """Modules named in the import statements of a file, inside functions too."""
    found: set[str] = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


GRAPH = {name: imports_of(name, path) for name, path in FILES.items()}


def reachable(start: str) -> dict[str, str]:
    """Every module that importing `start` leads to, and the way there."""
    ways = {start: start}
    queue = [start]
    while queue:
        name = queue.pop()
        for target in sorted(GRAPH.get(name, ())):
            # Importing a.b imports a too, but llama2lab and llama2lab.town only hold a docstring: tested below.
            if target not in ways and target not in ("llama2lab", "llama2lab.town"):
                ways[target] = f"{ways[name]} -> {target}"
                queue.append(target)
    return ways


@pytest.mark.parametrize("module", [*TRAINING, "generate", "model", "chat", "logprobs", "tokenizer", "checkpoint"])
def test_the_oracle_is_out_of_reach(module: str) -> None:
    """A reward model, sampler or trainer that could ask the oracle would make every figure a lie."""
    ways = reachable(f"llama2lab.{module}")
    for hidden in ("llama2lab.town.oracle", "llama2lab.town.annotators", "llama2lab.stages.evaluate", "llama2lab.run.town"):
        assert hidden not in ways, ways.get(hidden)


def test_only_annotators_and_evaluation_know_the_oracle() -> None:
    knowing = {name for name, targets in GRAPH.items() if "llama2lab.town.oracle" in targets}
    assert knowing - LAB <= {"llama2lab.town.annotators", "llama2lab.stages.evaluate", "llama2lab.run.town"}


@pytest.mark.parametrize("module", ["model", "rope", "generate"])
def test_the_model_knows_nothing_of_chat(module: str) -> None:
    ways = reachable(f"llama2lab.{module}")
    for other in ("chat", "tokenizer", *TRAINING):
        assert f"llama2lab.{other}" not in ways, ways.get(f"llama2lab.{other}")
    assert not any(name.startswith("llama2lab.town") for name in ways)


@pytest.mark.parametrize("module", ["chat", "tokenizer"])
def test_chat_knows_nothing_of_training(module: str) -> None:
    ways = reachable(f"llama2lab.{module}")
    for other in ("model", "generate", "evaluate", "recipe", *TRAINING):
        assert f"llama2lab.{other}" not in ways, ways.get(f"llama2lab.{other}")


@pytest.mark.parametrize("module", WORLD)
def test_the_world_needs_no_torch(module: str) -> None:
    ways = reachable(module)
    for heavy in ("torch", "transformers", "tokenizers", "datasets"):
        found = [name for name in ways if name.split(".")[0] == heavy]
        assert not found, ways[found[0]]


def test_nobody_knows_the_reports_and_the_command_line() -> None:
    """Reports, plots and the command line know everything, and only the notebooks' part knows reports and plots."""
    house = {f"llama2lab.{name}" for name in ("cli", "cli_annotation", "pairs", "report", "plots", "summary", "talk",
                                              "__main__")}
    cli = {"llama2lab.cli.main", "llama2lab.cli.people", "llama2lab.__main__"}
    for name in FILES.keys() - house:
        hidden = cli if name in LAB else house
        assert not GRAPH[name] & hidden, f"{name} imports {GRAPH[name] & hidden}"


def test_nobody_in_the_library_knows_the_notebooks_part() -> None:
    for name in FILES.keys() - LAB - {"llama2lab.cli.main", "llama2lab.cli.people"}:
        assert not GRAPH[name] & LAB, f"{name} imports {GRAPH[name] & LAB}"


def test_packages_hold_nothing_that_imports() -> None:
    assert not GRAPH["llama2lab"] and not GRAPH["llama2lab.town"] and not GRAPH["llama2lab.lab"]


def test_there_are_no_circles_at_import() -> None:
    """No two modules import each other at their top."""
    top: dict[str, set[str]] = {}
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        names = {f"{node.module}.{alias.name}" for node in tree.body if isinstance(node, ast.ImportFrom)
                 for alias in node.names}
        top[name] = (modules | names) & FILES.keys()
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in top[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in top:
        visit(name, ())


def test_no_folder_beside_the_checkout_is_named() -> None:
    data = ROOT.parent / "data"
    written = [p for part in ("guidelines", "recipes", "world") for p in (data / part).rglob("*.*")]  # not the run
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.j2"), *written]:
        found = re.search(r"(\.\./|\bshared/)", path.read_text(encoding="utf-8"))
        assert not found, f"{path} names {found and found.group()}"
