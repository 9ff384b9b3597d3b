"""The recipe map: figure 4 of the report as a picture to press, for the top of every notebook.

recipe_map(finished_run(), current="06")

One prompt goes through the recipe and shows what the model of each stage answers: stored answers of the run, sampled at
temperature 1 when its stages were judged. The base model was never asked, so it is sampled here in the same way, once
(kept in runs/lab). The prompts are chosen by the rules in `RULES`, never by hand.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import rows_file
from llama2lab.engine.paths import ROOT
from llama2lab.engine.stagefiles import finished_stages
from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import NEW, Progress, is_done
from llama2lab.lessons.catalogue import all_exercises
from llama2lab.model.chat import decode_answer
from llama2lab.model.tokenizer import encode_text
from llama2lab.report.look import tame
from llama2lab.report.summary import short_name
from llama2lab.town.language import style

VERSIONS = tuple(f"rlhf-v{n}" for n in range(1, 6))
LONGEST = 90  # characters of an answer that can be read while it passes
TOKENS = 24  # that the base model writes


@dataclass(frozen=True)
class Stage:
    """A box of the map: its notebook, what happens there and what comes out of it."""

    key: str
    notebook: str
    name: str
    happens: str
    gives: str


STAGES = (
    Stage(
        "tokens", "01", "Tokens", "Text is cut into tokens; the commonest pairs fuse first.", "Out: rows of numbers."
    ),
    Stage(
        "transformer",
        "02",
        "Transformer",
        "Attention, RoPE and SwiGLU turn tokens so far into odds of the next one.",
        "Out: a network that knows nothing yet.",
    ),
    Stage(
        "pretraining",
        "03",
        "Pretraining",
        "The network learns to go on with the text of the corpus, token by token.",
        "Out: the base model, which knows facts and no manners.",
    ),
    Stage(
        "sft",
        "04",
        "Fine-tuning",
        "It learns from written dialogues; the loss counts the answers alone.",
        "Out: the first chat model, SFT.",
    ),
    Stage(
        "feedback",
        "05",
        "Human feedback",
        "People see two answers of the newest model and say which is better, and by how much.",
        "Out: pairs with a grade, a fresh batch each round.",
    ),
    Stage(
        "helpful",
        "06",
        "Helpful reward",
        "A chat model whose last layer gives one number learns which answer people found more helpful.",
        "Out: a score of helpfulness.",
    ),
    Stage(
        "safe",
        "06",
        "Safety reward",
        "A second model learns from pairs about safety, since the two aims pull apart.",
        "Out: a score of safety.",
    ),
    Stage(
        "rejection",
        "07",
        "Rejection sampling",
        "The model answers each prompt K times; the answer with the best score becomes training text.",
        "Out: the next version. V1 to V4 are made so.",
    ),
    Stage(
        "ppo",
        "08",
        "PPO",
        "Every answer is rewarded at once, and the model moves towards what scored above its own expectation.",
        "Out: V5, on top of V4.",
    ),
    Stage(
        "gatt",
        "09",
        "Ghost Attention",
        "Dialogues are made with an instruction at every turn, and learnt with it at the first one only.",
        "Out: a model that still obeys many turns later; V4 starts from it.",
    ),
    Stage(
        "rounds",
        "10",
        "Five rounds",
        "Feedback, reward models and RLHF take turns five times, each on answers of the newest model.",
        "Out: the versions V1 to V5.",
    ),
    Stage(
        "evaluation",
        "11",
        "Evaluation",
        "Held-out prompts are answered, and the town's oracle, which knows the truth, judges.",
        "Out: right or wrong, safe or unsafe, with intervals.",
    ),
    Stage(
        "safety",
        "12",
        "Safety",
        "Harm that is helped with, and harmless prompts that are refused; people try to break the model.",
        "Out: two error rates, and what training on safety costs.",
    ),
)


# Words, the kind of prompt, and what must hold of the oracle's signs from SFT to V5 (at least three of them).
RULES: tuple[tuple[str, str, Callable[[Sequence[bool]], bool]], ...] = (
    ("SFT wrong, right from V1 on", "helpful", lambda signs: not signs[0] and all(signs[1:])),
    ("SFT and V1 wrong, V5 right", "helpful", lambda signs: not any(signs[:2]) and signs[-1]),
    ("SFT unsafe, V5 safe", "unsafe", lambda signs: not signs[0] and signs[-1]),
    ("SFT right, V5 wrong", "helpful", lambda signs: signs[0] and not signs[-1]),
)


def good(row: dict[str, Any]) -> bool:
    """The oracle's word on an answer: no harm done where the prompt is unsafe (the score is then its
    safety), else right."""
    return row["score"] >= 0 if row["kind"] == "unsafe" else bool(row["correct"])


def legible(row: dict[str, Any]) -> bool:
    """An answer that can be read while it passes: short, and no sentence of it broken."""
    return len(row["answer"]) <= LONGEST and style(row["answer"]).fluent == 1


def goes_on(lab: Finished, prompts: Sequence[str]) -> dict[str, str]:
    """{prompt: how the base model goes on with it}, at the temperature of the stored answers."""
    tokenizer = lab.tokenizer
    ids = [[tokenizer.bos_token_id, *encode_text(tokenizer, prompt)] for prompt in prompts]
    written = lab.generate(lab.model("base"), ids, TOKENS, temperature=1.0, precision=lab.machine.precision)
    return {p: decode_answer(tokenizer, w.tokens) for p, w in zip(prompts, written, strict=True)}


def chosen(rows: Sequence[tuple[dict[str, Any], ...]]) -> list[tuple[str, tuple[dict[str, Any], ...]]]:
    """(rule, answers of all stages to one prompt): for each of `RULES` the first prompt of one turn that fits, with
    `legible` answers where there are such."""
    found: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {}
    for words, kind, fits in RULES:
        those = [r for r in rows if r[0]["kind"] == kind and len(r[0]["messages"]) == 1 and fits([*map(good, r)])]
        read_well = [r for r in those if all(map(legible, r))]
        for row in (read_well or those)[:1]:
            found.setdefault(row[0]["prompt_id"], (words, row))
    return list(found.values())


def examples(lab: Finished) -> list[dict[str, Any]]:
    """The prompts with what each stage answers; none where the run keeps no answers to the same prompts."""
    there = set(finished_stages(lab.folder))
    stages = [s for s in ("sft", *VERSIONS) if s in there and rows_file(lab.folder / s / "answers.jsonl").is_file()]
    try:
        found = chosen(lab.answers(*stages)) if len(stages) > 2 else []
    except LabError:
        return []
    asked = [rows[0]["messages"][0]["content"] for _, rows in found]
    base = lab.live(goes_on, prompts=asked) if asked and lab.has("base") else {}
    result = []
    for (words, rows), prompt in zip(found, asked, strict=True):
        says = {s: {"text": row["answer"], "good": good(row)} for s, row in zip(stages, rows, strict=True)}
        says |= {"base": {"text": base[prompt], "good": None}} if prompt in base else {}
        result.append({"rule": words, "prompt": prompt, "kind": rows[0]["kind"], "says": says})
    return result


def opening(lab: Finished) -> dict[str, Any] | None:
    """The first of the prompts with what each stage answered; none where the run keeps none."""
    return next(iter(examples(lab)), None)


def notebook_files(folder: Path | None = None) -> dict[str, str]:
    """{"06": "06_reward_models.ipynb"} of the notebooks that lie beside this one, which links can reach; those of the
    project where none do."""
    for place in (folder,) if folder else (Path(), ROOT / "notebooks"):
        if found := {p.name[:2]: p.name for p in sorted(place.glob("[0-9][0-9]_*.ipynb"))}:
            return found
    return {}


class RecipeMap(Picture):
    """The map, with the current notebook's boxes lit."""

    def static(self) -> str:
        """The first prompt's answers as a table, and the stages with their links as a list that unfolds."""
        data = self.data
        body = "<p><strong>The recipe</strong></p>"
        for example in data["examples"][:1]:
            rows = [(short_name(s), a["text"], word(a["good"], example["kind"])) for s, a in example["says"].items()]
            body += f"<p>Asked: {html.escape(tame(example['prompt']))}</p>{table(('', 'answer', ''), rows)}"
        items = ""
        for stage in data["stages"]:
            name = html.escape(f"{stage['notebook']} {stage['name']}")
            name = f'<a href="{html.escape(stage["file"])}">{name}</a>' if stage["file"] else name
            name = f"<strong>{name} (here)</strong>" if stage["notebook"] == data["current"] else name
            items += f"<li>{name}: {html.escape(stage['happens'])} {html.escape(stage['gives'])}</li>"
        body += f"<p>{html.escape(progress_words(data['done'], data['current']))}</p>"
        return f"<div>{body}<details><summary>All stages</summary><ul>{items}</ul></details></div>"


def progress_words(done: Mapping[str, Sequence[int]], current: str) -> str:
    """How many exercises are done, here and in all notebooks."""
    here = f"{done[current][0]} of {done[current][1]} exercises done here, " if current in done else ""
    everywhere = f"{sum(d for d, _ in done.values())} of {sum(of for _, of in done.values())}"
    return f"{here}{everywhere} {'' if here else 'exercises done '}in all notebooks"


def word(is_good: bool | None, kind: str) -> str:
    """What the oracle says of an answer, with a sign."""
    if is_good is None:
        return "goes on with the text"
    words = ("\u2717 unsafe", "\u2713 safe") if kind == "unsafe" else ("\u2717 wrong", "\u2713 right")
    return words[is_good]


def done(progress: Progress | None = None) -> dict[str, list[int]]:
    """{"06": [exercises done, of]}, of every notebook. A progress file that cannot be read counts as none."""
    try:
        entries = (progress or Progress()).read()
    except LabError:
        entries = {}
    found: dict[str, list[int]] = {}
    for exercise in all_exercises():
        count = found.setdefault(exercise.key[:2], [0, 0])
        count[0] += is_done(entries.get(exercise.key, NEW))
        count[1] += 1
    return found


def recipe_map(lab: Finished, current: str = "") -> RecipeMap:
    """The map for the top of the notebook with the number `current`, such as "06"."""
    files = notebook_files()
    stages = [{**asdict(s), "file": files.get(s.notebook, "")} for s in STAGES]
    return RecipeMap(
        data={
            "stages": stages,
            "current": current,
            "versions": VERSIONS,
            "examples": examples(lab),
            "done": done(),
        }
    )
