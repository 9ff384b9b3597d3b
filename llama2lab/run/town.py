"""The recipe on the town: the town writes the texts, simulated annotators give the labels, the oracle judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from llama2lab.engine.files import digest
from llama2lab.model.network import Llama
from llama2lab.run.judge import OracleJudge
from llama2lab.run.people import annotations_stage
from llama2lab.run.presets import Recipe
from llama2lab.stages import evaluate
from llama2lab.stages.pretrain import bits_per_byte
from llama2lab.stages.rounds import Workshop, reward_stage, rlhf
from llama2lab.town.annotators import annotators_of, label_pairs
from llama2lab.town.corpus import fact_probes, heldout_documents, pretraining_corpus
from llama2lab.town.demonstrations import demonstrations
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import TownSource
from llama2lab.town.town import load_town


class TownWorld:
    """Everything of a run that depends on the town."""

    def __init__(self, recipe: Recipe, seed: int, labels: Sequence[dict] = (), people_share: float | None = None):
        self.recipe, self.seed, self.labels, self.people_share = recipe, seed, labels, people_share
        self.town, self.annotators, words = load_town(), annotators_of(recipe.vendors), recipe.pretrain.words
        # what the corpus is made from: the town's files and the code that writes it
        corpus = digest([self.town.digest, pretraining_corpus(self.town, 20_000, seed)])
        self.identity = {"preset": recipe.preset}
        self.start_from = self.start = ""  # no checkpoint: the base model is pretrained
        self.counts, self.sft_counts = dict[str, Any](), dict[str, Any]()
        self.tokenizer_settings = [recipe.pretrain.model["vocab_size"], min(words, 400_000), corpus]
        self.base_settings = [asdict(recipe.pretrain), corpus]
        self.chats = {"sft": recipe.sft, "sft-noisy": recipe.noisy}  # the noisy one is there to be compared
        self.taught = {
            "sft": demonstrations(self.town, recipe.sft.examples, seed, "clean"),
            "sft-noisy": demonstrations(self.town, recipe.noisy.examples, seed, "noisy"),
        }
        self.sft_settings = {stage: [digest(rows)] for stage, rows in self.taught.items()}
        self.replayed = pretraining_corpus(self.town, min(words, 200_000), seed + 1)  # in fine-tuning

    def begin(self, shop: Workshop) -> None:
        if self.labels:  # before anything is trained: a store without a usable label is said at once
            annotations_stage(
                shop, self.labels, self.annotators, Oracle(self.town), self.town, self.recipe.evaluate.split
            )
            shop.people_share = self.people_share

    def tokenizer_texts(self) -> tuple[list[str], list[str]]:
        """To train on, and to count bytes on."""
        texts = pretraining_corpus(self.town, min(self.recipe.pretrain.words, 400_000), self.seed)
        return texts, texts[:500]

    def source(self, shop: Workshop) -> TownSource:
        return TownSource(self.town)

    def documents(self) -> list[str]:
        return pretraining_corpus(self.town, self.recipe.pretrain.words, self.seed)

    def measure_base(self, shop: Workshop, model: Llama) -> dict[str, Any]:
        """Bits per byte of held-out documents, and the facts that the base model completes rightly."""
        heldout, probes = heldout_documents(self.town, self.seed, 200), fact_probes(self.town)
        return {
            "bits_per_byte": bits_per_byte(model, shop.tokenizer, heldout, shop.machine),
            "known_facts": evaluate.known_facts(model, shop.tokenizer, probes, shop.machine.precision),
        }

    def demonstrations(self, stage: str, tokenizer: Any) -> list[dict]:
        return self.taught[stage]

    def judge(self, shop: Workshop) -> OracleJudge:
        return OracleJudge(shop, self.town, self.recipe.evaluate)

    def rounds(self, shop: Workshop, judge: OracleJudge) -> None:
        """The report's five; and the report's plain reward head, beside ours."""
        settings = self.recipe.rlhf
        rlhf(
            shop,
            settings,
            lambda pairs, kind: label_pairs(self.annotators, judge.oracle, pairs, kind, self.seed),
            list(self.recipe.vendors),
            judge.measure,
            judge.prompts,
        )
        if self.recipe.compare_heads:
            plain = reward_stage(
                shop, replace(settings.helpfulness, head="linear", earlier=None), 5, "helpfulness", "-linear"
            )
            judge.measure(plain)
            judge.compare_heads(["reward-helpfulness-v5", plain], "sft", 5)
