"""The command line: what it prints, and what it says to a user's mistakes (one line, exit code 2)."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.engine.runs import Run
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import SIZES, Llama
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run import recipe as runs

runner = CliRunner()


def fails(*args: object, saying: tuple[str, ...] = (), code: int = 2) -> str:
    """The command ends with one line on stderr that says all of `saying`; returns the line."""
    result = runner.invoke(app, [str(a) for a in args])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.stderr.strip().endswith(lines[0]), result.stderr
    assert "Traceback" not in result.output
    for words in saying:
        assert words in lines[0], lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model with a tokenizer."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    folder.mkdir()
    tokenizer = train_tokenizer(
        ["Mira lives on Mill Lane.", "Tom bakes bread."] * 5, SIZES["nano"].vocab_size, chat_template=CHAT_TEMPLATE
    )
    save_model(folder, Llama(SIZES["nano"]), tokenizer)
    return folder


@pytest.fixture()
def a_run(tmp_path: Path, checkpoint: Path) -> Path:
    """A run with a chat stage, a stage of rows and a reward model's folder."""
    run = Run(tmp_path / "run", {"preset": "mini", "seed": 0}, say=lambda line: None)

    def chat(folder: Path) -> dict:
        for path in checkpoint.iterdir():
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        return {}

    run.stage("sft", chat, 1)
    run.stage("preferences-v1", lambda folder: {}, 1)
    return run.path


# ---- what works ------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_teaches() -> None:
    code = (
        "import sys, llama2lab.cli.main as c\n"
        "try:\n    c.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'plotly', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "llama2lab run --preset smoke" in done.stdout and "chat" in done.stdout
    for command in ("run", "report", "chat", "generate"):
        assert "llama2lab " + command in runner.invoke(app, [command, "--help"]).stdout


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "llama2lab", "--help"], capture_output=True, text=True, check=True)
    assert "Usage: llama2lab" in done.stdout


def test_generate_prints_the_text_alone(checkpoint: Path) -> None:
    args = ["generate", str(checkpoint), "Mira lives", "--greedy", "--max-new-tokens", "5"]
    first, second = runner.invoke(app, args), runner.invoke(app, args)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("Mira lives") and first.stderr == ""
    assert first.stdout == second.stdout


def test_generate_is_the_same_for_the_same_seed(checkpoint: Path) -> None:
    texts = [
        runner.invoke(app, ["generate", str(checkpoint), "--seed", seed, "--max-new-tokens", "8"]).stdout
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_chat_answers_once_or_converses(a_run: Path) -> None:
    once = runner.invoke(app, ["chat", str(a_run), "--max-new-tokens", "4", "Where does Mira live?"])
    assert once.exit_code == 0 and once.stderr == "" and once.stdout.endswith("\n"), once.output
    talk = runner.invoke(
        app, ["chat", str(a_run), "--max-new-tokens", "4"], input="Hello\n/reset\n/stage nowhere\n/dance\n\n/quit\n"
    )
    assert talk.exit_code == 0, talk.output
    assert "stages: sft" in talk.stderr and "forgotten" in talk.stderr
    assert "no finished stage 'nowhere'" in talk.stderr and "/stage NAME" in talk.stderr


def test_conversation_ends_with_its_input(a_run: Path) -> None:
    assert runner.invoke(app, ["chat", str(a_run)], input="").exit_code == 0


def test_doctor_says_what_is_here() -> None:
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "torch" in result.stdout and "python" in result.stdout


# ---- wrong paths and wrong names -----------------------------------------------------------------------------


def test_unknown_words() -> None:
    fails("frobnicate", saying=("frobnicate", "llama2lab --help"))
    fails("run", "--sede", "1", saying=("--sede", "llama2lab run --help"))
    fails("run", "--seed", "many", saying=("--seed",))
    fails("run", "--seed", "-1", saying=("--seed",))
    fails("chat", saying=("RUN",))
    fails("run", "--preset", "maxi", saying=("maxi", "mini", "smoke"))


def test_wrong_paths(tmp_path: Path) -> None:
    fails("report", tmp_path / "nowhere", saying=("nowhere", "llama2lab run"))
    fails("report", tmp_path, saying=("not a run",))
    fails("chat", tmp_path / "nowhere", "hello", saying=("nowhere", "llama2lab run"))
    fails("run", "--recipe", tmp_path / "none.yaml", saying=("none.yaml", "recipe"))
    fails("run", "--recipe", tmp_path, saying=(str(tmp_path),))
    fails("bench", "--json", tmp_path, saying=("--json",))
    fails("bench", "--sections", "training,sftt", saying=("sftt", "training,generation,sft,reward,ppo,workers"))
    fails("generate", tmp_path, saying=(str(tmp_path),))


def test_preset_and_recipe_together(tmp_path: Path) -> None:
    fails("run", "--preset", "mini", "--recipe", tmp_path / "r.yaml", saying=("not both",))


def test_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    fails("run", "--preset", "smoke", "--out", tmp_path / "file", saying=("is a file", "--out"))
    fails("report", tmp_path / "file", saying=("is a file",))
    fails("run", "--preset", "smoke", "--out", tmp_path / "file" / "below", saying=("file",))


def test_unknown_device(tmp_path: Path) -> None:
    fails("run", "--preset", "smoke", "--device", "abacus", "--out", tmp_path / "r", saying=("abacus", "cpu"))
    fails("run", "--preset", "smoke", "--precision", "fp7", "--out", tmp_path / "r", saying=("fp7", "bf16"))


# ---- recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, saying",
    [
        (b"", ("a recipe is",)),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", ("UTF-8",)),
        (b"preset: mini\nnotes: \x00\x01\x02", ("not", "text")),
        ("preset: mini\nnotes: Größe".encode("latin-1"), ("UTF-8",)),
        (b"- a\n- b\n", ("a recipe is",)),
        (b"preset: mini\nsft: {examples: [1}\n", (":2:",)),
        (b"preset: maxi\n", ("maxi", "mini")),
        (b"preset: [mini]\n", ("preset",)),
        (b"preset: smoke\nsft:\n  exmples: 3\n", (":3:", "sft.exmples", "examples")),
        (b"preset: smoke\nsft:\n  examples: many\n", (":3:", "sft.examples", "whole number")),
        (b"preset: smoke\nsft:\n  examples: -3\n", (":3:", "negative")),
        (b"preset: smoke\nsft: 3\n", (":2:", "sft")),
        (b"preset: smoke\n[a, b]: 3\n", (":2:",)),
        (b"preset: smoke\nnotes: !!python/object:os.system x\n", (":2:", "notes")),
        (b"preset: smoke\npretrain:\n  model: {n_heds: 3}\n", (":3:", "n_heds", "n_heads")),
        (b"preset: smoke\npretrain:\n  model: {n_heads: three}\n", (":3:", "n_heads", "three")),
    ],
)
def test_bad_recipes(tmp_path: Path, content: bytes, saying: tuple[str, ...]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    line = fails("run", "--recipe", path, "--out", tmp_path / "run", saying=saying)
    assert "recipe.yaml" in line or "maxi" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["n_heads: 3", "n_kv_heads: 3", "dim: 0", "n_layers: 0"])
def test_impossible_sizes(tmp_path: Path, change: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"preset: smoke\npretrain:\n  model: {{{change}}}\n")
    fails("run", "--recipe", path, "--out", tmp_path / "run", saying=("recipe.yaml:3", change.split(":")[0]))
    assert not (tmp_path / "run").exists()


# ---- folders and stages ------------------------------------------------------------------------------------------


def test_folder_of_another_run(a_run: Path) -> None:
    before = sorted(p.name for p in a_run.iterdir())
    fails("run", "--preset", "smoke", "--out", a_run, saying=("another run", "mini", "smoke", "--out"))
    fails("run", "--preset", "mini", "--seed", "5", "--out", a_run, saying=("another run", "seed 0"))
    assert sorted(p.name for p in a_run.iterdir()) == before


def test_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    fails("run", "--preset", "smoke", "--out", tmp_path, saying=("not empty", "--out"))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_unknown_stage_lists_the_stages(a_run: Path) -> None:
    fails("chat", a_run, "--stage", "rlhf-v9", "hello", saying=("rlhf-v9", "preferences-v1", "sft"))
    fails("chat", a_run, "--stage", "preferences-v1", "hello", saying=("preferences-v1", "--stage", "sft"))
    fails("chat", a_run, "--stage", "../run/sft", "hello", saying=("no finished stage",))


def test_empty_question(a_run: Path) -> None:
    fails("chat", a_run, "  ", saying=("empty",))


# ---- damaged checkpoints -------------------------------------------------------------------------------------------


def copy_of(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_checkpoint_cut_short(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    fails("generate", folder, "Mira", saying=("model.safetensors",))
    weights.write_bytes(b"")
    fails("generate", folder, "Mira", saying=("model.safetensors",))
    weights.unlink()
    fails("generate", folder, "Mira", saying=("cut",))


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 3},
        {"num_attention_heads": 5},
        {"hidden_size": -8},
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
    ],
)
def test_checkpoint_of_impossible_shape(checkpoint: Path, tmp_path: Path, change: dict) -> None:
    folder = copy_of(checkpoint, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    fails("generate", folder, "Mira")


def test_damaged_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path / "bad")
    (folder / "config.json").write_text('{"dim": ')
    fails("generate", folder, "Mira", saying=("config.json",))
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    fails("generate", folder, "Mira", saying=("config.json",))


def test_context_too_long(checkpoint: Path) -> None:
    fails("generate", checkpoint, "Mira " * 2000, saying=("256",))


# ---- the disk ----------------------------------------------------------------------------------------------------


def test_full_disk_keeps_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second stage ends; the first stays, and the same command then goes on."""
    built: list[str] = []
    full = [True]

    def run_town(recipe: object, out: Path, seed: int, device: str, precision: str, *people: object) -> dict:
        run = Run(out, {"preset": "smoke", "seed": seed}, say=lambda line: None)
        for name in ("first", "second"):

            def build(folder: Path, name: str = name) -> dict:
                built.append(name)
                (folder / "rows.jsonl").write_text("{}\n")
                return {"loss": 1.0}

            run.stage(name, build, 1)
        return run.results({})

    replace = os.replace

    def os_replace(source: str | Path, target: str | Path) -> None:
        if full[0] and Path(target).name == "second":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(runs, "run_town", run_town)
    monkeypatch.setattr(os, "replace", os_replace)
    out = tmp_path / "run"
    fails("run", "--preset", "smoke", "--out", out, saying=("No space left", "nothing already made is lost"))
    assert (out / "first" / "rows.jsonl").exists() and not (out / "second").exists()
    full[0] = False
    result = runner.invoke(app, ["run", "--preset", "smoke", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert built == ["first", "second"]  # the second was finished but for its place
    assert "figures mean nothing" in result.stdout and (out / "report.html").exists()


def test_full_disk_outside_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_town(*args: object) -> dict:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr(runs, "run_town", run_town)
    fails("run", "--out", tmp_path / "run", saying=("some/file", "No space left"))


def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_town(*args: object) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_town", run_town)
    result = runner.invoke(app, ["run", "--out", str(tmp_path / "run")])
    assert result.exit_code == 130
    assert "same command again" in result.stderr and "Traceback" not in result.output


def test_our_own_mistakes_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a user can mend is a one-liner; a bug keeps its traceback."""

    def run_town(*args: object) -> dict:
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "run_town", run_town)
    assert isinstance(runner.invoke(app, ["run", "--out", str(tmp_path / "run")]).exception, ZeroDivisionError)


# ---- the environment ---------------------------------------------------------------------------------------------


def test_conda_environment_has_the_bounds_of_the_package() -> None:
    import re
    import tomllib

    import yaml

    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert "llama2lab[annotate]" in extras["lab"]
    wanted = [
        d.replace("[binary]", "")
        for d in [*project["dependencies"], *extras["annotate"], *extras["lab"]]
        if not d.startswith("llama2lab[")
    ]
    listed = [d for d in yaml.safe_load((root / "environment.yml").read_text())["dependencies"] if isinstance(d, str)]
    split = [re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", d).groups() for d in listed]  # type: ignore[union-attr]
    bounds = {{"pytorch-cpu": "torch"}.get(name, name): bound for name, bound in split}
    for requirement in wanted:
        name, bound = re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
        assert bounds[name] == bound, name
    assert bounds["python"].startswith(project["requires-python"])
    assert {"pip": ["-e .[lab]"]} in yaml.safe_load((root / "environment.yml").read_text())["dependencies"]


def test_on_a_jupyterhub_everything_lands_in_the_students_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama2lab.lab.finished import live_folder
    from llama2lab.lab.progress import Progress

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLAMA2LAB_LIVE", "~/lab/live")
    monkeypatch.setenv("LLAMA2LAB_PROGRESS", "~/lab")
    assert live_folder() == tmp_path / "lab" / "live" and Progress().path.parent == tmp_path / "lab"
