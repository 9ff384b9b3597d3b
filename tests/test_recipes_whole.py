"""Every setting of every recipe refuses what it may not be, with file and line; and the settings that exist go on being
what they were.

`test_every_setting_refuses_wrong_values` walks through the fields of all recipes, so that a setting that somebody adds
without saying what it may be makes it fail.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from recipe_fields import ALL, hints_at, leaves, with_value, written, wrong_values

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest
from llama2lab.engine.recipefile import RecipeFile, changed, read_recipe
from llama2lab.model.network import ModelConfig
from llama2lab.run.presets import PRESETS, load_real_recipe, load_recipe
from llama2lab.stages.pretrain import Sizes

ROOT = Path(__file__).parent.parent


def accepted(file: Path, base: dict[str, Any], before: Any, load: Any) -> list[tuple[str, str]]:
    """The wrong values that are accepted, by setting. Two values of each setting are tried as a file, the others (YAML
    is slow) as what the file would hold."""
    found = []
    for path, hint in leaves(type(before)):
        for number, value in enumerate(wrong_values(path[-1], hint)):
            data, line = with_value(base, path, value), 7
            try:
                if number in (0, 7):
                    text, line = written(data, path)
                    file.write_text(text)
                    load(file)
                else:
                    changed(before, RecipeFile(file, data, {path: line}))
                found.append((".".join(path), repr(value)[:40]))
            except LabError as e:
                start, said = f"{file}:{line}: ", str(e)
                assert said.startswith((start + ".".join(path), f"{start}unknown setting {'.'.join(path)}")), said
                assert "\n" not in said and len(said) < 600
    return found


@pytest.mark.parametrize("recipe", ALL)
def test_every_setting_refuses_wrong_values(tmp_path, recipe):
    base, before, load = ALL[recipe]
    assert not accepted(tmp_path / "r.yaml", base, before, load)


@dataclass(frozen=True)
class Careless:
    number: int = 3
    share: float = 0.5
    word: str = "linear"
    many: tuple[int, ...] = (1, 2)
    anything: Any = None
    inner: dict[str, Any] = field(default_factory=dict)


def test_a_setting_that_says_not_what_it_may_be_is_found(tmp_path):
    def load(path: Path) -> Any:
        return changed(Careless(), read_recipe(path))

    found = accepted(tmp_path / "r.yaml", {}, Careless(), load)
    assert {name for name, _ in found} == {f.name for f in fields(Careless)}


@pytest.mark.parametrize("recipe", ALL)
def test_every_section_refuses_unknown_settings(tmp_path, recipe):
    base, before, load = ALL[recipe]
    kind = type(before)
    for section in [(), *(path for path, hint in leaves(kind) if hint is dict)]:
        path = (*section, "xyzzy")
        text, line = written(with_value(base, path, 1), path)
        (tmp_path / "r.yaml").write_text(text)
        known = next(iter(hints_at(kind, section)))
        with pytest.raises(LabError, match=rf":{line}: unknown setting {'.'.join(path)}; choose one of .*\b{known}\b"):
            load(tmp_path / "r.yaml")


# ---- settings that exist go on being what they were --------------------------------------------------------------

# Of json.dumps(asdict(...)). Another one means that every finished run is built anew, from some stage on.
BEFORE = {"mini": "faf47e0a0fea5b20", "smoke": "c508819f2aae4af8", "real": "7826fc4c608d6ab2"}


def test_the_recipes_are_written_as_before():
    recipes = {**PRESETS, "real": load_real_recipe(ROOT / "data/recipes/real.yaml")}
    assert {
        name: hashlib.sha256(json.dumps(asdict(recipe)).encode()).hexdigest()[:16] for name, recipe in recipes.items()
    } == BEFORE


def test_a_recipe_that_changes_nothing_is_its_preset(tmp_path):
    for name, recipe in PRESETS.items():
        (tmp_path / "r.yaml").write_text(f"preset: {name}\n")
        loaded = load_recipe(tmp_path / "r.yaml")
        assert loaded == recipe and json.dumps(asdict(loaded)) == json.dumps(asdict(recipe))


def test_the_shipped_run_has_the_settings_of_the_preset():
    mini = PRESETS["mini"]
    r = mini.rlhf
    sections = {
        "base": mini.pretrain,
        "sft": mini.sft,
        "sft-noisy": mini.noisy,
        "preferences-v3": r.preferences,
        "reward-helpfulness-v5": r.helpfulness,
        "reward-safety-v5": r.safety,
        "reward-helpfulness-v5-linear": replace(r.helpfulness, head="linear", earlier=None),
        "samples-v2": r.rejection,
        "rlhf-v4": r.rejection,
        "gatt": r.gatt,
        "rlhf-v5": r.ppo,
        "best-of-k": mini.evaluate,
    }
    for stage, section in sections.items():
        found = json.loads((ROOT / "data/run" / stage / "stage.json").read_text())["settings"]
        found = found[0] if isinstance(found, list) else found
        known = asdict(section)
        assert digest(found) == digest(known), stage
        assert json.dumps(found) == json.dumps(known), stage


def test_the_sizes_of_a_recipe_are_the_model_s():
    assert list(get_type_hints(Sizes)) == [f.name for f in fields(ModelConfig)]
