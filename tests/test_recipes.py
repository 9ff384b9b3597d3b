"""Recipe files: what is wrong is a LabError with file and line, before anything is trained, whatever the file holds."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_fields import ALL, leaves, with_value

from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.run.presets import PRESETS, RealRecipe, Recipe, load_real_recipe, load_recipe
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.pretrain import PretrainSettings

# ---- what is wrong, one by one -----------------------------------------------------------------------------------

TOWN: list[tuple[str, int, str]] = [
    # lengths
    ("rlhf: {preferences: {helpfulness: [100, 100]}}", 1, "rlhf.preferences.helpfulness must have 5 values"),
    ("rlhf: {preferences: {safety: [1, 2, 3, 4, 5, 6]}}", 1, "rlhf.preferences.safety must have 5 values"),
    ("rlhf:\n  preferences:\n    helpfulness: [a, b]", 3, "rlhf.preferences.helpfulness[0] must be a whole number"),
    ("rlhf:\n  preferences:\n    helpfulness:\n    - 1\n    - 0", 5, "preferences.helpfulness[1] must be at least 1"),
    ("rlhf: {preferences: {temperatures: []}}", 1, "at least 1 values"),
    ("sft: {optim: {betas: [0.9]}}", 1, "sft.optim.betas[1] is missing"),
    ("sft: {optim: {betas: [0.9, 1.0]}}", 1, "sft.optim.betas[1] must be less than 1"),
    ("vendors: []", 1, "vendors must have at least 1"),
    # ranges
    ("rlhf: {ppo: {minibatch: 0}}", 1, "rlhf.ppo.minibatch must be at least 1, not 0"),
    ("rlhf:\n  ppo:\n    batch: 0", 3, "rlhf.ppo.batch must be at least 1"),
    ("rlhf: {ppo: {iterations: 0}}", 1, "rlhf.ppo.iterations must be at least 1"),
    ("rlhf: {helpfulness: {other_share: 1.0}}", 1, "rlhf.helpfulness.other_share must be less than 1"),
    ("rlhf: {rejection: {k: 0}}", 1, "rlhf.rejection.k must be at least 1"),
    ("sft: {examples: 0}", 1, "sft.examples must be at least 1"),
    ("sft: {examples: -3}", 1, "must not be negative"),
    ("rlhf: {rejection: {temperature: 1e-40}}", 1, "must be 0, which takes the likeliest token, or at least 0.01"),
    ("sft: {optim: {lr: .nan}}", 1, "sft.optim.lr must be a finite number"),
    ("sft: {optim: {lr: -.inf}}", 1, "sft.optim.lr must be a finite number"),
    ("sft: {optim: {lr: 1e999}}", 1, "sft.optim.lr must be a finite number"),
    ("sft: {optim: {eps: 0}}", 1, "sft.optim.eps must be at least 1e-20"),
    # words
    ("rlhf: {safety: {head: lineer}}", 1, "rlhf.safety.head must be one of linear, likelihood, not 'lineer'"),
    ("rlhf: {safety: {margin: huge}}", 1, "must be one of none, small, large"),
    ("evaluate: {split: tets}", 1, "evaluate.split must be one of test, dev"),
    ("evaluate: {split: train}", 1, "evaluate.split must be one of test, dev"),
    ("vendors: [careful, nobody]", 1, "vendors[1] must be one of careful"),
    ("preset: maxi", 1, "preset must be one of mini, smoke"),
    # types
    ("compare_heads: yes", 1, "compare_heads must be true or false, not 'yes'"),
    ("sft: {examples: true}", 1, "sft.examples must be a whole number, not True"),
    ("sft: {examples: '3'}", 1, "must be a whole number, not '3'"),
    ("sft: {examples: 1:30}", 1, "must be a whole number, not '1:30'"),
    ("sft: {examples: 3.0}", 1, "must be a whole number, not 3.0"),
    ("sft: {optim: {lr: '1e-4'}}", 1, "sft.optim.lr must be a number"),
    ("sft:", 1, "sft must be a mapping of settings"),
    ("sft: 3", 1, "sft must be a mapping of settings"),
    ("sft: {examples: " + "1" * 5000 + "}", 1, "thousands of digits"),
    ("sft: {examples: " + "1" * 4000 + "}", 1, "must be at most 1,000,000,000"),
    # settings that do not fit each other
    ("rlhf: {ppo: {minibatch: 300}}", 1, "rlhf.ppo.minibatch must be at most batch (256)"),
    ("rlhf:\n  ppo:\n    batch: 8", 3, "rlhf.ppo.minibatch must be at most batch (8)"),
    ("rlhf:\n  ppo:\n    iterations: 3", 3, "rlhf.ppo.critic_warmup must be less than iterations (3)"),
    ("pretrain:\n  seq_len: 4096", 2, "pretrain.seq_len must be at most the model's context"),
    ("pretrain:\n  model:\n    n_heads: 3", 3, "pretrain.model.dim cannot be so: dim 160 is not divisible by n_heads"),
    ("pretrain: {model: {n_kv_heads: 3}}", 1, "not divisible by n_kv_heads 3"),
    ("pretrain: {model: {head_dim: 3}}", 1, "head_dim 3 is odd"),
    ("pretrain: {model: {vocab_size: 100}}", 1, "pretrain.model.vocab_size must be at least 264"),
    ("pretrain:\n  model:\n    dim: 1000000000", 3, "GB to train"),
    ("pretrain: {model: {ffn_dim: 1000000000}}", 1, "pretrain.model.ffn_dim is 1000000000: such a model takes"),
    ("pretrain: {model: {vocab_size: 1000000000}}", 1, "GB to train"),
    ("pretrain: {model: {n_layers: 300000}}", 1, "pretrain.model.n_layers must be at most 1,000"),
    ("pretrain: {model: {rope_scaling: {rope_type: linear, factor: x}}}", 1, "rope_scaling.factor must be a number"),
    ("pretrain: {model: {rope_scaling: {rope_type: linear}}}", 1, "needs 'factor'"),
    ("pretrain: {model: {rope_scaling: {rope_type: cubic}}}", 1, "rope_type"),
    ("pretrain: {model: {head_dim: 2, rope_scaling: {rope_type: dynamic, factor: 2}}}", 1, "cannot be so"),
    ("pretrain: {model: {max_seq_len: 512}}", 1, "pretrain.model.max_seq_len is too little"),
    ("rlhf: {gatt: {turns: 100}}", 1, "dialogues of 100 turns"),
    ("rlhf: {ppo: {max_new_tokens: 2040}}", 1, "rlhf.ppo.max_new_tokens is too much"),
    # what is no plain YAML, or no recipe
    ("sft: {examples: 3}\nsft: {examples: 4}", 2, "sft stands twice"),
    ('"a\\nb": 3', 1, "unknown setting 'a\\nb'; choose one of"),
    ("x" * 1000 + ": 3", 1, "unknown setting 'xxx"),
    ("sft: {examples: 3, examples: 3}", 1, "sft.examples stands twice"),
    ("a: &a [x, x]\nb: &b [*a, *a]", 2, "alias"),
    ("sft: &s {examples: 3}\nnoisy:\n  <<: *s", 3, "alias"),
    ("noisy:\n  <<: {examples: 3}", 2, "unknown setting noisy.<<"),
    ("notes: !!python/object:os.system x", 1, "notes: a tag"),
    ("notes: !x y", 1, "notes: a tag"),
    ("sft: !!set {a, b}", 1, "sft: a tag"),
    ("rlhf: !!omap [a: 1]", 1, "rlhf: a tag"),
    ("notes: !!binary aGk=", 1, "notes: a tag"),
    ("preset: mini\n1: 2", 2, "a key must be the name of a setting, not '1'"),
    ("[a, b]: 3", 1, "a key must be the name of a setting"),
    ("{a: b}: 3", 1, "a key must be the name of a setting"),
    ("null: 3", 1, "a key must be the name of a setting"),
    ("? ", 1, "a key must be the name of a setting"),
    ('notes: "\\ud83d"', 1, "half a character"),
    ("preset: mini\n---\npreset: mini", 2, "broken YAML"),
    ("preset: mini\n...\nx", 3, "broken YAML"),
    ("", 1, "the recipe is empty"),
    ("# nothing\n", 1, "the recipe is empty"),
    ("---\n", 1, "the recipe is empty"),
    ("- a\n- b", 1, "a recipe is a mapping"),
    ("mini", 1, "a recipe is a mapping"),
    ("sft: " + "[" * 5000 + "]" * 5000, 1, "nested too deeply"),
    ("[" * 5000, 1, "nested too deeply"),
    ("sft: " + "{a: " * 5000, 1, "nested too deeply"),
    ("- " * 5000 + "a", 1, "nested too deeply"),
    ("\n".join(" " * i + "a:" for i in range(400)), 12, "nested too deeply"),
    ("sft:\n\texamples: 3", 2, "broken YAML"),
    ("sft: {examples: [1}", 1, "broken YAML"),
]


@pytest.mark.parametrize("text, line, says", TOWN, ids=[text[:50] for text, _, _ in TOWN])
def test_mistakes_in_a_recipe_are_named_with_their_line(tmp_path, text, line, says):
    file = tmp_path / "r.yaml"
    file.write_text(text + "\n")
    with pytest.raises(LabError) as e:
        load_recipe(file)
    assert str(e.value).startswith(f"{file}:{line}: ") and says in str(e.value), e.value
    assert "\n" not in str(e.value) and len(str(e.value)) < 600


def test_what_stands_there_and_the_default_are_said(tmp_path):
    (tmp_path / "r.yaml").write_text("preset: smoke\nsft:\n  examples: many\n")
    with pytest.raises(LabError) as e:
        load_recipe(tmp_path / "r.yaml")
    assert str(e.value) == (
        f"{tmp_path / 'r.yaml'}:3: sft.examples must be a whole number, not 'many' (it is 120 by default)"
    )


@pytest.mark.parametrize(
    "content, says",
    [
        ("notes: Größe".encode("latin-1"), "UTF-8"),
        ("preset: mini".encode("utf-16"), "UTF-8"),
        ("preset: mini".encode("utf-16-le"), "not a text file"),
        (b"notes: \x00", "not a text file"),
        (b"\x89PNG\r\n\x1a\n\xff", "UTF-8"),
        (b"# " + b"x" * 200_001, "larger than 200,000 bytes"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, says):
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(LabError, match=rf"r\.yaml: .*{says}"):
        load_recipe(tmp_path / "r.yaml")


def test_paths_that_are_no_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / ("x" * 300), "nul\0nul", "/dev/zero", tmp_path / "pipe"):
        with pytest.raises(LabError, match="give the path of a recipe file"):
            load_recipe(path)


def test_what_yaml_allows_and_is_clear_is_taken(tmp_path):
    (tmp_path / "r.yaml").write_bytes(
        b"\xef\xbb\xbfpreset: smoke\r\nsft:\r\n  epochs: 2\r\n  optim: {lr: 1e-4}\r\n"
        b"notes: '12'\r\ncompare_heads: False\r\nnoisy: {examples: 012}\r\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.sft.epochs == 2.0 and isinstance(recipe.sft.epochs, float) and recipe.sft.optim.lr == 1e-4
    assert recipe.notes == "12" and recipe.compare_heads is False and recipe.noisy.examples == 12
    assert recipe.sft.examples == PRESETS["smoke"].sft.examples


REAL_TEXT = """data:
  pretrain: {files: [a.txt]}
  sft: {files: [a.jsonl]}
  helpful: {files: [a.jsonl]}
  harmless: {files: [a.jsonl]}
pretrain:
  model: {vocab_size: 512, dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, max_seq_len: 512}
"""


@pytest.mark.parametrize(
    "before, after, line, says",
    [
        ("sft: {files: [a.jsonl]}", "sft: {}", 3, "data.sft names neither files nor hub"),
        ("  sft: {files: [a.jsonl]}\n", "", 1, "data.sft names neither files nor hub"),
        (
            "harmless: {files: [a.jsonl]}",
            "harmless: {files: [a.jsonl], max_tokens: 600}",
            5,
            "data.harmless.max_tokens must be at most the model's context",
        ),
        (
            "sft: {files: [a.jsonl]}",
            "sft: {files: [a.jsonl], max_answer_tokens: 300}",
            3,
            "data.sft.max_answer_tokens must be at most max_tokens (256)",
        ),
        ("sft: {files: [a.jsonl]}", "sft: {files: [a.jsonl], columns: {promt: x}}", 3, "columns.promt must be one of"),
        ("sft: {files: [a.jsonl]}", "sft: {files: [a.jsonl], columns: {prompt: 3}}", 3, "columns.prompt must be text"),
        ("sft: {files: [a.jsonl]}", "sft: {files: ['']}", 3, "data.sft.files[0] must not be empty"),
        (
            "max_seq_len: 512}",
            "max_seq_len: 256}\n  seq_len: 64\nprompt_tokens: 220",
            9,
            "prompt_tokens is too much: prompts of 220 tokens and answers of 48 do not fit",
        ),
        ("max_seq_len: 512}", "max_seq_len: 256}", 7, "pretrain.seq_len must be at most the model's context"),
        (", ffn_dim: 64", "", 7, "pretrain.model.ffn_dim is missing"),
        ("  model:", "  modle:", 7, "unknown setting pretrain.modle"),
        ("pretrain:\n  model", "preset: mini\npretrain:\n  model", 6, "unknown setting preset"),
        ("{files: [a.txt]}", "{files: [a.txt], rows: -1}", 2, "data.pretrain.rows must not be negative"),
    ],
)
def test_mistakes_in_a_recipe_on_real_text(tmp_path, before, after, line, says):
    file = tmp_path / "r.yaml"
    file.write_text(REAL_TEXT)
    assert load_real_recipe(file).pretrain.config.context == 512
    assert REAL_TEXT.count(before) == 1
    file.write_text(REAL_TEXT.replace(before, after))
    with pytest.raises(LabError) as e:
        load_real_recipe(file)
    assert str(e.value).startswith(f"{file}:{line}: ") and says in str(e.value), e.value


def test_real_text_needs_sizes_or_a_checkpoint(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(REAL_TEXT.split("pretrain:\n")[0])
    with pytest.raises(LabError, match=r"pretrain\.model is missing"):
        load_real_recipe(file)
    start = Path(__file__).parents[1] / "data" / "run" / "base"
    file.write_text(f"start_from: {start}\n" + REAL_TEXT.split("pretrain:\n")[0].replace("pretrain", "refusals"))
    assert load_real_recipe(file).start_from == str(start)


# ---- a recipe like another ----------------------------------------------------------------------------------------


def test_a_recipe_like_another_holds_only_what_differs(tmp_path):
    (tmp_path / "below.yaml").write_text(REAL_TEXT)
    file = tmp_path / "above.yaml"
    file.write_text("like: below.yaml\nprompt_tokens: 99\npretrain: {model: {n_layers: 3}}\n")
    below, above = load_real_recipe(tmp_path / "below.yaml"), load_real_recipe(file)
    assert (above.prompt_tokens, above.pretrain.config.n_layers) == (99, 3)
    model = {**below.pretrain.model, "n_layers": 3}
    assert above == replace(below, prompt_tokens=99, pretrain=replace(below.pretrain, model=model))
    third = tmp_path / "third.yaml"
    third.write_text("like: above.yaml\nprompt_tokens: 98")
    assert load_real_recipe(third) == replace(above, prompt_tokens=98)
    town = tmp_path / "town.yaml"
    town.write_text("preset: smoke\nsft: {examples: 5}")
    file.write_text("like: town.yaml\nsft: {epochs: 7.0}")
    smoke = PRESETS["smoke"]
    assert load_recipe(file) == replace(smoke, sft=replace(smoke.sft, examples=5, epochs=7.0))


@pytest.mark.parametrize(
    ("above", "below", "where", "line", "says"),
    [
        ("like: below.yaml\nsft: {examples: 0}", "preset: smoke", "above", 2, "sft.examples must be at least 1"),
        ("sft: {examples: 5}\nlike: below.yaml", "\nsft: {examples: 0}", "below", 2, "must be at least 1"),
        ("like: below.yaml\nrlhf: {ppo: {batch: 8}}", "preset: mini", "above", 2, "minibatch must be at most batch"),
        ("like: [below.yaml]", "preset: smoke", "above", 1, "like must be the path of another recipe"),
        ("\nlike: other.yaml", "preset: smoke", "above", 2, "like names no file"),
        ('like: "a\\0b"', "preset: smoke", "above", 1, "like names no file"),
        ("like: below.yaml", "\nlike: above.yaml", "below", 2, "must stand alone"),
        ("like: above.yaml", "preset: smoke", "above", 1, "must stand alone"),
        ("sft: {like: below.yaml}", "preset: smoke", "above", 1, "unknown setting sft.like"),
    ],
)
def test_what_is_wrong_in_either_of_two_recipes_is_named_with_its_file(tmp_path, above, below, where, line, says):
    (tmp_path / "above.yaml").write_text(above)
    (tmp_path / "below.yaml").write_text(below)
    with pytest.raises(LabError) as e:
        load_recipe(tmp_path / "above.yaml")
    assert str(e.value).startswith(f"{tmp_path / where}.yaml:{line}: ") and says in str(e.value), e.value


# ---- settings made in Python --------------------------------------------------------------------------------------


def test_settings_made_in_python_are_checked_too():
    for make, says in (
        (lambda: Optim(lr=-1.0), "Optim: lr must not be negative"),
        (lambda: Optim(math.nan), "Optim: lr must be"),
        (lambda: Optim(1e-3, 0.02, 2.0), "Optim: final must be at most 1"),
        (lambda: Optim(lr=True), "a number"),
        (lambda: PPOSettings(iterations=0), "PPOSettings: iterations must be at least 1"),
        (lambda: PPOSettings(batch=8), "PPOSettings: minibatch must be at most batch"),
        (lambda: replace(PPOSettings(), optim={"lr": 1.0}), "PPOSettings: optim must be a mapping"),
        (lambda: PretrainSettings({"vocab_size": 512}), "PretrainSettings: model.dim is missing"),
    ):
        with pytest.raises(LabError) as e:
            make()
        assert says in str(e.value), e.value
    with pytest.raises(TypeError):
        Optim(1e-3, lr=1e-3)
    with pytest.raises(TypeError):
        Optim(*[0.1] * 20)
    assert Optim(1, betas=(0, 0.5)) == Optim(lr=1.0, betas=(0.0, 0.5))


# ---- whatever a file holds ---------------------------------------------------------------------------------------

NAMES = sorted({name for _, before, _ in ALL.values() for path, _ in leaves(type(before)) for name in path})
HUGE = "<huge>"  # stands for a number of 5,000 digits
PIECES = [
    *NAMES,
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    " ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a",
    "*a",
    "<<",
    "!!int",
    "|",
    ">",
    "'",
    '"',
    "!!python/name:os",
    "\\ud800",
    "#",
    "? ",
    "---",
    "...",
    "%YAML 9",
    "\t",
    "1e999",
    ".nan",
    "-.inf",
    "1_0",
    "0x1",
    "1:30",
    "2024-01-01",
    "yes",
    "null",
    "~",
    "mini",
    "-1",
    "0",
    "0.5",
    HUGE,
    "\x00",
    "\ufeff",
    "\x85",
    "\u2028",
    "a.jsonl",
    "@",
    "`",
    "=",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["mini", "real", "linear", "test", "1e-4", "0", "a.jsonl"])
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)


@st.composite
def recipe_trees(draw: Any) -> dict[str, Any]:
    """Settings that exist, some of them with values that may or may not fit."""
    base, before, _ = ALL[draw(st.sampled_from(sorted(ALL)))]
    paths = [path for path, _ in leaves(type(before))]
    for path in draw(st.lists(st.sampled_from(paths), max_size=4)):
        base = with_value(base, path, draw(trees))
    return base


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "r.yaml"


pieces = st.lists(st.sampled_from(PIECES), max_size=30).map("".join).map(lambda text: text.replace(HUGE, "9" * 5000))
texts = st.text() | pieces | (trees | recipe_trees()).map(json.dumps) | (trees | recipe_trees()).map(yaml.dump)


@given(st.binary() | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_whatever_a_file_holds_only_a_lab_error_comes_out(file, content):
    file.write_bytes(content)
    for load, kind in ((load_recipe, Recipe), (load_real_recipe, RealRecipe)):
        try:
            recipe = load(file)
        except LabError as e:
            assert str(e).startswith(str(file)) and len(str(e).splitlines()) == 1, e
            continue
        assert isinstance(recipe, kind)
        json.dumps(asdict(recipe), allow_nan=False, ensure_ascii=False).encode()
