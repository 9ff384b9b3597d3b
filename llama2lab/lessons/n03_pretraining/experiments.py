"""Pretraining in miniature (Llama 2, section 2): what notebook 03 trains live, and what it measures."""

from __future__ import annotations

import copy
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch

from llama2lab.engine import stats
from llama2lab.engine.device import matmul_ceiling
from llama2lab.engine.optim import Optim, make_optimizer
from llama2lab.engine.packing import epoch_batches
from llama2lab.lab.checking import pieces_of
from llama2lab.lab.finished import Finished
from llama2lab.lab.live import Fact, Plan, Training, asked_about, fact_of, first_token, kept, mean_loss, packed_texts
from llama2lab.lessons.n03_pretraining.exercises import SCHEDULE, TRAINING_STEP
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import encode_text
from llama2lab.report.summary import difference
from llama2lab.stages.evaluate import known_facts
from llama2lab.stages.pretrain import bits_per_byte, fit_packed, training_flops_per_token
from llama2lab.town.corpus import fact_probes, heldout_documents, pretraining_corpus
from llama2lab.town.documents import Pen, letter, note, sheet
from llama2lab.town.town import Town

BATCH = 2048  # tokens a step, as in the preset
SMALL = 1024  # where there are few tokens: more steps of them
WORDS = 140_000  # of the corpus, for the training in view


def new_model(lab: Finished, **shape: Any) -> Llama:
    """An untrained model of the shape of the run's base model, or as `shape` changes it."""
    return Llama(ModelConfig(**{**asdict(lab.model("base").config), **shape}), seed=0).to(lab.machine.device)


def pretraining(lab: Finished, learning_rate: float = 3e-3, warmup: float = 0.05, words: int = WORDS) -> Plan:
    """A model as large as the run's, from nothing, on a small part of the corpus: about 20 seconds on two cores."""
    folder = lab.work_folder("pretraining", pretraining, (learning_rate, warmup, words))

    def make() -> Training:
        model, fact = new_model(lab), fact_of(lab.tokenizer, [lab.tokenizer.bos_token_id], *stated_most(lab, words))
        data = packed_texts(lab, pretraining_corpus(lab.town, words, 7))
        unseen = packed_texts(lab, heldout_documents(lab.town, 7, 20))
        optim = Optim(learning_rate, warmup)

        def train() -> list[dict[str, float]]:
            return fit_packed(model, data, 1.0, SMALL, optim, 0, lab.machine, folder, "pretraining")

        return Training(
            model,
            kept(folder, train),
            SMALL,
            lambda: mean_loss(model, unseen, lab.machine),
            lambda: look_at(lab, model, fact),
        )

    return Plan(folder, make)


def look_at(lab: Finished, model: Llama, fact: Fact) -> dict[str, Any]:
    """How a base model goes on where the fact is due, always with the same random numbers, and what it gives to the
    fact."""
    (written,) = lab.generate(model, [list(fact.ids)], 24, temperature=0.7, seed=0, precision=lab.machine.precision)
    said = str(lab.tokenizer.decode(written.tokens, skip_special_tokens=True)).strip()
    return {"text": said, "fact": asked_about(model, lab.tokenizer, fact, lab.machine)}


@lru_cache(maxsize=4)
def stated_most(lab: Finished, words: int) -> tuple[str, str]:
    """(text before the value, value) of the fact about the town's people that the texts of `pretraining` state most
    often in so many words (the first of equals), of those whose value begins with a token of its own."""
    texts = "\n".join(pretraining_corpus(lab.town, words, 7))

    def own(value: str, values: Sequence[str]) -> bool:
        return [first_token(lab.tokenizer, v) for v in values].count(first_token(lab.tokenizer, value)) == 1

    probes = [(text, value) for text, value, values in people_probes(lab.town) if own(value, values)]
    return max(probes, key=lambda probe: texts.count(f"{probe[0]} {probe[1]}."))


def watched(lab: Finished, words: int = WORDS) -> dict[str, Any]:
    """What each look at `pretraining` asks, and what the run's base model says to it. Some two seconds."""
    text, value = stated_most(lab, words)
    fact = fact_of(lab.tokenizer, [lab.tokenizer.bos_token_id], text, value)
    goal = look_at(lab, lab.model("base"), fact)
    return {
        "asked": "The model goes on, always with the same random numbers (temperature 0.7):",
        "prompt": text,
        "fact": {"asked": text, "value": value, "goal": goal, "goal_by": "the run's base model"},
    }


def trained_by_hand(
    lab: Finished, steps: int = 30, peak: float = 3e-3, **pieces: Callable
) -> tuple[list[dict[str, float]], dict[str, str]]:
    """A new model takes some steps by the student's `training_step` at the rates of the student's `schedule`, the
    library's where they are not right yet: {step, loss, rate} of each, and which is whose. About 5 seconds."""
    functions, owner = pieces_of((SCHEDULE, TRAINING_STEP), pieces)
    model = new_model(lab)
    optimizer = make_optimizer(model, Optim(peak))
    data = packed_texts(lab, pretraining_corpus(lab.town, 20_000, 3))
    rows_of = epoch_batches(len(data), SMALL // data.tokens.shape[1], 0)
    log = []
    for step in range(steps):
        rows = rows_of(step)
        batch = [part[rows].to(lab.machine.device) for part in (data.tokens, data.segments, data.loss_mask)]
        rate = float(functions["schedule"](step, steps, peak, steps // 5, 0.1))
        loss = torch.as_tensor(functions["training_step"](model, optimizer, batch, rate)).detach()
        log.append({"step": step + 1, "loss": float(loss), "rate": rate})
    return log, owner


def untrained_loss(lab: Finished) -> dict[str, float]:
    """The loss of an untrained model on held-out text, in nats a token, and the size of its vocabulary."""
    model = new_model(lab)
    return {
        "loss": mean_loss(model, packed_texts(lab, heldout_documents(lab.town, 3, 40)), lab.machine),
        "vocabulary": model.config.vocab_size,
    }


def ceiling(lab: Finished) -> dict[str, float]:
    """Operations a second of large matrix products on this machine, in the precision that trains: measured beside the
    live training and kept with it, since a share of another hour's ceiling says nothing."""
    dtype = torch.bfloat16 if lab.machine.precision == "bf16" else torch.float32
    return {"flops": matmul_ceiling(lab.machine.device, dtype)}


def speeds(lab: Finished, here: float | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows): tokens a second of a training `here` (None: not yet made) and of the full run, and which share of
    its machine's ceiling that is."""
    base, told = lab.metrics("base"), ("press Start above, then run this cell", "")
    if here:
        flops = training_flops_per_token(lab.model("base").config, 256) * here
        told = (f"{here:,.0f}", f"{flops / lab.live(ceiling)['flops']:.0%}")
    full = (f"{base['tokens_per_second']:,}", f"{base['share_of_ceiling']:.0%}")
    header = ("", "tokens a second", "share of the machine's ceiling")
    return header, [("the training above, here", *told), ("the full run, on its machine", *full)]


def warmup_or_not(lab: Finished, learning_rate: float = 0.1, steps: int = 30) -> dict[str, Any]:
    """The first steps of two runs on the same batches, at a rate far above the preset's: one climbs to it over most of
    the steps, one begins with it, and both then keep it. Loss and norm of the gradient by step. About 6 seconds on two
    cores."""
    data = packed_texts(lab, pretraining_corpus(lab.town, 40_000, 3))
    epochs = steps * BATCH / data.tokens.numel()
    result = {}
    for name, warmup in (("with warm-up", 0.6), ("without", 0.0)):
        log = fit_packed(new_model(lab), data, epochs, BATCH, Optim(learning_rate, warmup, final=1.0), 0, lab.machine)
        result[name] = [
            {"step": i, "loss": row["loss"], "lr": row["lr"], "grad_norm": row["grad_norm"]}
            for i, row in enumerate(log, 1)
        ]
    return result


def compression(lab: Finished, documents: int = 60) -> dict[str, Any]:
    """Bits a byte of held-out text: of an untrained model, of zlib (which is given all documents at once), and of the
    base model. A language model is a compressor, and bits a byte compare what has different vocabularies."""
    texts = heldout_documents(lab.town, 11, documents)
    raw = "\n".join(texts).encode()
    packed = 8 * len(zlib.compress(raw, 9)) / len(raw)
    return {
        "untrained": bits_per_byte(new_model(lab), lab.tokenizer, texts, lab.machine),
        "zlib": {"mean": packed, "low": packed, "high": packed, "n": documents},
        "base": bits_per_byte(lab.model("base"), lab.tokenizer, texts, lab.machine),
    }


# ---- claim 3: more and better data -----------------------------------------------------------------------------------


def named_values(town: Town) -> dict[str, list[str]]:
    """What the town's people can have, by attribute: {"home": ["Mill Lane", ...], ...}; no names, no numbers."""
    return {name: list(a.values) for name, a in town.attributes.items() if isinstance(a.values, list)}


def corrupted(town: Town, texts: Sequence[str], share: float, seed: int = 0) -> list[str]:
    """The texts with such a share of all values they name (streets, pets, jobs ...) replaced by others of their kind:
    as fluent as before, and wrong."""
    rng = random.Random(f"corrupted {seed}")
    others = {value: [v for v in values if v != value] for values in named_values(town).values() for value in values}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(others, key=len, reverse=True))) + r")\b")
    return [pattern.sub(lambda m: rng.choice(others[m[0]]) if rng.random() < share else m[0], text) for text in texts]


def moved(town: Town) -> Town:
    """The town some years later: everybody has another home, pet, job ...; each value goes round among the people."""
    names, people = list(town.people), {}
    for i, (who, person) in enumerate(town.people.items()):
        facts = dict(person.facts)
        for k, what in enumerate(named_values(town)):
            facts[what] = town.people[names[(i + 7 + k) % len(names)]].facts[what]
        people[who] = replace(person, facts=facts)
    return replace(town, people=people)


def pages_on_people(town: Town, words: int, seed: int) -> list[str]:
    """Documents on the town's people alone."""
    pen, texts, written = Pen(town, random.Random(f"people {seed}")), [], 0
    while written < words:
        texts.append(pen.rng.choice((sheet, note, letter))(pen))
        written += len(texts[-1].split())
    return texts


def people_probes(town: Town) -> list[tuple[str, str, tuple[str, ...]]]:
    """Those of the fact probes that `corrupted` can spoil."""
    known = {value for values in named_values(town).values() for value in values}
    return [p for p in fact_probes(town) if p[1] in known]


def data_size_and_quality(
    lab: Finished, words: Sequence[int] = (15_000, 30_000, 60_000, 120_000), noisy: int = 120_000, share: float = 0.5
) -> dict[str, Any]:
    """Claim 3: more and better pretraining data is most of the gain.

    A model from nothing knows hardly a fact in its first half million tokens, so this goes on from the base model:
    pages on the people of its town some years later, when all of them live elsewhere and do something else. More and
    more clean pages, and the most with a share of the values replaced by wrong ones. Loss on clean pages that were not
    read, the new facts known, and the claims as differences (as if the facts were drawn anew for each model, which is
    careful). One seed; the interval is over facts. About 40 seconds on two cores."""
    town = moved(lab.town)
    unseen = packed_texts(lab, pages_on_people(town, 2_000, 5))
    probes = people_probes(town)
    rows: list[dict[str, Any]] = []
    for corpus, n in [("clean", n) for n in (0, *words)] + [("noisy", noisy)]:
        texts = pages_on_people(town, n, 21)
        data = packed_texts(lab, texts if corpus == "clean" else corrupted(town, texts, share))
        model = copy.deepcopy(lab.model("base"))
        log = fit_packed(model, data, 1.0, SMALL, Optim(1e-3), 0, lab.machine) if texts else []
        loss = mean_loss(model, unseen, lab.machine)
        known = known_facts(model, lab.tokenizer, probes, lab.machine.precision)
        tokens = int(sum(row["tokens"] for row in log))
        rows.append({"corpus": corpus, "tokens": tokens, "steps": len(log), "loss": loss, "known": known})
    fewest, most, worse = (rows[i]["known"] for i in (1, -2, -1))
    claims = {
        "more tokens, the most less the fewest: share of facts known": difference(most, fewest),
        "better data, clean less noisy at as many tokens: share of facts known": difference(most, worse),
    }
    return {"rows": rows, "share": share, "claims": claims}


def known_by_tokens(result: dict[str, Any]) -> dict[str, dict[str, stats.Figure]]:
    """Facts known by tokens seen, for each corpus of `data_size_and_quality`: what `shown.show` draws."""
    return {
        corpus: {f"{row['tokens'] / 1e6:.2f}": row["known"] for row in result["rows"] if row["corpus"] == corpus}
        for corpus in ("clean", "noisy")
    }


# ---- claim 26: base benchmarks are easily moved by the prompt --------------------------------------------------------


def forms(town: Town, attribute: str, who: str) -> dict[str, str]:
    """One question about one person, asked of a base model in ten forms."""
    a, person = town.attributes[attribute], town.people[who]

    def before_value(template: str, of: str = who) -> str:
        return template.split("{value}")[0].format(**town.people[of].forms).rstrip()

    plain, question = before_value(a.statements[0]), a.questions[0].format(**person.forms)
    shots = [x for x in town.people if x != who][:3]
    stated = " ".join(
        a.statements[0].format(**town.people[x].forms, value=town.people[x].facts[attribute]) for x in shots
    )
    asked = "".join(
        f"Question: {a.questions[0].format(**town.people[x].forms)} "
        f"Answer: {a.statements[0].format(**town.people[x].forms, value=town.people[x].facts[attribute])} "
        for x in shots
    )
    options = ", ".join(sorted(town.values(attribute))[:4])
    return {
        "as the corpus says it": plain,
        "other words of the corpus": before_value(a.statements[1]),
        "a blank at the end": plain + " ",
        "in small letters": plain.lower(),
        "IN CAPITALS": plain.upper(),
        "Question: ... Answer:": f"Question: {question} Answer:",
        "the question alone": question,
        "three facts before it": f"{stated} {plain}",
        "three questions before it": f"{asked}Question: {question} Answer:",
        "with a list to choose from": f"Choose from {options}. {plain}",
    }


def prompt_forms(lab: Finished, people: int = 0) -> dict[str, Any]:
    """Claim 26: base benchmarks are easily moved by the prompt.

    The same facts asked of the base model in several forms, greedily. Right is an answer in which the first value of
    that kind is the true one. The same facts stand in every form, so the figures differ by less chance than their
    intervals say. About 5 seconds on two cores."""
    town, tokenizer = lab.town, lab.tokenizer
    values = named_values(town)
    chosen = list(town.people)[: people or None]
    items = [(attribute, who) for attribute in values for who in chosen]
    asked = [forms(town, *item) for item in items]
    names = list(asked[0])
    flat = [text for one in asked for text in one.values()]
    asked_ids = [[tokenizer.bos_token_id, *encode_text(tokenizer, text)] for text in flat]
    written = lab.generate(lab.model("base"), asked_ids, 14, temperature=0.0, precision=lab.machine.precision)
    said = [str(tokenizer.decode(g.tokens, skip_special_tokens=True)) for g in written]
    result: dict[str, Any] = {}
    for number, name in enumerate(names):
        answers = said[number :: len(names)]
        right = [
            first_named(text, values[attribute]) == town.people[who].facts[attribute]
            for text, (attribute, who) in zip(answers, items, strict=True)
        ]
        result[name] = {"right": stats.rate(right), "example": flat[number], "answer": answers[0]}
    return result


def first_named(text: str, values: Sequence[str]) -> str:
    """The first of the values that the text names, whatever its letters' size; "" if it names none."""
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(values, key=len, reverse=True))) + r")\b", re.I)
    found = pattern.search(text)
    return next(v for v in values if v.lower() == found[0].lower()) if found else ""


EXPERIMENTS = (data_size_and_quality, prompt_forms)
