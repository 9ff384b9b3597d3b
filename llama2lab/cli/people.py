"""What concerns other people: `annotate`, `labels` and `agreement` of the annotation system, and `class`."""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from llama2lab.cli.commands import Commands, Seed, Store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import MAX_OVERLAP

app = typer.Typer()
labels = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Pairs into an annotation store, labels out of it, several stores into one.",
)
app.add_typer(labels, name="labels")


class ClassCommands(Commands):
    """`class URL ROSTER` is `class logins URL ROSTER`: so it was called before there was a second command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["logins", *args]
        return super().parse_args(ctx, args)


classes = typer.Typer(
    cls=ClassCommands,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="For a class: the notebooks as graded assignments, and database logins for annotators.",
)
app.add_typer(classes, name="class")


@contextlib.contextmanager
def needs_extra(extra: str = "annotate") -> Iterator[None]:
    """Around imports of what only the annotation system or the lab needs: these are extras."""
    try:
        yield
    except ModuleNotFoundError as e:
        raise LabError(f"{e.name} is not installed; give: pip install 'llama2lab[{extra}]'") from e


def opened(url: str, create: bool = True) -> Any:
    """The store at this URL, to be closed by `with`."""
    with needs_extra():
        from llama2lab.annotation.store.store import open_store
    return open_store(url, create)


def read_labels(url: str) -> list[dict[str, Any]]:
    """Every label in a store. LabError where it cannot be opened, holds none, or what it needs is not installed."""
    with opened(url, create=False) as store:
        found, where = store.labels(), store.where  # `where` holds no password
    if not found:
        raise LabError(f"{where} holds no label yet; label some pairs with: llama2lab annotate {where}")
    return found


SHOW_ALL = "Set no pair aside; queue those, too, that were."


def queued(store: Any, rows: list[dict[str, Any]], overlap: int, seed: int, everything: bool, sound: Any = None) -> str:
    """Put pairs into a store, those set aside that are not worth a person's time; what was done, in words."""
    with needs_extra():
        from llama2lab.annotation.files.adding import add_pairs, keys_there
        from llama2lab.annotation.files.sifting import Sifted, sift
    sifted = Sifted(kept=rows) if everything else sift(rows, sound, keys_there(store))
    new = add_pairs(store, sifted.kept, overlap, seed, sifted.aside)
    cure = "; they are kept in the store and shown to nobody, --all shows them" if sifted.aside else ""
    return f"{new} new pairs" + (f"\n{sifted}{cure}" if sifted.aside else "")


@app.command()
def agreement(store: Store, out: Annotated[Path, Option(help="The page.")] = Path("agreement.html")) -> None:
    """Print how far annotators agree and who stands out, and write one page with every figure.

    \b
    llama2lab agreement labels.db
    llama2lab agreement postgresql://teacher@host/class --out class.html
    """
    labels = read_labels(store)
    from llama2lab.annotation.agreement.dashboard import summary_text, write_page

    if out.is_dir():
        raise LabError(f"{out} is a folder; give the page's file name, such as {out / 'agreement.html'}")
    page = write_page(labels, out)
    typer.echo(summary_text(labels))
    typer.echo(f"\npage     {page}")


@app.command()
def annotate(
    store: Store,
    host: Annotated[str, Option(help="0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 8866,
    kind: Annotated[str | None, Option(help="helpfulness or safety.  [default: both]")] = None,
    gold: Annotated[int, Option(min=0, help="Gold pairs in one attempt of the qualification; 0: none.")] = 5,
    mark: Annotated[float, Option(min=0, max=1, help="Share of them that must agree.")] = 0.8,
    attempts: Annotated[int, Option(min=1, help="Attempts, each with other gold pairs.")] = 2,
    practice: Annotated[int, Option(min=0, help="Gold pairs before that, each explained once it is answered.")] = 3,
    goal: Annotated[int, Option(min=0, help="Pairs after which the form proposes a rest; 0: none.")] = 20,
    base_url: Annotated[str, Option(help="Behind a proxy: /path/.")] = "/",
    server_name: Annotated[
        list[str] | None,
        Option(
            help="A name under which browsers reach the form, such as a "
            "proxy's; may be repeated.  [default: this machine's own]"
        ),
    ] = None,
    visitors: Annotated[int | None, Option(min=1, help="How many at once.  [default: what the memory holds]")] = None,
    forget_code: Annotated[
        list[str] | None,
        Option(
            help="A name whose code is lost: it chooses a new one at its "
            "next visit. Nothing is served then; may be repeated."
        ),
    ] = None,
    open_browser: Annotated[bool, Option("--open", help="Open the page here.")] = False,
    seed: Seed = 0,
) -> None:
    """Serve the annotation form to people who know no notebooks: name, guidelines, practice, a qualification, pairs.

    \b
    llama2lab annotate labels.db --open
    LLAMA2LAB_ANNOTATIONS=postgresql://... llama2lab annotate --host 0.0.0.0
    llama2lab annotate labels.db --forget-code Ada
    """
    with needs_extra():
        from llama2lab.annotation.form.serving import annotate as serve
        from llama2lab.annotation.form.standing import Settings
        from llama2lab.annotation.store import codes
    if forget_code:
        with opened(store, create=False) as there:
            for name in forget_code:
                codes.forget(there, name)
                typer.echo(f"{name} chooses a new code at the next visit")
        return
    serve(
        store,
        host,
        port,
        settings=Settings(kind, seed, gold, mark, attempts, practice=practice, goal=goal),
        open_browser=open_browser,
        base_url=base_url,
        visitors=visitors,
        names=server_name or (),
        say=lambda line: typer.echo(line, err=True),
    )


@classes.command()
def release(
    notebooks: Annotated[
        list[str], Argument(help="Numbers or names, such as 02 or 02_transformer; or all.", metavar="NOTEBOOK...")
    ],
    out: Annotated[Path, Option(help="The course's folder; nbgrader's commands are given there.")] = Path("course"),
    course: Annotated[str, Option(help="The course's name, for a new folder.")] = "llama2lab",
    force: Annotated[bool, Option("--force", help="Write assignments anew that are there already.")] = False,
) -> None:
    """Make assignments for nbgrader (pip install nbgrader): points, solutions, and locked checks.

    \b
    llama2lab class release all --out course
    cd course
    nbgrader generate_assignment 02_transformer            the students' version, in release/
    LLAMA2LAB_SOLUTIONS=off nbgrader autograde 02_transformer
    Predictions earn their points for being made, right or wrong.
    """
    with needs_extra("lab"):
        from llama2lab.cli.notebooks import find
        from llama2lab.cli.release import release as write
    for one in write(find([] if notebooks == ["all"] else notebooks), out, course, force):
        typer.echo(f"{one.path}   {one.exercises} exercises, {one.points} points")
    typer.echo(f"\nnext     cd {out} && nbgrader generate_assignment NAME")


@classes.command()
def logins(
    store: Store,
    roster: Annotated[Path, Argument(help="Names, one a line or a CSV file.", metavar="ROSTER")],
    out: Annotated[Path, Option(help="Where the students' URLs are written (mode 0600).")] = Path("class-urls.csv"),
    renew: Annotated[list[str] | None, Option(help="A name whose password is made anew; may be repeated.")] = None,
) -> None:
    """Logins on a PostgreSQL server for the names of a roster; running it again adds only the new ones.

    \b
    llama2lab class logins postgresql://teacher:...@host/lab roster.csv
    """
    with needs_extra():
        from llama2lab.annotation.store.classroom import create_class
    typer.echo(create_class(store, roster, out, renew or []))


@labels.command()
def collect(
    store: Store,
    run: Annotated[Path, Argument(help="The folder of a run on the town.", metavar="RUN")],
    pairs: Annotated[int, Option(min=1, help="How many prompts are asked; equal answers make no pair.")] = 100,
    kind: Annotated[str, Option(help="helpfulness or safety.")] = "helpfulness",
    gold: Annotated[int, Option(min=0, help="Further pairs whose better answer is known.")] = 13,
    overlap: Annotated[int, Option(min=1, max=MAX_OVERLAP, help="How many people judge each pair.")] = 1,
    stage: Annotated[
        list[str] | None,
        Option(help="A model that answers; give two.  [default: the last one and sft]"),
    ] = None,
    all_: Annotated[bool, Option("--all", help=SHOW_ALL)] = False,
    seed: Seed = 0,
) -> None:
    """Let two models of a run answer training prompts, and queue the pairs of answers for people to judge.

    \b
    Set aside, kept in the store, and shown to nobody: pairs of which both answers are word salad (by the grammar of the
    town's language), whose answers are the same words, or that were asked already. Gold pairs are never set aside.

    \b
    llama2lab labels collect labels.db runs/mini-0 --pairs 200 --overlap 3
    llama2lab labels collect labels.db runs/mini-0 --kind safety --stage rlhf-v4 --stage rlhf-v5
    """
    from llama2lab.run.gold import guidelines
    from llama2lab.run.pairs import pairs_of_run
    from llama2lab.town.language import sound
    from llama2lab.town.town import load_town

    with opened(store) as there:  # first, so that a wrong URL is said before the models work
        rows = pairs_of_run(run, pairs, kind, gold, stage or (), seed)  # type: ignore[arg-type]
        said = queued(there, rows, overlap, seed, all_, sound)
        equal = pairs - sum("gold" not in row for row in rows)
        if equal:
            said += f"\n{equal} of {pairs} prompts had the same answer twice and make no pair"
        if not there.guidelines(kind)[0]:  # a teacher may have put others there
            there.add_guidelines(kind, guidelines(load_town(), kind))  # type: ignore[arg-type]
        where = there.where if there.sqlite else "URL"
    typer.echo(f"{said}\nlabel them: llama2lab annotate {where}")


@labels.command()
def add(
    store: Store,
    file: Annotated[
        Path,
        Argument(
            help='JSON lines (or an array, or .parquet): {"kind", "prompt": messages, "answers": [a, b]}',
            metavar="FILE",
        ),
    ],
    overlap: Annotated[int, Option(min=1, max=MAX_OVERLAP, help="How many people judge each pair.")] = 1,
    all_: Annotated[bool, Option("--all", help=SHOW_ALL)] = False,
    seed: Seed = 0,
) -> None:
    """Queue pairs of answers of your own; those whose answers are the same words, or that were asked already, are set
    aside: kept in the store, and shown to nobody."""
    with needs_extra():
        from llama2lab.annotation.files.adding import read_pairs
    rows = read_pairs(file)  # first, so that a mistake leaves no store behind
    with opened(store) as there:
        typer.echo(queued(there, rows, overlap, seed, all_))


@labels.command()
def watch(
    store: Store,
    name: Annotated[
        str | None, Option("--as", help="Your name, which your verdicts keep.  [default: your login]")
    ] = None,
    port: Annotated[int, Option(min=1, max=65535)] = 8867,
    open_browser: Annotated[bool, Option("--open", help="Open the page here.")] = False,
) -> None:
    """The teacher's desk: who labels and how well, live, and the pairs about which people disagree, to be decided.

    \b
    llama2lab labels watch labels.db --as "Ms Hill" --open
    It is served on this machine alone; the address that is printed holds its key.
    """
    with needs_extra():
        from llama2lab.annotation.desk.serving import watch as serve
    serve(
        store,
        name or getpass.getuser(),
        port,
        open_browser=open_browser,
        say=lambda line: typer.echo(line, err=True),
    )


@labels.command("export")
def export_(
    store: Store,
    file: Annotated[
        Path,
        Argument(help="FILE.parquet or FILE.jsonl; what TRL does not read goes to FILE.rest.", metavar="FILE"),
    ],
    margins: Annotated[str, Option(help="small, large or none: what the grades become.")] = "small",
) -> None:
    """Write all labels in TRL's preference format with `margin`, without loss."""
    with needs_extra():
        from llama2lab.annotation.files.exporting import export_preferences
    with opened(store, create=False) as there:
        typer.echo(f"{export_preferences(there, file, margins)} preferences in {file}")


@labels.command("import")
def import_(
    store: Store,
    file: Annotated[Path, Argument(help="A file of `labels export`, or anybody's preference rows.", metavar="FILE")],
    annotator_kind: Annotated[str, Option(help="Who made labels that do not say it: person or simulated.")] = "person",
    margins: Annotated[
        str | None,
        Option(
            help="What a margin without a grade means: small, large, or four "
            "numbers from significantly to negligibly, such as 4,3,2,1."
        ),
    ] = None,
) -> None:
    """Read labels from a file (.jsonl, .json, .csv or .parquet): all of them, or none if a row is wrong."""
    with needs_extra():
        from llama2lab.annotation.files.importing import import_preferences
    with opened(store) as there:
        typer.echo(import_preferences(there, file, annotator_kind, margins))


@labels.command()
def merge(
    store: Store,
    files: Annotated[list[str], Argument(help="Other stores, such as students' files.", metavar="FILE...")],
    only: Annotated[
        str | None,
        Option(help="Take the labels of this annotator alone.  [default: all]", metavar="NAME"),
    ] = None,
    trust: Annotated[
        bool,
        Option(
            "--trust",
            help="Believe the files: queue their new pairs, gold too, put their "
            "guidelines in force, take labels in anybody's name.",
        ),
    ] = False,
) -> None:
    """Take in the labels of other stores, and say in whose names; merging the same file again adds nothing."""
    with needs_extra():
        from llama2lab.annotation.files import merging
    with opened(store) as there:
        typer.echo(merging.merge(there, files, only, trust))
