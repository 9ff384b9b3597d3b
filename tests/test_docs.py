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
from llama2lab.report import promises, summary

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


def test_exercises_are_counted() -> None:
    exercises = all_exercises()
    predictions = sum(isinstance(e, Prediction) for e in exercises)
    code = sum(not isinstance(e.check, Form) for e in exercises)
    questions = len(exercises) - predictions - code
    assert len(exercises) == 65  # "sixty-five"
    assert "sixty-five [exercises]" in (ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join((ROOT / "docs" / "class.md").read_text(encoding="utf-8").split())
    assert f"Sixty-five, over all twelve notebooks: {code} to code" in said
    assert f"{questions} questions on plots, {predictions} predictions" in said


def test_results_are_those_of_the_three_seeds() -> None:
    """The table has every promised figure that has a mark, in the report's order, and what became of it."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text[text.index("| promised |") :].split("\n\n")[0].splitlines()[2:]
    ]
    seeds = sorted(p for p in (ROOT / "data" / "seeds").iterdir() if p.is_dir())  # not the report beside them
    promised = [p for p in promises.promises(seeds, [summary.load_run(seed) for seed in seeds]) if p.mark]
    assert len(seeds) == 3 and len(rows) == len(promised)
    for (what, _, measured, verdict), p in zip(rows, promised, strict=True):
        assert verdict.split(" ")[0] == ("met" if p.met else "missed"), (what, p)
        if p.figure["low"] < p.figure["high"]:
            mean, low, high = (re.sub(r"^(-?)0", r"\1", f"{p.figure[k]:.3f}") for k in ("mean", "low", "high"))
            assert measured == f"{mean} [{low}, {high}]", (what, p)
            assert ("†" in verdict) == p.verdict.endswith("unsure"), (what, p)
    assert f"**{sum(bool(p.met) for p in promised)} of {len(promised)} marks are met**" in text


def test_seconds_of_the_recipe_are_those_of_seed_0() -> None:
    """A row of the table holds every stage whose name begins as it says."""
    seconds = {name: s["seconds"] for name, s in summary.load_run(ROOT / "data" / "seeds" / "0")["stages"].items()}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text[text.index("| stage |") :].split("\n\n")[0].splitlines()[2:-1]
    ]
    held = (
        ("tokenizer",),
        ("base",),
        ("sft",),
        ("preferences",),
        ("reward",),
        ("samples", *(f"rlhf-v{v}" for v in range(1, 5))),
        ("gatt",),
        ("rlhf-v5",),
    )
    for row, begin in zip(rows, held, strict=True):
        assert int(row[3]) == round(sum(s for name, s in seconds.items() if name.startswith(begin))), row
    assert f"{sum(seconds.values()):,.0f}\ntogether" in text or f"{sum(seconds.values()):,.0f} together" in text
