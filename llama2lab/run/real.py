"""The recipe on real text: people wrote the texts and gave the labels, reward models judge. What
`llama2lab run --recipe data/recipes/real.yaml` does.

The pairs are divided by dialogue (realsplits.part_of): the reward models learn from "train", the judges from "judge",
and the policies are judged on the prompts of "test". With more rounds than one, the models that label fresh answers
learn from a part of their own, "annotator", so that no policy is judged by whom it was made to please.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llama2lab.engine.files import digest
from llama2lab.engine.scale import KINDS
from llama2lab.model.checkpoint import checkpoint_digest, parameters_of, shape_of
from llama2lab.model.generate import generate
from llama2lab.model.network import Llama
from llama2lab.run import start_from
from llama2lab.run.facts import fact_pairs, read_facts
from llama2lab.run.judge import RewardJudge
from llama2lab.run.memory import check_fits
from llama2lab.run.people import annotations_on_texts
from llama2lab.run.presets import RealRecipe, load_real_recipe
from llama2lab.run.realdata import data_folder
from llama2lab.run.realsplits import (
    PairPrompts,
    Texts,
    fit_demonstrations,
    load_texts,
    margins_amiss,
    pairs_stage,
)
from llama2lab.run.simulated import RewardAnnotator
from llama2lab.stages.pretrain import bits_per_byte
from llama2lab.stages.reward import HEADS
from llama2lab.stages.rounds import (
    RlhfSettings,
    Workshop,
    ppo_stage,
    preferences_stage,
    rejection_stage,
    reward_stage,
)


class RealWorld:
    """Everything of a run that depends on the texts."""

    def __init__(
        self,
        recipe: RealRecipe,
        seed: int,
        texts: Texts,
        name: str = "real",
        folder: Path | None = None,
        labels: Sequence[dict] = (),
        people_share: float | None = None,
    ):
        self.recipe, self.seed, self.texts = recipe, seed, texts
        self.labels, self.people_share = labels, people_share
        self.identity = {"preset": "real", "recipe": name}
        self.start_from = recipe.start_from
        self.start = start_from.find_checkpoint(recipe.start_from, folder) if recipe.start_from else ""
        start = checkpoint_digest(self.start) if self.start else ""
        self.counts = {"data": {role: tally.metrics() for role, tally in texts.tallies.items()}}
        self.sft_counts = {"read": len(texts.demonstrations)}
        self.tokenizer_settings = [start, recipe.pretrain.model.get("vocab_size"), texts.fingerprint]
        self.base_settings: list[Any] = [start, asdict(recipe.pretrain), asdict(recipe.evaluate)]
        self.base_settings += [recipe.trained_layers] if recipe.trained_layers else []
        self.chats = {"sft": recipe.sft}
        self.sft_settings = {"sft": [recipe.data.sft.max_tokens, recipe.data.sft.max_answer_tokens]}
        self.replayed = texts.stories  # in fine-tuning
        self.bits: dict[str, float] = {}  # a byte of held-out text, of each stage that read it

    @classmethod
    def from_files(
        cls,
        recipe_path: str | Path,
        data_dir: str | Path | None,
        seed: int,
        labels: Sequence[dict] = (),
        people_share: float | None = None,
    ) -> RealWorld:
        """The recipe of a file and its texts; LabError as `load_real_recipe` and `load_role`."""
        folder = data_folder(data_dir)
        recipe = load_real_recipe(recipe_path, folder)
        texts = load_texts(recipe, folder, seed)
        return cls(recipe, seed, texts, Path(recipe_path).stem, folder, labels, people_share)

    def begin(self, shop: Workshop) -> None:
        shop.trained_layers = self.recipe.trained_layers
        if self.start:
            for line in start_from.hasty(self.recipe, parameters_of(self.start, self.recipe.trained_layers)):
                shop.run.say(f"WARNING: {line}")
            shape = shape_of(self.start)
            share = self.recipe.trained_layers / shape.n_layers or 1.0
            shop.run.say(check_fits(self.recipe, shape, shop.machine, share))
        for line in margins_amiss(self.recipe, self.texts):
            shop.run.say(f"WARNING: {line}")
        if self.labels:
            annotations_on_texts(shop, self.labels, self.texts.is_held_out)
            shop.people_share = self.people_share

    def tokenizer_texts(self) -> tuple[list[str], list[str]]:
        """To train on, the training texts of all roles, and to count bytes on."""
        pairs = [row for rows in self.texts.pairs.values() for row in rows if row["part"] == "train"]
        said = [m for row in self.texts.demonstrations for m in row["messages"]]
        said += [m for row in pairs for m in [*row["prompt"], *row["chosen"], *row["rejected"]]]
        texts = [*self.texts.stories, *(m["content"] for m in said)]
        return texts, texts[:: max(1, len(texts) // 500)]

    def source(self, shop: Workshop) -> PairPrompts:
        pairs_stage(shop, self.recipe, self.texts)
        return PairPrompts(shop.run, shop.tokenizer, self.recipe.prompt_tokens)

    def documents(self) -> list[str]:
        return self.texts.stories

    def measure_base(self, shop: Workshop, model: Llama) -> dict[str, Any]:
        """Bits per byte of held-out stories, and a few that the model writes: for people to read."""
        s, heldout, context = self.recipe.evaluate, self.texts.heldout_stories, model.config.context
        bits = bits_per_byte(model, shop.tokenizer, heldout, shop.machine, min(512, context)) if heldout else None
        bos, eos, pad = (getattr(shop.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        written = generate(
            model,
            [[bos]] * s.sample_stories,
            min(s.story_tokens, context - 1),
            temperature=0.8,
            top_p=0.95,
            eos_id=eos,
            pad_id=pad,
            seed=1,
            precision=shop.machine.precision,
        )
        stories = [str(shop.tokenizer.decode(g.tokens, skip_special_tokens=True)).strip() for g in written]
        return {"bits_per_byte": bits, "stories": stories} if heldout else {"stories": stories}

    def demonstrations(self, stage: str, tokenizer: Any) -> list[dict]:
        found, source = self.texts.demonstrations, self.recipe.data.sft
        return fit_demonstrations(tokenizer, found, source, self.recipe.sft.examples, self.seed)

    def judge(self, shop: Workshop) -> RewardJudge:
        self.check_reading(shop, "base")
        self.check_reading(shop, "sft", "base", "sft.optim")
        judges = {kind: reward_stage(shop, getattr(self.recipe, kind), 1, kind, part="judge") for kind in KINDS}
        return RewardJudge(shop, self.recipe.evaluate, self.texts.probes, judges, fact_pairs(read_facts()))

    def rounds(self, shop: Workshop, judge: RewardJudge) -> None:
        """Round 1 is rejection sampling by people's preferences, each further one asks the annotator models, and the
        last of several is PPO; after a single one, PPO goes on by the same reward models."""
        recipe, last = self.recipe, self.recipe.rounds
        if last > 3:
            shop.run.say("Ghost Attention is left out: real pairs have no dialogues to teach it by")
        settings = RlhfSettings(rejection=recipe.rejection, ppo=recipe.ppo)
        previous, latest = "sft", "sft"
        for version in range(1, last + 1):
            if version > 1:
                self.fresh_preferences(shop, judge, version, (latest, previous))
            for kind in KINDS:
                judge.measure(reward_stage(shop, getattr(recipe, kind), version, kind))
            if version == 1 and recipe.compare_heads:
                self.other_head(shop, judge)
            previous, start = latest, latest
            if version == 1 or version < last:
                latest = rejection_stage(shop, settings, version, latest, dialogues=False)
                self.check_reading(shop, latest, "sft", "rejection.optim")
                judge.measure(latest)
                start = latest
            if version == last:
                latest = ppo_stage(shop, settings.ppo, start, f"rlhf-v{max(2, last)}", last)
                self.check_reading(shop, latest, start, "ppo.optim")
                judge.measure(latest)

    def fresh_preferences(self, shop: Workshop, judge: RewardJudge, version: int, models: Sequence[str]) -> None:
        """A round's preferences between fresh answers of the latest models, by the annotator's reward models."""
        stages = {kind: reward_stage(shop, getattr(self.recipe, kind), 1, kind, part="annotator") for kind in KINDS}
        for stage in stages.values():
            judge.measure(stage)
        annotator = RewardAnnotator(shop, stages)
        asked = [p for p in judge.prompts if p.skill == "real"]
        settings = self.recipe.preferences
        preferences_stage(shop, settings, version, models, annotator.label, annotator.description, asked)

    def other_head(self, shop: Workshop, judge: RewardJudge) -> None:
        """A helpfulness model with the head that the recipe's has not, on the same pairs."""
        ours = self.recipe.helpfulness
        head = next(h for h in HEADS if h != ours.head)
        other = replace(ours, head=head, earlier=None)
        judge.measure(reward_stage(shop, other, 1, "helpfulness", f"-{head}"))

    def check_reading(self, shop: Workshop, stage: str, start: str = "", name: str = "") -> None:
        """How well a stage still reads held-out text, which fine-tuning must not cost. Where it reads so much worse
        than `start`, the one that it was trained from at the rates of the setting `name`, that is said, and stands in
        its figures."""

        def build() -> dict[str, Any]:
            model, texts = shop.model(stage), self.texts.read_again
            figure = bits_per_byte(model, shop.tokenizer, texts, shop.machine, min(256, model.config.context))
            warning = ""
            if before := self.bits.get(start):
                optim = start_from.setting(self.recipe, name)
                warning = start_from.worsened(stage, name, optim, before, figure["mean"])
            return {"heldout_bits_per_byte": figure, "warnings": [warning] if warning else []}

        found = shop.run.note(stage, build, ["reading", digest(self.texts.read_again), start_from.WORSE])
        for warning in found["warnings"]:
            shop.run.say(f"WARNING: {warning}")
        self.bits[stage] = found["heldout_bits_per_byte"]["mean"]
