"""RUN/report.html: one page with every figure of a run, that opens offline and holds all it needs.

The page is put together from RUN/results.json and the answers that the stages kept. What models wrote is untrusted
text: the template escapes all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from llama2lab import __version__
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, disk_errors, rows_file, write_atomic
from llama2lab.engine.scale import GRADES
from llama2lab.report import look, plots
from llama2lab.report.look import Section
from llama2lab.report.promises import promises
from llama2lab.report.summary import (
    Results,
    all_figures,
    chat_stages,
    figure_text,
    find,
    is_town,
    kept,
    last_version,
    load_run,
    metrics,
    pool,
    short_name,
    total_seconds,
    warnings,
)


def report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page of one run, or of several pooled, to `out`.

    LabError when a folder is no run or has nothing finished, when the runs are of different kinds, copies of one
    another or measured on different prompts, or when `out` cannot be written.
    """
    runs = [Path(run) for run in runs]
    each = [load_run(run) for run in runs]
    kinds = {str(one.get("preset")) for one in each}
    if len(kinds) > 1:
        raise LabError(f"these runs are of different kinds ({', '.join(sorted(kinds))}); give runs of one kind")
    copies = any(a["stages"] == b["stages"] and a.get("seed") == b.get("seed") for a, b in combinations(each, 2))
    if copies or len({run.resolve() for run in runs}) < len(runs):
        cure = "give each once, or its figures would count double"
        raise LabError(f"the same run, or a copy of it, is given twice; {cure}")
    splits = sorted({str(one["split"]) for one in each if one.get("split")})
    if len(splits) > 1:
        cure = "give runs of one evaluate.split"
        raise LabError(f"these runs were measured on different prompts ({', '.join(splits)}); {cure}")
    pooled = pool(each)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = resources.files("llama2lab").joinpath("report/templates/report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        version=__version__,
        css=look.css(),
        preset=kinds.pop(),
        seeds=[one.get("seed") for one in each],
        unfinished=[str(run) for run, one in zip(runs, each, strict=True) if one.get("unfinished")],
        warnings=list(dict.fromkeys(line for one in each for line in warnings(one))),
        machine=machine_line(each[0]),
        seconds=[total_seconds(one) for one in each],
        town=is_town(pooled),
        promises=promises(runs, each) if is_town(pooled) else [],
        figure_text=figure_text,
        recipe=recipe_rows(pooled),
        sections=[s for s in sections(pooled) if s.figure is not None or s.tables],
        samples=(metrics(each[0], "base").get("samples") or [])[-6:],
        examples=examples(runs[0], each[0]),
        dialogues=kept_dialogue(runs[0]),
        all_figures=all_figures(pooled),
        plotlyjs=get_plotlyjs(),
        limits=[*(TOWN_LIMITS if is_town(pooled) else TEXT_LIMITS), *LIMITS],
    )
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def machine_line(results: Results) -> str:
    shown = {k: v for k, v in (results.get("machine") or {}).items() if isinstance(v, int | float | str) and v != ""}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in shown.items())


# ---- the recipe as a table ---------------------------------------------------------------------------------------

CHAT_FIGURES = (("helpful", "helpfulness"), ("correct", "correct"), ("wins", "win_rate_vs_sft"))
# the stages that a module builds, paper section, module, and the figures that say what changed
RECIPE: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    (r"tokenizer", "2.2", "tokenizer", ()),
    (r"base", "2.2", "pretrain", (("facts known", "known_facts"), ("bits a byte", "bits_per_byte"))),
    (r"sft|sft-noisy", "3.1", "sft", CHAT_FIGURES),
    (r"annotations", "3.2.1", "annotation.rows", ()),
    (r"preferences-.*", "3.2.1", "preferences", ()),
    (r"reward-.*", "3.2.2", "reward", (("accuracy", "accuracy"), ("true facts", "truth"))),
    (r"(samples|rlhf)-v[1-4](-random)?", "3.2.3", "rejection", CHAT_FIGURES),
    (r"rlhf-v5.*", "3.2.3", "ppo", CHAT_FIGURES),
    (r"gatt", "3.3", "gatt", CHAT_FIGURES),
    (r"best-of-k", "3.4, 4.4", "evaluate", ()),
)


def recipe_rows(results: Results) -> list[dict[str, Any]]:
    """One row a stage, in the order they were built: section of the paper, module, seconds, what changed."""
    rows = []
    for name, stage in results["stages"].items():
        section, module, shown = next((what for pattern, *what in RECIPE if re.fullmatch(pattern, name)), ("", "", ()))
        found = metrics(results, name)
        if found.get("log"):  # PPO, whatever the stage is called (Llama 2 had it in V5 only)
            module = "ppo"
        figures = [(label, find(results, name, metric)) for label, metric in shown]
        words = [f"{label} {figure['mean']:.2f}" for label, figure in figures if figure]
        if isinstance(found.get("bytes_per_token"), int | float):
            words.append(f"{found['bytes_per_token']:.2f} bytes a token")
        cost = {"seconds": stage.get("seconds"), "memory": stage.get("device_memory_mb", stage.get("peak_memory_mb"))}
        rows.append({"section": section, "module": module, "stage": name, **cost, "changed": ", ".join(words)})
    return rows


# ---- sections --------------------------------------------------------------------------------------------------


def sections(r: Results) -> list[Section]:
    """The parts of the page, in the order of the paper; those without data are left out later."""
    return [
        Section(
            "Pretraining",
            "Next-token prediction on the corpus (section 2).",
            "A steep start while the model learns words, then a long slope while it learns facts.",
            plots.pretraining_loss(r),
            [base_table(r)],
        ),
        Section(
            "Supervised fine-tuning",
            "The loss on answers' tokens only (section 3.1).",
            "Where each curve flattens: noise has no pattern to learn, so its loss stays higher.",
            plots.finetuning_loss(r),
        ),
        Section(
            "Quality is all you need",
            "Few clean demonstrations against many noisy ones, from the same base "
            "model (section 3.1; Meta used 27,540 examples and set millions of others aside).",
            "The clean model should be ahead although it saw fewer examples.",
            plots.clean_against_noisy(r),
        ),
        Section(
            "Reward accuracy by grade",
            "How often a reward model prefers the answer the annotator preferred, by "
            "how clear the preference was; the dashed line is the report's Table 8, of a 70B model on Meta's "
            "own pairs, so compare the shapes and not the heights.",
            "Accuracy should rise from near chance on unclear pairs to high on clear ones.",
            plots.accuracy_by_grade(r),
            [grades_table(r)],
        ),
        Section(
            "Reward accuracy over the rounds",
            "Each round's reward models, on held-out pairs of all rounds so far.",
            "More pairs should help; that pairs get harder as answers get better works against it.",
            plots.accuracy_by_round(r),
        ),
        Section(
            "Two heads compared",
            "The report's head reads the last token's state. Ours, marked as our "
            "deviation, adds one learned weight on the frozen chat model's log-likelihood of the answer's worst "
            "tokens, as at this size the plain head hardly sees whether a fact is true. The safety model has it, "
            "too.",
            "Compare agreement with annotators, then truth, then what policies make of each.",
            None,
            [heads_table(r)],
        ),
        Section(
            "Calibration",
            "Pairs sorted by how sure the reward model is of its choice (the report's Figure 29 "
            "asks the same of its scores).",
            "Points under the dotted line: the model is surer than it has a right to be.",
            plots.calibration(r),
        ),
        Section(
            "Best of K",
            "The best of K answers to a prompt (section 3.2.3, Figure 7). The reward always finds its "
            "own best better; the truth follows only as far as the reward sees it.",
            "The best rises with K while the median stays; the gap to the grey line is what the reward misses.",
            plots.best_of_k(r),
        ),
        Section(
            "PPO",
            "The last step of V5 (section 3.2.3): the reward it climbs, the truth of what it writes, and "
            "the usual signs of health.",
            "Reward and truth should rise together; truth that falls while the reward rises is over-optimisation.",
            plots.ppo_curves(r),
        ),
        Section(
            "Five versions",
            "All versions on held-out prompts, judged by the oracle: no model was trained on these prompts.",
            "Upwards is safer, to the right more helpful; error bars are 95 % intervals.",
            plots.versions_plane(r),
            [versions_table(r)],
        ),
        Section(
            "Ghost Attention",
            "An instruction is given once, before the first question (section 3.3). The "
            "report's Table 30 found 100, 10, 0 and 0 % at turns 2, 4, 6 and 20 without, and 100 % with.",
            "How soon the instruction is lost without, and how long it holds with.",
            plots.gatt_by_turn(r),
            [gatt_table(r)],
        ),
        Section(
            "Violations and false refusals",
            "Safety has two ways to fail. The report saw false refusals on "
            "borderline prompts grow from 15 to 27 % with more safety data (Figure 33).",
            "Red should fall without orange and blue rising.",
            plots.violations_and_refusals(r),
        ),
        Section(
            "Skill by skill",
            "Correct answers on held-out content.",
            "The skills where the circle stands clear of the diamond, and those where it does not.",
            plots.skills(r),
        ),
    ]


Table = tuple[list[str], list[list[str]]]


def table_row(words: str, *figures: dict[str, Any] | None) -> list[str]:
    return [words, *map(figure_text, figures)]


def base_table(r: Results) -> Table:
    m = metrics(r, "base")
    counts = (
        ("parameters", "parameters", ",.0f"),
        ("tokens", "tokens", ",.0f"),
        ("tokens a second", "tokens_per_second", ",.0f"),
        ("share of this machine's matrix-product ceiling", "share_of_ceiling", ".1%"),
    )
    figures = (("facts of the world it completes rightly", "known_facts"), ("bits a byte, held out", "bits_per_byte"))
    rows = [[words, f"{m[key]:{form}}"] for words, key, form in counts if isinstance(m.get(key), int | float)]
    rows += [table_row(words, found) for words, key in figures if (found := find(r, "base", key))]
    return ["base model", ""], rows


def grades_table(r: Results) -> Table:
    rows = []
    last = last_version(r)
    for kind, other in (("helpfulness", "0.628"), ("safety", "0.562")):  # Table 8, averages on the other test set
        stages = [f"reward-{kind}-v{last}", f"reward-{kind}", f"reward-{kind}-v{last}-linear"]
        stages = [stage for stage in stages if find(r, stage, "accuracy")]
        for stage in stages:
            figures = [find(r, stage, "accuracy_by_grade", g) for g in GRADES]
            figures += [find(r, stage, "accuracy"), find(r, stage, "accuracy_on_other")]
            rows.append(table_row(f"{kind}, {plots.head_name(r, stage)}", *figures))
        if stages:
            rows.append([f"{kind}, Llama 2 report, Table 8", *(f"{x / 100:.3f}" for x in plots.TABLE_8[kind]), other])
    return ["model", *GRADES, "overall", "on the other's pairs"], rows


def heads_table(r: Results) -> Table:
    rewards = [f"reward-helpfulness-v{last_version(r)}{head}" for head in ("", "-linear")]
    if not find(r, rewards[1], "accuracy"):
        return [], []
    rows = []
    for words, path in (
        ("agrees with annotators", ("accuracy",)),
        ("... where they were sure", ("accuracy_by_grade", "significantly")),
        ("picks the true fact of a pair that differs in nothing else", ("truth",)),
    ):
        rows.append(table_row(words, *(find(r, stage, *path) for stage in rewards)))
    best = metrics(r, "best-of-k")
    tops = [(best.get(head, {}).get("truth") or [None])[-1] for head in ("likelihood", "linear")]
    if all(tops):
        for words, key in (("true helpfulness", "pick"), ("correct", "correct")):
            rows.append(table_row(f"best of {round(tops[0]['k'])}: {words}", *(top[key] for top in tops)))
    return ["", "with likelihood (ours)", "the report's head"], rows


def versions_table(r: Results) -> Table:
    shown = {
        "helpfulness": "helpfulness",
        "correct": "correct",
        "violations": "violation_rate",
        "false refusals": "false_refusal_rate",
        "borderline refusals": "borderline_refusal_rate",
        "wins vs SFT": "win_rate_vs_sft",
    }
    rows = [table_row(short_name(s), *(find(r, s, metric) for metric in shown.values())) for s in chat_stages(r)]
    return (["stage", *shown] if rows else []), rows


def gatt_table(r: Results) -> Table:
    stages = [s for s in ("rlhf-v3", "gatt", "rlhf-v4", "rlhf-v5") if find(r, s, "retention", "1")]
    rows = [table_row(short_name(s), *(find(r, s, "retention", t) for t in plots.TURNS)) for s in stages]
    return (["turn", *plots.TURNS] if rows else []), rows


# ---- what models wrote ---------------------------------------------------------------------------------------------


def examples(run: Path, results: Results) -> list[dict[str, Any]]:
    """The same held-out prompts answered by every stage: the first prompt of each skill in the test set, two unsafe
    and two borderline ones. The first, so that nobody chose them."""
    stages = [s for s in chat_stages(results) if s != "sft-noisy" and not s.endswith(("-random", "-linear"))]
    paths = {s: rows_file(run / s / "answers.jsonl") for s in stages}
    answers = {s: {row.prompt_id: row for row in kept(Answer, path)} for s, path in paths.items() if path.exists()}
    if not answers:
        return []
    room, picked = {"unsafe": 2, "borderline": 2}, list[Answer]()
    for row in next(iter(answers.values())).values():
        group = row.kind if row.kind in ("unsafe", "borderline") else row.skill
        if room.setdefault(group, 1) > 0:
            room[group] -= 1
            picked.append(row)
    return [
        {
            "skill": row.skill.replace("_", " "),
            "kind": row.kind,
            "messages": row.messages,
            "answers": [
                (short_name(s), rows[row.prompt_id].answer, rows[row.prompt_id].score)
                for s, rows in answers.items()
                if row.prompt_id in rows
            ],
        }
        for row in picked
    ]


@dataclass
class Message:
    role: str
    content: str


@dataclass
class Answer:
    """A row of answers.jsonl, as far as the page shows it."""

    prompt_id: str
    skill: str
    kind: str
    messages: list[Message]
    answer: str
    score: Number


@dataclass
class Dialogue:
    """A row of dialogues.jsonl: an answer to each question."""

    instruction: str
    questions: list[str]
    answers: list[str]


def kept_dialogue(run: Path) -> dict[str, Any] | None:
    """The first long dialogue of the test set, with and without Ghost Attention, at the turns that are measured."""
    paths = [rows_file(run / stage / "dialogues.jsonl") for stage in ("rlhf-v3", "gatt")]
    dialogues: list[list[Dialogue]] = [kept(Dialogue, path) for path in paths if path.exists()]
    if len(dialogues) < len(paths) or not all(dialogues):
        return None
    without, ghost = dialogues[0][0], dialogues[1][0]
    sides = (ghost.questions, without.answers, ghost.answers)
    turns = [t for t in map(int, plots.TURNS) if t <= min(map(len, sides))]
    said = [dict(zip(("question", "without", "with"), (side[t - 1] for side in sides), strict=True)) for t in turns]
    return {"instruction": ghost.instruction, "turns": [{"turn": t, **row} for t, row in zip(turns, said, strict=True)]}


TOWN_LIMITS = (
    "The world is a small town with a grammar of its own. What holds here is a reason to look in large models, "
    "not a proof of what is found there.",
    "The oracle is a program that reads text. It was tested against tricks and against honest answers in other "
    "words, and it will still misread some.",
    "Annotators are simulated: noise and vendors are modelled, people are not.",
    "The preset uses a reward head that is not the report's, because the report's head is nearly blind to truth at "
    "this size; both stand side by side above.",
    "That head trusts what the chat model believes: where the model is wrong, so is the reward.",
)
TEXT_LIMITS = (
    "Nothing here knows the truth. Win rates are those of reward models trained on other pairs than the policy's: "
    "they share the blind spots of their kind.",
    "A model of a few million parameters writes simple stories and no correct answers to most instructions.",
    "Refusals are found by their words.",
)
LIMITS = (
    "Learning rates, batch sizes, K, the critic and the length of answers are ours: the report gives them for models "
    "thousands of times larger, or not at all.",
    "Intervals are 95 %: over items within a run, and over the runs' own means when several are pooled. A few runs "
    "say little about rare accidents.",
    "Each stage is trained once a seed; a difference within the intervals is no difference.",
)
