"""Supervised fine-tuning in miniature (Llama 2, section 3.1): what notebook 04 trains live, and what it measures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.lab.finished import Finished
from llama2lab.lab.live import Fact, Plan, Training, asked_about, fact_of, kept, mean_loss
from llama2lab.lab.seeds import less, over_seeds
from llama2lab.model.chat import decode_answer, encode_chat, encode_chats
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import encode_text
from llama2lab.run.presets import preset
from llama2lab.stages.evaluate import answer_prompts, judge_all
from llama2lab.stages.pretrain import fit_packed
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.demonstrations import demonstrations
from llama2lab.town.items import Prompt
from llama2lab.town.truth import truth_of

# As in the report: two epochs of all weights at one rate, without replay, and without learning the format first.
SETTINGS = replace(preset("mini").sft, epochs=2.0, replay=0.0, format_examples=0, optim=Optim(lr=1e-3, warmup=0.05))


def base_copy(lab: Finished) -> Llama:
    """The base model to train: `lab.model` gives everybody the same object."""
    return copy.deepcopy(lab.model("base"))


def short_sft(lab: Finished, learning_rate: float = 1e-3, quality: str = "clean", examples: int = 600) -> Plan:
    """Fine-tuning of the base model on so many examples, without replay: about 15 seconds on two cores."""
    folder = lab.work_folder("short_sft", short_sft, (learning_rate, quality, examples))

    def make() -> Training:
        model, tokenizer, (prompt, fact) = base_copy(lab), lab.tokenizer, watched_question(lab)
        rows = demonstrations(lab.town, examples, 0, "clean" if quality == "clean" else "noisy")
        unseen = demonstrations(lab.town, 60, 1, "clean", split="dev")
        data = pack(encode_chats(tokenizer, [row["messages"] for row in unseen]), 512, 0, tokenizer.pad_token_id)
        settings = replace(SETTINGS, optim=replace(SETTINGS.optim, lr=learning_rate))
        return Training(
            model,
            kept(folder, lambda: sft(model, tokenizer, rows, settings, 0, lab.machine, folder)),
            settings.batch_tokens,
            lambda: mean_loss(model, data, lab.machine),
            lambda: look_at(lab, model, prompt, fact),
        )

    return Plan(folder, make)


def look_at(lab: Finished, model: Llama, prompt: Prompt, fact: Fact) -> dict[str, Any]:
    """What a model answers, greedily, and what it gives to the fact once the right answer has begun."""
    answer = sample_answers(model, lab.tokenizer, [prompt.messages], temperature=0.0, max_new_tokens=32)[0][0]
    return {"text": answer, "fact": asked_about(model, lab.tokenizer, fact, lab.machine)}


def watched_question(lab: Finished) -> tuple[Prompt, Fact]:
    """The first held-out question about a single fact whose right answer ends with a value, and that value in it."""
    for prompt in lab.prompts(helpful=60, seed=5):
        truth = truth_of(lab.town, prompt.content)
        sentence, end = truth.answers[0], f" {truth.bare}."
        if prompt.skill == "facts" and sentence.endswith(end):
            start, _ = encode_chat(lab.tokenizer, prompt.messages, add_generation_prompt=True)
            before = sentence.removesuffix(end)
            return prompt, fact_of(lab.tokenizer, start, f" {before}", truth.bare, f"{prompt.question} {before}")
    raise LabError("none of 60 held-out questions is about a fact whose answer ends with its value; ask more of them")


def watched(lab: Finished) -> dict[str, Any]:
    """What each look at `short_sft` asks, and what the run's SFT model says to it."""
    prompt, fact = watched_question(lab)
    goal = look_at(lab, lab.model("sft"), prompt, fact)
    return {
        "asked": "The model answers a held-out question, greedily:",
        "prompt": prompt.question,
        "fact": {"asked": fact.asked, "value": fact.value, "goal": goal, "goal_by": "the run's SFT model"},
    }


def base_and_sft(lab: Finished, prompts: Sequence[Prompt]) -> list[dict[str, str]]:
    """What the base model and the SFT model answer, greedily: the base model in the chat format, which it has never
    seen, and as a page of questions goes on, which it has; the SFT model in the chat format."""
    tokenizer, base = lab.tokenizer, lab.model("base")
    pages = [[tokenizer.bos_token_id, *encode_text(tokenizer, f"Question: {p.question} Answer:")] for p in prompts]
    page = lab.generate(base, pages, 20, temperature=0.0)
    chats = [
        sample_answers(model, tokenizer, [p.messages for p in prompts], temperature=0.0, max_new_tokens=32)
        for model in (base, lab.model("sft"))
    ]
    return [
        {"question": p.question, "base, as a chat": a, "base, as a page": decode_answer(tokenizer, b.tokens), "SFT": c}
        for p, (a,), b, (c,) in zip(prompts, chats[0], page, chats[1], strict=True)
    ]


def eos_length(lab: Finished, examples: int = 300, prompts: int = 100, longest: int = 96) -> dict[str, Any]:
    """Two short fine-tunings of the base model, with and without loss on the </s> that ends an answer: how many tokens
    the answers to held-out prompts have, at most `longest`, and how many end. About 8 seconds on two cores."""
    tokenizer, machine = lab.tokenizer, lab.machine
    rows = [row["messages"] for row in demonstrations(lab.town, examples, 3)]
    asked = encode_chats(
        tokenizer, [p.messages for p in lab.prompts(helpful=prompts, seed=8)], add_generation_prompt=True
    )
    result: dict[str, Any] = {"longest": longest}
    for name, unlearnt in (("with", -1), ("without", tokenizer.eos_token_id)):
        encoded = [
            (ids, [int(m and token != unlearnt) for token, m in zip(ids, mask, strict=True)])
            for ids, mask in encode_chats(tokenizer, rows)
        ]
        model = base_copy(lab)
        data = pack(encoded, SETTINGS.seq_len, 0, tokenizer.pad_token_id)
        fit_packed(model, data, SETTINGS.epochs, SETTINGS.batch_tokens, SETTINGS.optim, 0, machine)
        written = lab.generate(model, [ids for ids, _ in asked], longest, temperature=1.0, precision=machine.precision)
        result[name] = {
            "tokens": stats.mean([len(g.tokens) for g in written]),
            "finished": stats.rate([g.finished for g in written]),
            "lengths": [len(g.tokens) for g in written],
            "example": decode_answer(tokenizer, written[0].tokens),
        }
    return result


BUDGETS = (("clean", 300), ("clean", 1000), ("noisy", 300), ("noisy", 1000), ("noisy", 3000))


def quality_budgets(
    lab: Finished,
    budgets: Sequence[tuple[str, int]] = BUDGETS,
    seeds: Sequence[int] = (0, 1),
    prompts: int = 200,
    settings: SFTSettings = SETTINGS,
) -> dict[str, Any]:
    """Claim 4: quality is all you need.

    The base model fine-tuned on few clean and on few and many noisy demonstrations, two epochs each, so that more
    examples are also more steps. True helpfulness and correctness by the oracle on held-out prompts at temperature 1.
    Intervals are over prompts' contents; seeds, which draw the examples too, are in `each`, one mean a training: an
    interval over two of them would mean nothing. About 100 seconds on two cores."""
    asked = lab.prompts(helpful=prompts, seed=9)
    contents = [p.content for p in asked] * len(seeds)
    rows: list[dict[str, Any]] = []
    scores: dict[str, list[list[float]]] = {}  # by budget: a list for each seed, a score for each prompt
    for quality, examples in budgets:
        scores[f"{examples:,} {quality}"] = each = []
        correct: list[list[bool]] = []
        steps = 0
        for seed in seeds:
            model = base_copy(lab)
            data = demonstrations(lab.town, examples, seed, "clean" if quality == "clean" else "noisy")
            steps = sft(model, lab.tokenizer, data, settings, seed, lab.machine)["steps"]
            answers = answer_prompts(model, lab.tokenizer, asked, 1.0, seed, lab.machine.precision)
            verdicts = judge_all(lab.oracle, asked, answers)
            each.append([v.helpfulness for v in verdicts])
            correct.append([v.correct for v in verdicts])
        figures = {
            "correct": over_seeds(stats.rate, correct, contents),
            "helpfulness": over_seeds(stats.mean, each, contents),
        }
        rows.append({"quality": quality, "examples": examples, "steps": steps, **figures})

    names = list(scores)
    equal = [(a, b) for a in names for b in names if a.endswith("clean") and b == a.replace("clean", "noisy")]
    few = next(name for name in names if name.endswith("clean"))
    many = next(name for name in reversed(names) if name.endswith("noisy"))
    return {
        "rows": rows,
        "claims": {
            f"{a} less {b}: helpfulness": over_seeds(stats.mean, less(scores[a], scores[b]), contents)
            for a, b in [*equal, (few, many)]
        },
    }


def by_examples(result: dict[str, Any], figure: str = "helpfulness") -> dict[str, dict[str, dict[str, Any]]]:
    """A figure of `quality_budgets` by number of examples, for each quality: what `shown.show` draws."""
    return {
        quality: {str(row["examples"]): row[figure] for row in result["rows"] if row["quality"] == quality}
        for quality in ("clean", "noisy")
    }


EXPERIMENTS = (quality_budgets, eos_length)
