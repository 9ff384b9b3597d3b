"""Pairs of answers for people to judge, from a run on the town: what `llama2lab labels collect` puts into a store.

As in the report (section 3.2.1), the two answers come from two models at different temperatures. Only training prompts
are asked: what people say of a held-out prompt may train nothing. Gold pairs come with them (gold.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2lab.engine.device import this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import Kind
from llama2lab.engine.stagefiles import read_marker, stage_folder
from llama2lab.run.gold import gold_pairs
from llama2lab.run.talk import load, pick_stage
from llama2lab.stages.preferences import Variant, sample_pairs
from llama2lab.town.prompts import KINDS, draw_prompts
from llama2lab.town.town import load_town


def pairs_of_run(
    run: Path, n: int, kind: Kind = "helpfulness", gold: int = 0, stages: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """About `n` pairs (equal answers are left out) and `gold` gold pairs, for `annotation.add_pairs`.

    Args:
        stages: the two models; by default the last one of the run and SFT.

    Raises:
        LabError: no run on the town, a stage that cannot talk, an unknown kind.
    """
    if kind not in ("helpfulness", "safety"):
        raise LabError(f"kind {kind!r} is unknown; use helpfulness or safety")
    stage_folder(run, "sft")
    if read_marker(run).get("preset") not in ("mini", "smoke"):
        raise LabError(f"{run} is no run on the town; pairs of other runs can be added with: llama2lab labels add")
    names = [pick_stage(run, name) for name in stages or (None, "sft")]
    town = load_town()
    asked = draw_prompts(town, "rlhf", n, seed, kinds=KINDS[:1] if kind == "helpfulness" else KINDS[1:])
    names = list(dict.fromkeys(names))
    models = [load(run / name) for name in names]
    if not all(tokenizer.get_vocab() == models[0][1].get_vocab() for _, tokenizer in models):
        raise LabError(
            f"{run}: {' and '.join(names)} have different tokenizers, so they are not of one run; choose another stage"
        )
    variants = [Variant(model, name) for name, (model, _) in zip(names, models, strict=True)]
    machine = this_machine()
    named: list[tuple[str, str]] = []
    pairs = sample_pairs(variants, models[0][1], asked, seed=seed, precision=machine.precision, names=named)
    rows = [
        {"kind": kind, "prompt": list(p.messages), "answers": [a, b], "prompt_id": p.id, "models": list(models_of)}
        for (p, a, b), models_of in zip(pairs, named, strict=True)
    ]
    return rows + gold_pairs(town, gold, kind, seed + 1)
