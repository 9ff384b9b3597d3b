"""Llama 2's recipe, stage by stage, on one of two worlds: what `llama2lab run` does.

A world (town.TownWorld, real.RealWorld) says where prompts, texts and labels come from, who judges, and which rounds of
RLHF there are; all else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llama2lab.engine import distributed
from llama2lab.engine.device import SHARD, describe_machine, machine_of, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_rows
from llama2lab.engine.followers import open_run
from llama2lab.engine.seeds import check_seed
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import load_model, save_model
from llama2lab.model.own_template import own_template, template_fault
from llama2lab.model.tokenizer import load_tokenizer, train_tokenizer
from llama2lab.run.presets import Recipe
from llama2lab.run.real import RealWorld
from llama2lab.run.start_from import with_control_tokens, with_room
from llama2lab.run.town import TownWorld
from llama2lab.stages.pretrain import parameter_count, pretrain
from llama2lab.stages.rounds import Workshop, finetune

World = TownWorld | RealWorld


def run_town(
    recipe: Recipe,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    labels: Sequence[dict] = (),
    people_share: float | None = None,
    shard: str = "auto",
) -> dict[str, Any]:
    """Run the recipe on the town in folder `out`, or go on with it; returns what RUN/results.json holds.

    With `labels`, as a store gives them (`Store.labels`), the reward models of every round also train on people's
    preferences: on all of them, or on so many rows that `people_share` of them are people's.

    Started by torchrun, several processes share the work (engine/distributed.py), and, as `shard` says, the models
    that they train (device.SHARD); so in `run_real`.
    """
    _check_share(people_share)

    def world() -> TownWorld:  # of labels that come in meanwhile, all processes know the same
        return TownWorld(recipe, seed, distributed.from_first(labels), people_share)

    return _run(world, out, seed, device, precision, shard)


def run_real(
    recipe: str | Path,
    out: str | Path,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    data_dir: str | Path | None = None,
    labels: Sequence[dict] = (),
    people_share: float | None = None,
    shard: str = "auto",
) -> dict[str, Any]:
    """Run a recipe file on real text in folder `out`, or go on with it; returns what RUN/results.json holds.

    `data_dir` is the folder of local copies; without it the environment variable LLAMA2LAB_DATA, and without that
    the hub. All texts are read before the first stage, so that a mistake in them shows at once. `labels` and
    `people_share` as in `run_town`.
    """
    _check_share(people_share)

    def world() -> RealWorld:  # of labels that come in meanwhile, all processes know the same
        return RealWorld.from_files(recipe, data_dir, seed, distributed.from_first(labels), people_share)

    return _run(world, out, seed, device, precision, shard)


def _check_share(share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise LabError(f"the share of people's rows is a number from 0 to 1, not {share}")


def _run(
    make: Callable[[], World], out: str | Path, seed: int, device: str, precision: str, shard: str
) -> dict[str, Any]:
    check_seed(seed)
    if shard not in SHARD:
        raise LabError(f"shard {shard!r} is unknown; there are: {', '.join(SHARD)}")
    distributed.start(device)
    this_machine(device, precision)  # what is not on this machine is said before a folder is made
    world = make()
    with open_run(out, {**world.identity, "seed": seed}) as run:
        machine = replace(machine_of(run, device, precision), shard=shard)
        return follow(world, Workshop(run, seed, machine, None, None, world.replayed))  # type: ignore[arg-type]


def follow(world: World, shop: Workshop) -> dict[str, Any]:
    """The recipe, top to bottom."""
    world.begin(shop)
    tokenizer_stage(world, shop)
    shop.source = world.source(shop)
    base_stage(world, shop)
    for stage in world.chats:
        sft_stage(world, shop, stage)
    judge = world.judge(shop)
    for stage in world.chats:
        judge.measure(stage)
    world.rounds(shop, judge)  # type: ignore[arg-type]  # preferences, rewards, rejection sampling, PPO
    return shop.run.results(describe_machine(), world.recipe.evaluate.split)


def tokenizer_stage(world: World, shop: Workshop) -> None:
    """A tokenizer trained on the world's texts; or the checkpoint's, with the chat's control tokens."""

    def build(folder: Path) -> dict[str, Any]:
        texts, sample = world.tokenizer_texts()
        more = world.counts
        if world.start:
            tokenizer = load_tokenizer(world.start)
            if fault := template_fault(tokenizer):
                shop.run.say(f"{world.start}: {fault}; Llama 2's chat format takes its place")
            tokenizer, added = with_control_tokens(tokenizer)
            format_of = "Llama 2" if own_template(tokenizer) is None else "the checkpoint"
            more = {**more, "added_control_tokens": added, "chat_format_of": format_of}
        else:
            tokenizer = train_tokenizer(texts, world.recipe.pretrain.model["vocab_size"], chat_template=CHAT_TEMPLATE)
        tokenizer.save_pretrained(folder)
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        return {
            "vocab_size": len(tokenizer),
            "bytes_per_token": sum(len(text.encode()) for text in sample) / max(1, sum(map(len, ids))),
            **more,
        }

    shop.tokenizer = load_tokenizer(shop.run.stage("tokenizer", build, world.tokenizer_settings))


def base_stage(world: World, shop: Workshop) -> None:
    """Pretraining on the world's documents; or somebody's checkpoint, with room for the control tokens."""

    def build(folder: Path) -> dict[str, Any]:
        if world.start:
            before = load_tokenizer(world.start)
            if shop.trained_layers and len(shop.tokenizer) > len(before):
                raise LabError(
                    f"trained_layers is {shop.trained_layers}, but {world.start_from} must first learn "
                    f"{len(shop.tokenizer) - len(before)} control tokens; train all layers, or take a checkpoint that "
                    "knows a chat format"
                )
            model = with_room(load_model(world.start), before, shop.tokenizer, shop.seed)
            metrics = {
                "started_from": world.start_from,
                "parameters": parameter_count(model),
                "control_tokens_added": len(shop.tokenizer) - len(before),
            }
        else:
            model, metrics = pretrain(
                world.documents(), shop.tokenizer, world.recipe.pretrain, shop.seed, shop.machine, folder
            )
        save_model(folder, model, shop.tokenizer)
        return metrics | world.measure_base(shop, model.eval())

    shop.run.stage("base", build, [*world.base_settings, shop.machine.precision], ["tokenizer"])


def sft_stage(world: World, shop: Workshop, stage: str) -> None:
    """Supervised fine-tuning of the base model on the world's demonstrations."""

    def build(folder: Path) -> dict[str, Any]:
        rows = world.demonstrations(stage, shop.tokenizer)
        write_rows(folder / "rows.jsonl", rows)
        return finetune(shop, "base", rows, world.chats[stage], folder, stage) | world.sft_counts

    shop.run.stage(stage, build, [asdict(world.chats[stage]), *world.sft_settings[stage]], ["base"])
