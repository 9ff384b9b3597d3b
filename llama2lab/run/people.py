"""People's labels in a run: rows for the reward models, and how far people and, on the town, annotators agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama2lab.annotation.agreement.coefficients import Label, agreement_table
from llama2lab.annotation.agreement.simulate import by_messages, messages_key, simulated_labels
from llama2lab.annotation.rows import Resolved, fingerprint, people_against_simulated, resolve
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, write_rows
from llama2lab.engine.scale import KINDS, Kind
from llama2lab.stages.rounds import Workshop
from llama2lab.town.annotators import Annotator
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import every_prompt
from llama2lab.town.town import Town


def usable(people: Sequence[Label], is_held_out: Callable[[Label], bool]) -> tuple[list[Label], dict[Kind, Resolved]]:
    """The labels that may train, and their rows by kind; LabError where there is none."""
    trained = [x for x in people if not is_held_out(x)]
    resolved = {kind: resolve(trained, kind) for kind in KINDS}
    if not any(r.rows for r in resolved.values()):
        there = f"{len(people)} labels by people, of which {len(people) - len(trained)} are on held-out prompts"
        cure = "label pairs with: llama2lab annotate"
        raise LabError(f"the annotation store gives no training row: {there}; {cure}")
    return trained, resolved


def write_resolved(
    folder: Path, people: Sequence[Label], trained: Sequence[Label], resolved: dict[Kind, Resolved]
) -> dict[str, Any]:
    """The rows as files, and what became of the labels."""
    for kind in KINDS:
        write_rows(folder / f"{kind}.jsonl", resolved[kind].rows)
    return {
        **{kind: resolved[kind].counts for kind in KINDS},
        "held_out": len(people) - len(trained),
        "annotators": len({x["annotator"] for x in people}),
        "agreement": agreement_table(people),
    }


def annotations_on_texts(shop: Workshop, labels: Sequence[Label], is_held_out: Callable[[list[dict]], bool]) -> None:
    """People's labels as rows for the reward models of every round of a run on real text, without those on held-out
    prompts. How far they agree with simulated annotators cannot be said: nobody there knows the truth."""
    people = [x for x in labels if x["annotator_kind"] == "person"]
    trained, resolved = usable(people, lambda x: is_held_out(x["prompt"]))
    shop.people = "annotations"
    kept = [digest(fingerprint(people)), digest(fingerprint(trained))]
    shop.run.stage(shop.people, lambda folder: write_resolved(folder, people, trained, resolved), kept)


def annotations_stage(
    shop: Workshop,
    labels: Sequence[Label],
    annotators: Sequence[Annotator],
    oracle: Oracle,
    town: Town,
    held_out: str = "test",
) -> None:
    """People's labels as rows for the reward models of every round, and how far people and simulated annotators agree
    on the same pairs.

    Labels on prompts that the evaluation uses, the split `held_out`, are left out: no model may learn from them.
    Agreement with simulated annotators can be had only where the oracle knows the prompt.
    """
    people = [x for x in labels if x["annotator_kind"] == "person"]
    kept_away = by_messages(every_prompt(town, held_out))
    trained, resolved = usable(people, lambda x: messages_key(x["prompt"]) in kept_away)

    def build(folder: Path) -> dict[str, Any]:
        known = by_messages(every_prompt(town, "train") + every_prompt(town, "dev"))
        against = {}
        for kind in KINDS:
            mine = [x for x in trained if x["kind"] == kind]
            keys = [(x, messages_key(x["prompt"])) for x in mine]
            items = {x["item_id"]: (known[key], *x["answers"]) for x, key in keys if key in known}
            simulated = simulated_labels(annotators, oracle, items, kind, shop.seed)
            against[kind] = people_against_simulated(mine, simulated)
        return write_resolved(folder, people, trained, resolved) | {"people_against_simulated": against}

    shop.people = "annotations"
    settings = [digest(fingerprint(people)), held_out, [asdict(a) for a in annotators], town.digest, shop.seed]
    shop.run.stage(shop.people, build, settings)
