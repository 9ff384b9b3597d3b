"""What README, CONTRIBUTING and docs/ say is so: figures, commands, files, links, names."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from llama2lab.cli.main import app
from llama2lab.cli.notebooks import NAMES
from llama2lab.lab.predictions import Form, Prediction
from llama2lab.lessons.catalogue import all_exercises

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACES = ("", "llama2lab/", "llama2lab/annotation/")  # where a path that is named may begin
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the page's code blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def inline(page: Path) -> list[str]:
    """What stands between backticks, outside the blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def commands(page: Path) -> list[str]:
    """All shell commands: a line of a block without a language, or between backticks."""
    lines = [line.split(" #")[0].strip() for kind, text in blocks(page) if not kind for line in text.splitlines()]
    return [line for line in [*lines, *inline(page)] if line]


def anchor(heading: str) -> str:
    """GitHub's name for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            file, _, part = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not part or part in {
                anchor(h) for h in re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            }, link


@every_page
def test_notebooks_that_binder_opens_are_there(page: Path) -> None:
    for notebook in re.findall(r"lab/tree/([\w/]+\.ipynb)", page.read_text(encoding="utf-8")):
        assert (ROOT / notebook).is_file(), notebook


@every_page
def test_files_that_are_named_are_there(page: Path) -> None:
    """Of the checkout, or of the library, as the tables name them; runs/ is what a run makes."""
    for words in [*inline(page), *commands(page)]:
        for path in re.findall(r"(?<![\w/.$-])([a-z.][\w.-]*/[\w./*-]*)", words):
            if path.split("/")[0] not in ("runs", "students", "tmp", "lab", "postgresql:") and "://" not in words:
                assert any(list(ROOT.glob(place + path.rstrip("/.").replace("NAME", "*"))) for place in PLACES), words


@every_page
def test_commands_and_their_options_are_there(page: Path) -> None:
    for line in commands(page):
        if not (given := re.match(r"(?:[A-Z_0-9]+=\S+ )*((?:llama2lab|python -m) .*)", line)):
            continue
        words = shlex.split(given[1])
        if words[0] == "llama2lab":
            command, rest = typer.main.get_command(app), words[1:]
            while rest and hasattr(command, "commands"):
                assert rest[0] in command.commands, line
                command, rest = command.commands[rest[0]], rest[1:]
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {word for word in rest if word.startswith("--")} <= known, line
        else:
            assert importlib.util.find_spec(words[2]), line


@every_page
def test_make_targets_and_environment_variables_are_there(page: Path) -> None:
    text, makefile = page.read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    library = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "llama2lab").rglob("*.py"))
    for line in commands(page):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line
    for variable in set(re.findall(r"LLAMA2LAB_[A-Z]+", text)):
        assert f'"{variable}"' in library + (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"), variable


@every_page
def test_python_that_is_shown_imports_what_there_is(page: Path) -> None:
    for kind, text in blocks(page):
        for node in ast.walk(ast.parse(text)) if kind == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)}" in readme, page.name


def test_the_readme_lists_the_notebooks_in_their_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| \d\d \| `(\w+)` \|", readme, re.MULTILINE)) == NAMES
    assert f"{len(NAMES)} notebooks with widgets" in readme


def test_exercises_are_counted() -> None:
    exercises = all_exercises()
    predictions = sum(isinstance(e, Prediction) for e in exercises)
    code = sum(not isinstance(e.check, Form) for e in exercises)
    questions = len(exercises) - predictions - code
    assert f"There are {len(exercises)} [exercises]" in (ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join((ROOT / "docs" / "class.md").read_text(encoding="utf-8").split())
    assert f"{len(exercises)} in all: {code} to code" in said
    assert f"{questions} questions on plots, {predictions} predictions" in said
