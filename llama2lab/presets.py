"""All settings of a run in one place: what `--preset mini` and `--preset smoke` are, and recipe files.

A recipe file is YAML that names a preset and what it changes:

    preset: mini
    sft: {examples: 800}
    rlhf:
      ppo: {beta: 0.05}
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llama2lab.errors import LabError
from llama2lab.evaluate import EvaluateSettings
from llama2lab.gatt import GattSettings
from llama2lab.model import SIZES, ModelConfig
from llama2lab.ppo import PPOSettings
from llama2lab.pretrain import PretrainSettings
from llama2lab.rejection import RejectionSettings
from llama2lab.reward import RewardSettings
from llama2lab.rlhf import PreferenceSettings, RlhfSettings
from llama2lab.sft import SFTSettings
from llama2lab.train import Optim


def _shape(name: str) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(SIZES[name]).items() if v is not None}


SFT_OPTIM = Optim(lr=3e-4, warmup=0.05)  # see sft.py


@dataclass(frozen=True)
class Recipe:
    """Every setting of a run on the town. Each section belongs to the module of its name."""

    preset: str = "mini"
    # Tied embeddings, unlike Llama 2: a third of this model would be embeddings. Small batches: on 1.7 million tokens,
    # one seed each, steps of 1,024 tokens at lr 2e-3 knew 83 % of the facts, steps of 2,048 at lr 4e-3 53 %. Batch and
    # learning rate changed together, so which of them did it is not known. Rows of 256 tokens: a step takes .85 of the
    # time of one with rows of 512, and what follows got better; the README has figures under "State of the work".
    pretrain: PretrainSettings = PretrainSettings(
        model={**_shape("mini"), "vocab_size": 1536, "max_seq_len": 2048, "tie_embeddings": True},
        words=5_800_000, seq_len=256, batch_tokens=1024, optim=Optim(lr=2e-3))
    sft: SFTSettings = SFTSettings(examples=3600, epochs=2.0, batch_tokens=1024, optim=SFT_OPTIM, replay=0.4,
                                   format_examples=1000)
    noisy: SFTSettings = SFTSettings(examples=6000, epochs=1.0, batch_tokens=1024, optim=SFT_OPTIM, replay=0.4,
                                     format_examples=1000)
    rlhf: RlhfSettings = RlhfSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    compare_heads: bool = True  # train the report's plain reward head beside ours, and PPO against it
    vendors: tuple[str, ...] = ("careful",)  # as one buys labels: the others of world/annotators.py are to compare
    notes: str = field(default="")


SMOKE = Recipe(
    preset="smoke",
    pretrain=PretrainSettings(model={**_shape("nano"), "max_seq_len": 2048}, words=30_000, seq_len=128,
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


def read_yaml(path: Path) -> yaml.Node | None:
    """The nodes of a recipe file, which know their lines. LabError with file and line if it cannot be read."""
    try:
        return yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as e:
        raise LabError(f"{path}: {e.strerror}; give the path of a recipe file (YAML)") from e
    except UnicodeDecodeError as e:
        raise LabError(f"{path}: is not UTF-8 text; save the recipe as UTF-8") from e
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else 1
        raise LabError(f"{path}:{line}: broken YAML ({e.problem}); mend this line") from e
    except yaml.YAMLError as e:  # control characters
        raise LabError(f"{path}: is not a text file; give the path of a recipe file (YAML)") from e


def load_recipe(path: str | Path) -> Recipe:
    """A recipe file: a preset with changes. LabError with file, line and what may stand there."""
    path = Path(path)
    node = read_yaml(path)
    if not isinstance(node, yaml.MappingNode):
        raise LabError(f"{path}:1: a recipe is a mapping such as 'preset: mini'; see the README")
    base = next((v.value for k, v in node.value if k.value == "preset"), "mini")
    if not isinstance(base, str):
        raise LabError(f"{path}: preset must be a name; choose one of {', '.join(PRESETS)}")
    return changed(preset(base), node, path)


def changed(settings: Any, node: yaml.Node, path: Path, where: str = "") -> Any:
    """`settings` with the mapping's values in place of its own; every key and type is checked."""
    if not isinstance(node, yaml.MappingNode):
        raise LabError(f"{path}:{node.start_mark.line + 1}: {where or 'the recipe'} must be a mapping of settings")
    fields = {f.name for f in dataclasses.fields(settings)}
    changes = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str) or key not in fields:
            raise LabError(f"{path}:{line}: unknown setting {where}{key}; choose one of {', '.join(sorted(fields))}")
        now = getattr(settings, key)
        if dataclasses.is_dataclass(now):
            changes[key] = changed(now, value_node, path, f"{where}{key}.")
            continue
        try:
            value = yaml.SafeLoader("").construct_object(value_node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError) as e:
            raise LabError(f"{path}:{line}: {where}{key} cannot be read; write a plain value") from e
        if isinstance(value, str) and isinstance(now, float):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-4, without a dot, as text
                value = float(value)
        if isinstance(now, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(now, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(now):
            raise LabError(f"{path}:{line}: {where}{key} must be {_kind(now)} (it is {now!r} by default), "
                           f"not {value!r}")
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise LabError(f"{path}:{line}: {where}{key} must not be negative, and is {value!r}")
        if isinstance(now, dict):
            value = {**now, **value}
            if key == "model":
                _check_model(value, f"{path}:{line}: {where}{key}")
        changes[key] = value
    return dataclasses.replace(settings, **changes)


def _check_model(model: dict[str, Any], at: str) -> None:
    """Say which size of a model is unknown or impossible, before anything is trained."""
    known = [f.name for f in dataclasses.fields(ModelConfig)]
    for key in model:
        if key not in known:
            raise LabError(f"{at}: unknown setting {key}; choose one of {', '.join(known)}")
    try:
        ModelConfig(**model)
    except LabError as e:
        raise LabError(f"{at}: {e}") from e
    except TypeError as e:  # a wrong type, or a size that is given nowhere
        raise LabError(f"{at}: impossible sizes ({str(e).removeprefix('ModelConfig.__init__() ')})") from e


def _kind(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list",
             dict: "a mapping"}
    return names.get(type(value), type(value).__name__)
