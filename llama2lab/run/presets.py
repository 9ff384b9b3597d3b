"""All settings of a run in one place: what `--preset mini` and `--preset smoke` are, and recipe files.

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
from llama2lab.engine.settings import Clash, Notes, checked, one_of
from llama2lab.model.network import SIZES
from llama2lab.stages.evaluate import EvaluateSettings
from llama2lab.stages.gatt import GattSettings
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.pretrain import PretrainSettings, Sizes
from llama2lab.stages.rejection import RejectionSettings
from llama2lab.stages.reward import RewardSettings
from llama2lab.stages.rounds import PreferenceSettings, RlhfSettings
from llama2lab.stages.sft import SFTSettings
from llama2lab.town.annotators import VENDORS


def _shape(name: str, **changes: Any) -> Sizes:
    return cast(Sizes, {k: v for k, v in asdict(SIZES[name]).items() if v is not None} | changes)


SFT_OPTIM = Optim(lr=3e-4, warmup=0.05)  # see sft.py

# Tokens of a turn of a dialogue, on average (48 dialogues of RLHF-V3, a vocabulary of 1,536: 641 for 20 turns), and the
# turns of the evaluation's dialogues.
TURN_TOKENS, TURNS = 32, 20
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
        model=_shape("mini", vocab_size=1536, max_seq_len=2048, tie_embeddings=True),
        words=5_800_000, seq_len=256, batch_tokens=1024, optim=Optim(lr=2e-3))
    sft: SFTSettings = SFTSettings(examples=3600, epochs=2.0, batch_tokens=1024, optim=SFT_OPTIM, replay=0.4,
                                   format_examples=1000)
    noisy: SFTSettings = SFTSettings(examples=6000, epochs=1.0, batch_tokens=1024, optim=SFT_OPTIM, replay=0.4,
                                     format_examples=1000)
    rlhf: RlhfSettings = RlhfSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    compare_heads: bool = True  # train the report's plain reward head beside ours, and PPO against it
    vendors: Vendors = ("careful",)  # as one buys labels: the others of town/annotators.py are to compare
    notes: Notes = field(default="")

    def __post_init__(self) -> None:
        if not self.pretrain.model:
            raise Clash("is missing; give the model's sizes", "pretrain.model")
        context, turns = self.pretrain.config.context, max(TURNS, self.rlhf.gatt.turns)
        if turns * TURN_TOKENS > context:
            raise Clash(f"is too little: the model's context is {context} tokens, and dialogues of {turns} turns have "
                        f"{turns * TURN_TOKENS} or more", "pretrain.model.max_seq_len", "rlhf.gatt.turns")
        if PROMPT_TOKENS + self.rlhf.ppo.max_new_tokens > context:
            raise Clash(f"is too much: the model's context is {context} tokens, for prompt and answer",
                        "rlhf.ppo.max_new_tokens", "pretrain.model.max_seq_len")


SMOKE = Recipe(
    preset="smoke",
    pretrain=PretrainSettings(model=_shape("nano", max_seq_len=2048), words=30_000, seq_len=128,
                              batch_tokens=2048, sample_every=50),
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
    evaluate=EvaluateSettings(helpful=36, unsafe=16, borderline=16, dialogues=4, best_of=4, best_of_prompts=8,
                              truth_pairs=20, test_pairs=30),
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
    base = file.data.get("preset", "mini")  # one that is unknown is refused as any other wrong value
    return changed(PRESETS[base if isinstance(base, str) and base in PRESETS else "mini"], file)
