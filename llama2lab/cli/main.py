"""The command line: `llama2lab run`, `report`, `experiments`, `evidence`, `chat`, `generate`, `annotate`, `labels`,
`class`, `agreement`, `bench`, `scale`, `doctor`.

Heavy modules are imported inside the commands, so that `--help` answers at once. Every mistake a user can mend is
one line on stderr and exit code 2; what a command is asked for goes to stdout, what it is doing to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from llama2lab.cli import people as cli_annotation
from llama2lab.cli.commands import Commands, Seed
from llama2lab.cli.people import read_labels
from llama2lab.engine.errors import LabError

SMOKE = "smoke tests the plumbing with a tiny model: its figures mean nothing; for real ones: llama2lab run"

app = typer.Typer(
    name="llama2lab",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_annotation.app)


@app.callback()
def main() -> None:
    """Llama 2's whole recipe in miniature, on a laptop CPU.

    \b
    llama2lab run                        everything, from tokenizer to RLHF-V5
    llama2lab run --preset smoke         the same in about a minute, to try the plumbing
    llama2lab report runs/mini-0         one page with every figure, and the marks they should meet
    llama2lab experiments runs/mini-0    the report's claims, one by one (about half an hour)
    llama2lab evidence                   five seeds, the claims and the benchmark (some hours)
    llama2lab chat runs/mini-0           talk to the result
    llama2lab chat runs/mini-0 --stage sft "Where does Mira live?"

    \b
    llama2lab labels collect labels.db runs/mini-0     pairs of answers for people to judge
    llama2lab annotate labels.db                       the form where they judge them
    llama2lab agreement labels.db                      who agrees with whom
    llama2lab run --annotations labels.db              and what their labels teach

    A run that was stopped goes on when the same command is given again.
    """


Device = Annotated[str, Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str, Option(help="auto (a quick measurement picks), fp32 or bf16.")]


@app.command()
def run(
    preset: Annotated[
        str | None,
        Option(help="mini (the recipe) or smoke (a minute, figures mean nothing).  [default: mini]"),
    ] = None,
    recipe: Annotated[Path | None, Option(help="A YAML file: a preset with changes, or your own data.")] = None,
    out: Annotated[Path | None, Option(help="The run's folder.  [default: runs/PRESET-SEED]")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    data: Annotated[
        Path | None, Option(help="Folder with local copies of a recipe's data sets (or set LLAMA2LAB_DATA).")
    ] = None,
    annotations: Annotated[
        str | None,
        Option(metavar="URL", help="An annotation store: the reward models train on people's labels, too."),
    ] = None,
    people_share: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Share of people's rows in what the reward models train on.  [default: all rows there are]",
        ),
    ] = None,
    shard: Annotated[
        str,
        Option(help="auto, always or never: whether several processes divide a model that they train (FSDP)."),
    ] = "auto",
) -> None:
    """Train everything, judge every stage, write RUN/results.json and RUN/report.html.

    \b
    llama2lab run                                      preset mini, seed 0, into runs/mini-0
    llama2lab run --seed 1 --out runs/second
    llama2lab run --recipe my.yaml                     'preset: mini' and what you change
    llama2lab run --recipe real.yaml --data ~/data     real texts; `data:` in the file says which
    llama2lab run --annotations labels.db              people's labels beside the simulated annotators'

    Several processes share the work, each on a GPU of its own or on cores of this machine:

    
    torchrun --nproc-per-node 2 -m llama2lab run

    Stop it when you like: the same command goes on where it was.
    """
    if preset and recipe:
        raise LabError("give --preset or --recipe, not both: a recipe file names its preset itself")
    if people_share is not None and annotations is None:
        raise LabError("--people-share needs --annotations URL: the store with people's labels")
    from llama2lab.engine.distributed import is_first, leave, start
    from llama2lab.engine.recipefile import read_recipe
    from llama2lab.report.page import report as make_report
    from llama2lab.report.summary import stage_table
    from llama2lab.run import presets

    start(device)

    real = recipe is not None and "data" in read_recipe(recipe).whole
    labels = read_labels(annotations) if annotations is not None else []
    if recipe and real:
        from llama2lab.run.recipe import run_real

        out = out or Path("runs") / f"{recipe.stem}-{seed}"
        results = run_real(recipe, out, seed, device, precision, data, labels, people_share, shard)
    else:
        from llama2lab.run.recipe import run_town

        chosen = presets.load_recipe(recipe) if recipe else presets.preset(preset or "mini")
        out = out or Path("runs") / f"{recipe.stem if recipe else chosen.preset}-{seed}"
        if chosen.preset == "smoke" and is_first():
            typer.echo(SMOKE, err=True)
        results = run_town(chosen, out, seed, device, precision, labels, people_share, shard)
    if not is_first():
        return leave()
    page = make_report([out], out / "report.html")
    typer.echo(stage_table(results))
    if results.get("preset") == "smoke":
        typer.echo(f"\n{SMOKE}")
    typer.echo(f"\nfigures  {out / 'results.json'}\nreport   {page}\ntalk     llama2lab chat {out}")
    leave()


@app.command()
def report(
    runs: Annotated[list[Path], Argument(help="Folders of runs; several are pooled.", metavar="RUN...")],
    out: Annotated[
        Path | None,
        Option(help="The page.  [default: RUN/report.html; for several runs report.html beside the first]"),
    ] = None,
) -> None:
    """Print the promised figures with their marks, and write one page with everything.

    \b
    llama2lab report runs/mini-0
    llama2lab report runs/mini-0 runs/mini-1 runs/mini-2 --out three-seeds.html
    """
    from llama2lab.report.page import report as make_report
    from llama2lab.report.promises import promised_table

    if out is not None and out.is_dir():
        raise LabError(f"{out} is a folder; give the page's file name, such as {out / 'report.html'}")
    page = make_report(runs, out or (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / "report.html")
    typer.echo(promised_table(runs))
    typer.echo(f"\nreport   {page}")


@app.command()
def experiments(
    run: Annotated[Path, Argument(help="The folder of a finished run.", metavar="RUN")],
    names: Annotated[list[str] | None, Argument(help="Only these.  [default: all]", metavar="NAME...")] = None,
    again: Annotated[bool, Option("--again", help="Measure also what is there already.")] = False,
) -> None:
    """Put the report's claims to the test on a finished run: what the notebooks show beside the report's figures.

    \b
    llama2lab experiments runs/mini-0                  all of them, about half an hour
    llama2lab experiments runs/mini-0 margins          one; a wrong name is answered with the list
    Each is kept in RUN/experiments/NAME.json; stop it when you like, and give the same command again to go on.
    """
    from llama2lab.lab.measure import measure
    from llama2lab.lessons.catalogue import all_experiments

    measure(run, all_experiments(), names or (), again)


@app.command()
def evidence(
    seeds: Annotated[str, Option(help="A range or a list: 0-4, or 0,2,7.")] = "0-4",
    out: Annotated[Path, Option(help="Where runs, experiments and benchmark are kept.")] = Path("runs/evidence"),
    jobs: Annotated[int, Option(min=1, help="Runs at once; the time of runs counts only where it is 1.")] = 1,
    on: Annotated[
        str | None,
        Option(metavar="RAY", help="Over a cluster, a task each: ray (a local Ray), ray://HOST:10001 or HOST:6379."),
    ] = None,
    preset: Annotated[str, Option(help="mini, or smoke to try the plumbing.")] = "mini",
    write: Annotated[
        bool,
        Option("--write", help="At the end let it take the place of data/run and data/seeds, and write the results."),
    ] = False,
    pages: Annotated[
        bool, Option("--pages", help="Only write docs/results.md and README's figures anew, from what data/ holds.")
    ] = False,
) -> None:
    """Make all that the project claims: runs of several seeds, the experiments on the first, the benchmark.

    \b
    llama2lab evidence                                 seeds 0 to 4, one after another, into runs/evidence
    llama2lab evidence --jobs 4                        four runs at once, where there are cores for it
    llama2lab evidence --on ray://head:10001           over a cluster, a task a seed and an experiment
    llama2lab evidence --write                         and write what came of it: docs/results.md, README, data/
    Stop it when you like: the same command goes on where it was, and leaves what is there.
    """
    from llama2lab.engine.paths import ROOT
    from llama2lab.evidence import gather
    from llama2lab.evidence.readme import write_pages
    from llama2lab.lessons.catalogue import all_experiments

    if on is not None and jobs > 1:
        raise LabError("--jobs is for this machine alone; with --on, Ray runs as many at once as it has cores for")
    if write and preset != "mini":
        raise LabError(f"what is shipped is of the preset mini, not {preset}; leave --write out")
    if pages:
        changed = write_pages(ROOT)
    else:
        wanted = gather.Gathering(out, gather.seeds_of(seeds), preset, jobs, all_experiments(), on or "")
        gather.gather(wanted)
        if not write:
            typer.echo("to write it into the pages and data/, give the same command with --write")
            return
        changed = gather.write(wanted, ROOT)
    typer.echo("\n".join(f"written  {path}" for path in changed) or "the pages say this already")


@app.command()
def real_figures(
    runs: Annotated[list[Path], Argument(help="Finished runs of recipes with `data:`.", metavar="RUN...")],
    write: Annotated[
        bool, Option("--write", help="Let them take the place of data/real.json, and write docs/results.md.")
    ] = False,
) -> None:
    """What the project shows of runs on real text: reward models beside their baselines, truth, win rates, answers.

    \b
    llama2lab real-figures runs/smollm2-0              print it
    llama2lab real-figures runs/smollm2-0 --write      and let notebooks and docs/results.md show it
    """
    from dataclasses import replace

    from llama2lab.engine.paths import DATA, ROOT
    from llama2lab.evidence.page import real_part
    from llama2lab.evidence.readme import write_pages
    from llama2lab.evidence.real import real_figures, write_real
    from llama2lab.evidence.stored import Stored, read_stored

    if write:
        if not (ROOT / "README.md").is_file():
            raise LabError(f"{ROOT} is no checkout of llama2lab, so there is nothing to write; leave --write out")
        changed = [write_real(runs, ROOT / "data"), *write_pages(ROOT)]
        typer.echo("\n".join(f"written  {path}" for path in changed))
    else:
        found = [real_figures(run) for run in runs]
        stored = read_stored(DATA) if (DATA / "seeds").is_dir() else Stored(())
        typer.echo("\n\n".join(real_part(replace(stored, real=found))))


@app.command()
def chat(
    run: Annotated[Path, Argument(help="The folder of a run, or of one checkpoint.", metavar="RUN")],
    prompt: Annotated[str | None, Argument(help="Ask this and end; without it, a conversation.")] = None,
    stage: Annotated[str | None, Option(help="Which model: sft, rlhf-v1 ... [default: the last one]")] = None,
    temperature: Annotated[float, Option(min=0.0, help="0 takes the likeliest word each time.")] = 0.7,
    max_new_tokens: Annotated[int, Option(min=1)] = 80,
    seed: Seed = 0,
) -> None:
    """Talk to a stage of a run, or to a checkpoint.

    \b
    llama2lab chat runs/mini-0                                    a conversation with the last stage
    llama2lab chat runs/mini-0 --stage base "Where does Mira live?"
    In a conversation: /stage NAME changes the model, /reset forgets, /quit ends.
    """
    from llama2lab.run.talk import converse, is_checkpoint, pick_stage, say

    if is_checkpoint(run) and stage is not None:
        raise LabError(f"{run} is one checkpoint and no run; leave --stage out")
    name = None if is_checkpoint(run) else pick_stage(run, stage)
    if prompt is None:
        converse(run, name, temperature, max_new_tokens, seed)
    else:
        asked = [{"role": "user", "content": prompt}]
        typer.echo(say(run / name if name else run, asked, temperature, max_new_tokens, seed))


@app.command()
def generate(
    checkpoint: Annotated[str, Argument(help="A checkpoint folder (any Llama model of transformers), or a hub name.")],
    prompt: Annotated[str, Argument(help="The text to continue.")] = "",
    greedy: Annotated[bool, Option("--greedy", help="Take the likeliest token each time.")] = False,
    max_new_tokens: Annotated[int, Option(min=1)] = 100,
    temperature: Annotated[float, Option(min=0.0)] = 1.0,
    seed: Seed = 0,
) -> None:
    """Continue a text; prints the text alone, prompt and continuation.

    \b
    llama2lab generate runs/mini-0/base "Mira lives on" --greedy
    """
    from llama2lab.run.talk import complete

    typer.echo(complete(checkpoint, prompt, 0.0 if greedy else temperature, max_new_tokens, seed))


@app.command()
def bench(
    json: Annotated[Path | None, Option(help="Write the measurements here too.")] = None,
    sections: Annotated[
        str | None, Option(help="Only some of: training,generation,sft,reward,ppo,workers.", metavar="NAMES")
    ] = None,
    model: Annotated[
        str | None, Option(help="Instead, loading, generating and training of this checkpoint (folder or GGUF file).")
    ] = None,
) -> None:
    """Speed of training, generation, fine-tuning, reward training and PPO, beside transformers and TRL."""
    if model is not None and sections is not None:
        raise LabError("--sections is for the lab's own models; leave it out with --model")
    if json is not None and (json.is_dir() or not json.resolve().parent.is_dir()):
        raise LabError(f"{json} is not a file name in an existing folder; give one with --json")
    from llama2lab.run.bench import SECTIONS, run_bench

    if model is not None:
        from llama2lab.run.bench_checkpoint import bench_checkpoint

        bench_checkpoint(model, json)
        return
    run_bench(json, sections=SECTIONS if sections is None else [name.strip() for name in sections.split(",")])


@app.command()
def scale(
    write: Annotated[bool, Option("--write", help="Write the tables into docs/scale.md.")] = False,
) -> None:
    """What Llama 2's sizes take of memory and time: computed, not measured."""
    from llama2lab.engine.paths import ROOT
    from llama2lab.evidence import scale as computed

    if not write:
        typer.echo("\n\n".join(computed.blocks().values()))
        return
    if not (ROOT / computed.PAGE).is_file():
        raise LabError(f"{ROOT} is no checkout of llama2lab, so there is nothing to write; leave --write out")
    typer.echo("\n".join(f"written  {path}" for path in computed.write_page(ROOT)) or "the page says this already")


@app.command()
def doctor() -> None:
    """What this machine has, and the precision that a quick measurement picks on it."""
    from llama2lab import __version__
    from llama2lab.engine.device import describe_machine

    facts = {"llama2lab": __version__, **describe_machine()}
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")
