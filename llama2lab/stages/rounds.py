"""RLHF-V1 to V5 (Llama 2, section 3.2.3 and Figure 11): the rounds, as the report describes them.

Every round collects fresh preferences from the latest models and trains both reward models on all preferences so far,
or goes on from the last round's (`RewardSettings.earlier`). V1 to V4 are rejection sampling fine-tuning on the best
answers of all rounds so far: V1 to V3 from the SFT model again, V4 from the model that Ghost Attention has taught after
V3. V5 is PPO on top of V4's rejection sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, Field
from transformers import PreTrainedTokenizerFast

from llama2lab.engine.answers import evenly
from llama2lab.engine.device import Machine
from llama2lab.engine.files import digest, read_rows, write_rows
from llama2lab.engine.runs import Run
from llama2lab.engine.scale import KINDS, Kind
from llama2lab.engine.settings import Count, Share, Temperature, checked
from llama2lab.model.checkpoint import load_model, save_model
from llama2lab.model.lower import Lower, train_upper
from llama2lab.model.network import Llama
from llama2lab.stages import gate, gatt, ppo, preferences, rejection, reward
from llama2lab.stages.gatt import GattSettings
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.preferences import Annotate, Variant
from llama2lab.stages.rejection import RejectionSettings
from llama2lab.stages.reward import RewardModel, RewardSettings, mix_people
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.items import Instruction, Prompt

ROUNDS = (1, 2, 3, 4, 5)
TEST_PROMPTS = 640  # held-out prompts of each kind that every round's pairs are tested on; equal answers fall away


def _one_a_round(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(values) != len(ROUNDS):
        raise ValueError(f"must have {len(ROUNDS)} values, one for each round")
    return values


ByRound = Annotated[tuple[Count, ...], AfterValidator(_one_a_round)]


@checked
@dataclass(frozen=True)
class PreferenceSettings:
    """How many prompts annotators judge in each round. The report's batches grow; here the first is the largest, or
    the first reward models would have learnt too little. Of safety prompts there are more than the policy's training
    needs, since two safe answers hardly differ in worth (docs/trials.md)."""

    helpfulness: ByRound = (2500, 1300, 1300, 1300, 1300)
    safety: ByRound = (1200, 900, 900, 900, 900)
    borderline_share: Share = 0.25  # of the helpfulness prompts; and of the safety prompts
    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=20)] = (0.8, 1.0, 1.2)


class Source(Protocol):
    """Where prompts and dialogues come from: the town, or a user's files."""

    def prompts(self, kind: str, n: int, seed: int, split: str = "train") -> list[Prompt]: ...

    def dialogues(
        self,
        n: int,
        turns: int,
        seed: int,
        split: str = "train",
    ) -> tuple[list[list[str]], list[Instruction]]: ...


@dataclass
class Workshop:
    """What every round needs: the run's folder, the machine, the tokenizer and where prompts come from."""

    run: Run
    seed: int
    machine: Machine
    tokenizer: PreTrainedTokenizerFast
    source: Source
    documents: Sequence[str] = ()  # pretraining texts, to be replayed in fine-tuning
    people: str = ""  # the stage that holds people's preference rows; "" when there are none
    people_share: float | None = None  # of the rows that reward models train on; None: all rows there are
    trained_layers: int = 0  # the upper ones that are fine-tuned; 0: the whole model

    @cached_property
    def lower(self) -> Lower | None:
        """The part of the base model that all models of the run share and that is never trained, if there is one."""
        if not self.trained_layers:
            return None
        base = load_model(self.run.folder("base")).to(self.machine.device)
        return Lower(base, base.config.n_layers - self.trained_layers, self.tokenizer.pad_token_id)

    def model(self, stage: str) -> Llama:
        model = load_model(self.run.folder(stage)).to(self.machine.device)
        return train_upper(model, self.lower) if self.lower else model

    def frozen(self, stage: str) -> Llama:
        """A finished stage to look at only: its weights stay the file's own pages."""
        return self.model(stage).requires_grad_(False)

    def reward(self, stage: str) -> RewardModel:
        model = reward.load_reward(self.run.folder(stage)).to(self.machine.device)
        for part in (model.backbone, model.reference):
            if self.lower and part is not None:
                train_upper(part, self.lower)
        return model

    def rewards(self, version: int, helpfulness_stage: str | None = None) -> tuple[RewardModel, RewardModel]:
        """The helpfulness model (of this round, or of the stage that is named) and the safety model."""
        helpfulness = self.reward(helpfulness_stage or f"reward-helpfulness-v{version}")
        safety = self.reward(f"reward-safety-v{version}")
        gate.share_reference(helpfulness, safety)
        return helpfulness, safety

    def prompts(
        self,
        helpful: int,
        unsafe: int,
        seed: int,
        borderline_share: float = 0.25,
        split: str = "train",
    ) -> list[Prompt]:
        borderline = round(helpful * borderline_share)
        return [
            *self.source.prompts("helpful", helpful - borderline, seed, split),
            *self.source.prompts("borderline", borderline, seed + 1, split),
            *self.source.prompts("unsafe", unsafe, seed + 2, split),
        ]


@checked
@dataclass(frozen=True)
class RlhfSettings:
    preferences: PreferenceSettings = PreferenceSettings()
    # The report mixes 50/50 for helpfulness; here a refusal then often beat a correct answer to a harmless prompt
    # (docs/trials.md).
    helpfulness: RewardSettings = RewardSettings(other_share=0.1, earlier=1.0)
    safety: RewardSettings = RewardSettings(other_share=0.1, safety_loss=1.0, earlier=1.0)
    rejection: RejectionSettings = RejectionSettings()
    gatt: GattSettings = GattSettings()
    ppo: PPOSettings = PPOSettings()


def rlhf(
    shop: Workshop,
    settings: RlhfSettings,
    annotate: Annotate,
    annotators: Any,
    measure: Callable[[str], object],
    test_prompts: Sequence[Prompt],
) -> None:
    """All five rounds. `annotate` labels pairs and is described by `annotators`; `measure(stage)` is called for
    every finished chat stage and reward model, so that a reader sees figures as they come."""
    latest, previous = "sft", "sft-noisy"
    for version in ROUNDS:
        preferences_stage(shop, settings.preferences, version, (latest, previous), annotate, annotators, test_prompts)
        for kind in KINDS:
            measure(reward_stage(shop, getattr(settings, kind), version, kind))
        previous, latest = (
            latest,
            (
                rejection_stage(shop, settings, version, latest)
                if version < 5
                else ppo_stage(shop, settings.ppo, latest)
            ),
        )
        measure(latest)
        if version == 1:
            measure(rejection_stage(shop, settings, 1, "sft", choose="random"))
        if version == 3:
            latest = gatt_stage(shop, settings, latest)
            measure(latest)


def preferences_stage(
    shop: Workshop,
    s: PreferenceSettings,
    version: int,
    models: Sequence[str],
    annotate: Annotate,
    annotators: Any,
    test_prompts: Sequence[Prompt],
) -> None:
    """Fresh preferences of both kinds from the latest models, on training prompts and, to test the reward models,
    on held-out prompts. Training rows say what the SFT model, the reference of all likelihood heads, thinks of both
    answers: the reward models of all later rounds read these rows again."""
    seed = shop.seed * 1000 + version * 10

    def build(folder: Path) -> dict[str, Any]:
        variants = [Variant(shop.model(name), name, s.temperatures) for name in models]
        reference = shop.model("sft")
        shares: dict[str, Any] = {}
        for kind in KINDS:
            n = getattr(s, kind)[version - 1]
            asked = (
                shop.prompts(n, 0, seed, s.borderline_share)
                if kind == "helpfulness"
                else shop.prompts(round(n * s.borderline_share), n - round(n * s.borderline_share), seed + 5, 1.0)
            )
            others = "unsafe" if kind == "helpfulness" else "helpful"
            tested = evenly([p for p in test_prompts if p.kind != others], TEST_PROMPTS)
            for name, prompts in (("train", asked), ("test", tested)):
                rows = preferences.collect(
                    variants,
                    shop.tokenizer,
                    prompts,
                    annotate,
                    kind,
                    seed=seed + (name == "test"),
                    precision=shop.machine.precision,
                )
                rows = [{**row, "round": version} for row in rows]
                if name == "train":
                    known = reward.pair_loglikelihoods(reference, shop.tokenizer, rows, shop.machine)
                    rows = [{**row, "sft_loglikelihoods": ll} for row, ll in zip(rows, known, strict=True)]
                    shares[kind] = {"pairs": len(rows), "grades": preferences.grade_shares(rows)}
                write_rows(folder / f"{kind}.{name}.jsonl", rows)
        return shares

    tested_on = digest([p.id for p in test_prompts])
    shop.run.stage(
        f"preferences-v{version}",
        build,
        [asdict(s), annotators, version, tested_on],
        ["sft", *(name for name in models if name != "sft")],
    )


def preference_rows(run: Run, version: int, kind: str, part: str = "train") -> list[dict]:
    return read_rows(run.folder(f"preferences-v{version}") / f"{kind}.{part}.jsonl")


def reward_stage(
    shop: Workshop,
    s: RewardSettings,
    version: int,
    kind: Kind,
    suffix: str = "",
    part: str = "train",
) -> str:
    """A reward model on all preferences so far, started from the SFT chat model, whose frozen copy is also the
    likelihood head's reference in every round; or, where `s.earlier` is given, the last round's model trained on. With
    the part "judge", a model that judges the policies where there is no oracle, and with "annotator" one that labels
    their fresh answers there: each on pairs that no other model sees."""
    name, seed = f"reward-{kind}-v{version}{suffix}", shop.seed + version
    if part != "train":
        name, seed = f"{part}-{kind}", shop.seed + {"judge": 500, "annotator": 700}[part]
    last = f"reward-{kind}-v{version - 1}{suffix}" if version > 1 and s.earlier is not None else ""

    def pairs(k: str) -> list[dict]:
        rounds = [preference_rows(shop.run, v, k, part) for v in range(1, version + 1)]
        return reward.pairs_so_far(rounds, s.earlier, shop.seed + version)

    def build(folder: Path) -> dict[str, Any]:
        [other] = [k for k in KINDS if k != kind]
        mine, theirs = (with_people(shop, pairs(k), k) if part == "train" else pairs(k) for k in (kind, other))
        rows = reward.mix(mine, theirs, s.other_share, shop.seed)
        model, metrics = reward.train_reward(
            shop.reward(last) if last else shop.model("sft"),
            shop.tokenizer,
            rows,
            s,
            seed,
            shop.machine,
            folder,
            shop.frozen("sft"),
            name,
            [row.get("sft_loglikelihoods") for row in rows],
        )
        reward.save_reward(folder, model, shop.tokenizer, shop.run.folder("sft"))
        return metrics

    parents = ["sft", *([last] if last else []), *(f"preferences-v{v}" for v in range(1, version + 1))]
    if shop.people and part == "train":  # without people settings stay as they were, or stages would be built anew
        shop.run.stage(name, build, [asdict(s), kind, shop.people_share], [*parents, shop.people])
    else:
        shop.run.stage(name, build, [asdict(s), kind], parents)
    return name


def with_people(shop: Workshop, rows: list[dict], kind: str) -> list[dict]:
    """The rows of simulated annotators with people's rows of the same kind, in the share that is asked for; unchanged
    where people labelled nothing of this kind."""
    people = read_rows(shop.run.folder(shop.people) / f"{kind}.jsonl") if shop.people else []
    return mix_people(rows, people, shop.people_share, shop.seed) if people else rows


def rejection_stage(
    shop: Workshop, s: RlhfSettings, version: int, sampler: str, choose: str = "best", dialogues: bool = True
) -> str:
    """V1 to V4: K answers a prompt from the latest model, then fine-tune on the best of all rounds so far and some SFT
    examples: V1 to V3 the SFT model, V4 the latest, which knows Ghost Attention, for half as many epochs. Where the
    world has no `dialogues`, and so no Ghost Attention, V4 is as V1 to V3. With choose="random", the control: the same
    prompts and answers, chosen blindly."""
    samples_name, name = f"samples-v{version}", f"rlhf-v{version}" + ("" if choose == "best" else f"-{choose}")
    r = s.rejection
    seed = shop.seed * 1000 + version * 10 + 7
    taught = version > 3 and dialogues  # by Ghost Attention
    start, epochs = (sampler, r.epochs / 2) if taught else ("sft", r.epochs)

    def sample(folder: Path) -> dict[str, Any]:
        helpfulness, safety = shop.rewards(version)
        prompts = shop.prompts(r.prompts, r.unsafe_prompts, seed, r.borderline_share)
        samples = rejection.sample_and_score(
            shop.model(sampler), helpfulness, safety, shop.tokenizer, prompts, r.k, r.temperature, seed, shop.machine
        )
        write_rows(folder / "samples.jsonl", samples.rows())
        for how in ("best", "random"):
            write_rows(folder / f"{how}.jsonl", rejection.best_of(samples, how, seed))
        return {"prompts": len(prompts), "k": r.k, "curve": rejection.best_of_curve(samples.scores)}

    def build(folder: Path) -> dict[str, Any]:
        best = [read_rows(shop.run.folder(f"samples-v{v}") / f"{choose}.jsonl") for v in range(1, version + 1)]
        chat = read_rows(shop.run.folder("sft") / "rows.jsonl")
        rows = rejection.finetuning_rows(best, chat, r.chat_rows, seed)
        if taught:  # and it must survive
            rows += read_rows(shop.run.folder("gatt") / "gatt.jsonl")[: r.gatt_rows]
        tuning = SFTSettings(len(rows), epochs, 512, r.batch_tokens, r.optim, r.replay)
        return finetune(shop, start, rows, tuning, folder, name)

    shop.run.stage(
        samples_name,
        sample,
        [asdict(r), version],
        [sampler, f"reward-helpfulness-v{version}", f"reward-safety-v{version}"],
    )
    parents = ["sft", *(f"samples-v{v}" for v in range(1, version + 1)), *(["gatt"] if taught else [])]
    shop.run.stage(name, build, [asdict(r), choose], parents)
    return name


def finetune(
    shop: Workshop,
    start: str,
    rows: Sequence[dict],
    settings: SFTSettings,
    folder: Path,
    what: str,
) -> dict[str, Any]:
    """Fine-tune a copy of a finished stage on chat rows and save it as a checkpoint."""
    model = shop.model(start)
    metrics = sft(model, shop.tokenizer, rows, settings, shop.seed, shop.machine, folder, what, shop.documents)
    save_model(folder, model, shop.tokenizer)
    return metrics


def gatt_stage(shop: Workshop, s: RlhfSettings, latest: str) -> str:
    """After V3: long dialogues that keep an instruction, mixed with ordinary chat."""
    g = s.gatt

    def build(folder: Path) -> dict[str, Any]:
        if not (folder / "gatt.jsonl").exists():
            questions, instructions = shop.source.dialogues(g.dialogues, g.turns, shop.seed + 31)
            answers = gatt.sample_dialogues(
                shop.model(latest),
                shop.tokenizer,
                questions,
                [i.text for i in instructions],
                everywhere=True,
                temperature=g.temperature,
                seed=shop.seed + 32,
                precision=shop.machine.precision,
                seen_turns=gatt.SEEN_TURNS,
            )
            texts = [lambda rng, i=i: rng.choice((i.text, i.short)) for i in instructions]
            write_rows(folder / "gatt.jsonl", gatt.gatt_rows(questions, texts, answers, g.rows, shop.seed + 33))
        rows = read_rows(folder / "gatt.jsonl")
        best = read_rows(shop.run.folder("samples-v3") / "best.jsonl")
        chat = read_rows(shop.run.folder("sft") / "rows.jsonl")
        ordinary = rejection.finetuning_rows([best], chat, max(0, g.chat_rows - len(best)), shop.seed)
        settings = SFTSettings(len(rows), g.epochs, 512, g.batch_tokens, g.optim, g.replay)
        return finetune(shop, latest, [*rows, *ordinary], settings, folder, "Ghost Attention")

    shop.run.stage("gatt", build, asdict(g), [latest, "sft", "samples-v3"])
    return "gatt"


def ppo_stage(shop: Workshop, s: PPOSettings, latest: str, name: str = "rlhf-v5", rewards: int = 5) -> str:
    """V5: PPO on top of rejection sampling. The rollouts are kept, so that the truth can be seen afterwards."""
    rewarder = f"reward-helpfulness-v{rewards}"

    def build(folder: Path) -> dict[str, Any]:
        policy, metrics = ppo_policy(shop, s, latest, rewards, rewarder, folder)
        save_model(folder, policy, shop.tokenizer)
        return metrics

    parents = [latest, rewarder, f"reward-safety-v{rewards}", *(["base"] if s.replay else [])]
    shop.run.stage(name, build, asdict(s), parents)
    return name


def ppo_policy(
    shop: Workshop, s: PPOSettings, latest: str, version: int, rewarder: str, folder: Path | None = None
) -> tuple[Llama, dict[str, Any]]:
    """What PPO makes of the `latest` model with the helpfulness model `rewarder` and the safety model of a round, and
    its figures. With a folder, rollouts are kept there and the training can be killed."""
    helpfulness, safety = shop.rewards(version, rewarder)
    policy, unsafe = shop.model(latest), round(s.batch * s.unsafe_share)

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        return gate.combined_scores(helpfulness, safety, shop.tokenizer, prompts, answers, shop.machine)

    def prompts_for(iteration: int) -> list[Prompt]:
        return shop.prompts(s.batch - unsafe, unsafe, shop.seed * 100_000 + 10 * iteration, s.borderline_share)

    def keep(iteration: int, rows: list[dict]) -> None:
        if folder is not None:
            (folder / "rollouts").mkdir(exist_ok=True)
            write_rows(folder / "rollouts" / f"{iteration:03d}.jsonl", rows)

    metrics = ppo.ppo(
        policy,
        ppo.Critic(helpfulness),
        score,
        shop.tokenizer,
        prompts_for,
        s,
        shop.seed,
        shop.machine,
        folder,
        keep,
        shop.prompts(100, 30, 77, split="dev"),
        shop.documents,
        reference=shop.frozen(latest),
    )
    return policy, metrics
