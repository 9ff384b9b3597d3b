"""All settings of a run in one place: what `--preset mini` and `--preset smoke` are, and recipe files; on real text,
too.

A recipe file is YAML that names a preset and what it changes:

    preset: mini
    sft: {examples: 800}
    rlhf:
      ppo: {beta: 0.05}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.recipefile import changed, read_recipe
from llama2lab.engine.settings import Clash, Count, CountOrNone, Notes, Share, Split, Temperature, Text, checked, one_of
from llama2lab.model.checkpoint import context_of, parameters_of
from llama2lab.model.network import SIZES
from llama2lab.run import start_from
from llama2lab.run.realdata import SourceSettings
from llama2lab.stages.evaluate import EvaluateSettings
from llama2lab.stages.gatt import GattSettings
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.pretrain import PretrainSettings, Sizes
from llama2lab.stages.rejection import RejectionSettings
from llama2lab.stages.reward import RewardSettings
from llama2lab.stages.rounds import ROUNDS, PreferenceSettings, RlhfSettings
from llama2lab.stages.sft import SFTSettings
from llama2lab.town.annotators import VENDORS


def _shape(name: str, **changes: Any) -> Sizes:
    return cast(Sizes, {k: v for k, v in asdict(SIZES[name]).items() if v is not None} | changes)


SFT_OPTIM = Optim(lr=7e-4, warmup=0.05, gain_lr=200.0)  # see stages/sft.py

# Tokens of a turn of a dialogue, on average, and the turns of the evaluation's dialogues (48 of RLHF-V3, with a
# vocabulary of 1,536: 641 tokens for 20 turns; a larger one needs fewer).
TURN_TOKENS, TURNS = 32, 20
ANSWER_TOKENS = 48  # the most that is sampled where nothing else is said (sample.sample_answers)
PROMPT_TOKENS = 40  # the longest prompt of the town had 33

Vendors = Annotated[tuple[Annotated[str, one_of(VENDORS)], ...], Field(min_length=1, max_length=100)]


@checked
@dataclass(frozen=True)
class Recipe:
    """Every setting of a run on the town. Each section belongs to the module of its name."""

    preset: Annotated[str, one_of(("mini", "smoke"))] = "mini"
    # Tied embeddings, unlike Llama 2: a third of this model would be embeddings. Small batches and rows of 256 tokens
    # because they were tried (docs/trials.md).
    pretrain: PretrainSettings = PretrainSettings(
        model=_shape("mini", vocab_size=3072, max_seq_len=2048, tie_embeddings=True),
        words=3_200_000,
        seq_len=256,
        batch_tokens=1024,
        optim=Optim(lr=3e-3, eps=1e-8),
    )
    sft: SFTSettings = SFTSettings(
        examples=4500, epochs=1.0, batch_tokens=1024, optim=SFT_OPTIM, replay=1.2, format_examples=1000
    )
    noisy: SFTSettings = SFTSettings(
        examples=9000, epochs=1.0, batch_tokens=1024, optim=SFT_OPTIM, replay=1.2, format_examples=1000
    )
    rlhf: RlhfSettings = RlhfSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    compare_heads: bool = True  # train the report's plain reward head beside ours, and choose by it
    vendors: Vendors = ("careful",)  # as one buys labels: the others of town/annotators.py are to compare
    notes: Notes = field(default="")

    def __post_init__(self) -> None:
        if not self.pretrain.model:
            raise Clash("is missing; give the model's sizes", "pretrain.model")
        context, turns = self.pretrain.config.context, max(TURNS, self.rlhf.gatt.turns)
        if turns * TURN_TOKENS > context:
            raise Clash(
                f"is too little: the model's context is {context} tokens, and dialogues of {turns} turns have "
                f"{turns * TURN_TOKENS} or more",
                "pretrain.model.max_seq_len",
                "rlhf.gatt.turns",
            )
        if PROMPT_TOKENS + self.rlhf.ppo.max_new_tokens > context:
            raise Clash(
                f"is too much: the model's context is {context} tokens, for prompt and answer",
                "rlhf.ppo.max_new_tokens",
                "pretrain.model.max_seq_len",
            )


SMOKE = Recipe(
    preset="smoke",
    pretrain=PretrainSettings(
        model=_shape("nano", max_seq_len=2048), words=30_000, seq_len=128, batch_tokens=2048, sample_every=50
    ),
    sft=SFTSettings(examples=120, epochs=1.0, seq_len=128, format_examples=40),
    noisy=SFTSettings(examples=200, epochs=1.0, seq_len=128, format_examples=40),
    rlhf=RlhfSettings(
        preferences=PreferenceSettings(helpfulness=(60,) * 5, safety=(40,) * 5),
        helpfulness=RewardSettings(batch_pairs=16),
        safety=RewardSettings(other_share=0.1, safety_loss=1.0, batch_pairs=16),
        rejection=RejectionSettings(prompts=24, unsafe_prompts=8, k=4, chat_rows=40, epochs=1.0),
        gatt=GattSettings(dialogues=8, turns=6, rows=24, chat_rows=40, epochs=1.0),
        ppo=PPOSettings(iterations=3, batch=32, minibatch=16, critic_warmup=1, max_new_tokens=24),
    ),
    evaluate=EvaluateSettings(
        helpful=36, unsafe=16, borderline=16, dialogues=4, best_of=4, best_of_prompts=8, truth_pairs=20, test_pairs=30
    ),
)

PRESETS = {"mini": Recipe(), "smoke": SMOKE}


def preset(name: str) -> Recipe:
    """A preset by name; LabError that lists them."""
    if name not in PRESETS:
        raise LabError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def load_recipe(path: str | Path) -> Recipe:
    """A recipe file: a preset with changes. LabError with file, line and what may stand there."""
    file = read_recipe(path)
    base = file.whole.get("preset", "mini")  # one that is unknown is refused as any other wrong value
    return changed(PRESETS[base if isinstance(base, str) and base in PRESETS else "mini"], file)


# ---- real text ------------------------------------------------------------------------------------------------


@checked
@dataclass(frozen=True)
class DataSettings:
    """Where the rows of each role come from, and the share of malformed ones that stops the run."""

    pretrain: SourceSettings = SourceSettings()
    sft: SourceSettings = SourceSettings()
    helpful: SourceSettings = SourceSettings()
    harmless: SourceSettings = SourceSettings()
    refusals: SourceSettings = SourceSettings()
    max_malformed: Share = 0.05


@checked
@dataclass(frozen=True)
class RealEvaluateSettings:
    split: Split = "test"  # "dev" for choices: nothing may be chosen on "test"
    stories: CountOrNone = 300  # held-out documents
    prompts: Count = 300  # of each kind, at most
    test_pairs: CountOrNone = 0  # people's held-out pairs of each kind that reward models are tested on; 0: all
    temperature: Temperature = 1.0
    sample_stories: CountOrNone = 5
    story_tokens: Count = 200


@checked
@dataclass(frozen=True)
class RealRecipe:
    """Every setting of a run on real text; data/recipes/real.yaml is the example."""

    data: DataSettings = DataSettings()
    start_from: Text = ""  # a checkpoint folder (also inside the data folder) or hub name, instead of pretraining
    # The upper layers of the checkpoint that are fine-tuned, the others frozen: see model/lower.py. 0: all are.
    trained_layers: CountOrNone = 0
    pretrain: PretrainSettings = PretrainSettings()
    sft: SFTSettings = SFTSettings()
    helpfulness: RewardSettings = RewardSettings(margin="none")
    safety: RewardSettings = RewardSettings(margin="none", other_share=0.1)
    prompt_tokens: Count = 160  # longer prompts are not answered in rejection sampling, PPO and evaluation
    # People's pairs are round 1's. In each further round a reward model that learnt from other pairs labels fresh
    # answers; the last one of several is PPO. With one, PPO follows on top of it.
    rounds: Annotated[int, Field(ge=1, le=len(ROUNDS))] = 1
    preferences: PreferenceSettings = PreferenceSettings(helpfulness=(400,) * 5, safety=(200,) * 5)  # from round 2 on
    compare_heads: bool = False  # train the other reward head, too, on people's helpfulness pairs
    rejection: RejectionSettings = RejectionSettings()
    ppo: PPOSettings = PPOSettings()
    evaluate: RealEvaluateSettings = RealEvaluateSettings()

    def __post_init__(self) -> None:
        if self.trained_layers and not self.start_from:
            raise Clash("is for a checkpoint; give one, or leave this out", "trained_layers", "start_from")
        if self.pretrain.model and not self.start_from:
            self.check_context(self.pretrain.config.context, "max_seq_len", "pretrain.model.max_seq_len")

    def check_context(self, context: int, whence: str, *settings: str) -> None:
        """Clash if the lengths do not fit in the model's context, which `settings` set too."""
        for role in ("sft", "helpful", "harmless"):
            source = getattr(self.data, role)
            if source.given and source.max_tokens > context:
                raise Clash(
                    f"must be at most the model's context ({whence}, {context}), not {source.max_tokens}",
                    f"data.{role}.max_tokens",
                    *settings,
                )
        longest = min(self.prompt_tokens, max(self.data.helpful.max_tokens, self.data.harmless.max_tokens))
        answer = max(ANSWER_TOKENS, self.ppo.max_new_tokens)
        if longest + answer > context:
            raise Clash(
                f"is too much: prompts of {longest} tokens and answers of {answer} do not fit in the model's "
                f"context ({whence}, {context})",
                "prompt_tokens",
                "ppo.max_new_tokens",
                *settings,
            )


def load_real_recipe(path: str | Path, data_dir: Path | None = None) -> RealRecipe:
    """A recipe file with `data:` at its top. Where it starts from a checkpoint (also one inside `data_dir`), learning
    rates that it does not give are those for a trained model of that size: see start_from.py. LabError with file, line
    and what may stand there."""
    file = read_recipe(path)
    recipe = changed(RealRecipe(), file)
    if recipe.start_from:
        start = start_from.find_checkpoint(recipe.start_from, data_dir)
        trained = parameters_of(start, recipe.trained_layers)
        recipe = changed(start_from.for_checkpoint(RealRecipe(), trained), file)
        try:
            recipe.check_context(context_of(start), "the checkpoint's max_position_embeddings", "start_from")
        except Clash as e:
            places = (tuple(name.split(".")) for name in e.settings)
            file.refuse(next(file.lines[place] for place in places if place in file.lines), str(e))
    for role in ("sft", "helpful", "harmless", *([] if recipe.start_from else ["pretrain"])):
        if not getattr(recipe.data, role).given:
            file.refuse(
                file.line(("data", role)), f"data.{role} names neither files nor hub; the recipe needs this role"
            )
    if not recipe.start_from and not recipe.pretrain.model:
        file.refuse(
            file.line(("pretrain", "model")),
            "pretrain.model is missing; give the model's sizes, as "
            "data/recipes/real.yaml does, or a checkpoint with start_from",
        )
    return recipe
