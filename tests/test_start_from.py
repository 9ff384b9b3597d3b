"""Starting from a checkpoint: its rates, its tokens, its content, and what it must not forget."""

import dataclasses
import json
import os
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.engine import parallel
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.engine.runs import Run
from llama2lab.engine.state import module_tensors
from llama2lab.model.chat import CHAT_TEMPLATE, encode_chat
from llama2lab.model.checkpoint import checkpoint_digest, link_model, load_model, parameters_of, save_model
from llama2lab.model.generate import generate
from llama2lab.model.network import SIZES, Llama
from llama2lab.model.tokenizer import load_tokenizer, train_tokenizer
from llama2lab.report.page import report
from llama2lab.report.summary import load_run, stage_table
from llama2lab.run import start_from
from llama2lab.run.presets import RealRecipe, load_real_recipe, preset
from llama2lab.run.real import RealWorld
from llama2lab.run.realsplits import load_texts
from llama2lab.run.recipe import base_stage, run_real, tokenizer_stage
from llama2lab.run.start_from import for_checkpoint, hasty, learning_rate, with_control_tokens, with_room, worsened
from llama2lab.stages.pretrain import fit_packed
from llama2lab.stages.reward import RewardModel, load_reward, save_reward
from llama2lab.stages.rounds import Workshop

RECIPE = Path(__file__).parents[1] / "data" / "recipes" / "real.yaml"
CPU = Machine(torch.device("cpu"), "fp32")
NANO = SIZES["nano"]
TOKENIZER = train_tokenizer(
    ["the mill on the hill, and a cat that sees a red ball"] * 9, 300, chat_template=CHAT_TEMPLATE
)

OWN = """
data:
  pretrain: {files: [stories.txt]}
  sft: {files: [chat.jsonl], columns: {prompt: ask, answer: say}, max_tokens: 64}
  helpful: {files: [helpful.jsonl], max_tokens: 64}
  harmless: {files: [harmless.jsonl], max_tokens: 64}
sft: {examples: 30, epochs: 1.0, seq_len: 64}
helpfulness: {margin: none, head: linear, batch_pairs: 16}
safety: {margin: none, batch_pairs: 16}
ppo: {iterations: 1, batch: 8, minibatch: 8, critic_warmup: 0, max_new_tokens: 8}
evaluate: {stories: 8, prompts: 4, sample_stories: 0}
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of own data; `start` in it is a checkpoint of nothing in particular."""
    rng = random.Random(0)

    def say(n: int) -> str:
        return " ".join(rng.choices(["the", "cat", "dog", "sees", "likes", "a", "red", "ball", "and", "runs"], k=n))

    def turns(question: str, answer: str) -> list[dict]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "stories.txt").write_text("\n\n".join(f"Story {i}. {say(20)}." for i in range(80)))
    rows = {"chat": [{"ask": f"What {say(3)}?", "say": f"It {say(4)}."} for _ in range(40)]}
    for kind in ("helpful", "harmless"):
        questions = [f"{kind} {i} {say(3)}?" for i in range(80)]
        rows[kind] = [{"chosen": turns(q, f"Yes {say(4)}."), "rejected": turns(q, f"No {say(2)}.")} for q in questions]
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    save_model(folder / "start", Llama(NANO, seed=1), TOKENIZER)
    return tmp_path


def recipe_of(own: Path, text: str = "") -> Path:
    (own / "own.yaml").write_text(f"start_from: start\n{OWN}{text}")
    return own / "own.yaml"


# ---- learning rates ------------------------------------------------------------------------------------------


def test_rates_follow_the_size_of_a_trained_model():
    assert learning_rate(2e-5, 7_000_000_000, 1e-3) == learning_rate(2e-5, 135_000_000, 1e-3) == 2e-5
    assert learning_rate(2e-5, 260_000, 1e-3) == pytest.approx(4.6e-4, rel=0.02)
    assert learning_rate(2e-5, 1000, 1e-3) == 1e-3
    small, large = (for_checkpoint(RealRecipe(), n) for n in (260_000, 135_000_000))
    for name in start_from.RATES:
        default = start_from.setting(RealRecipe(), name)
        rates = [start_from.setting(recipe, name) for recipe in (large, small)]
        assert rates[0].lr < rates[1].lr <= default.lr, name
        assert rates[0].gain_lr == rates[1].gain_lr == 1.0, name
        assert dataclasses.replace(rates[0], lr=default.lr, gain_lr=default.gain_lr) == default
    assert large.rejection.optim.lr == 2e-5 and large.ppo.optim.lr == 1e-6


def test_what_the_recipe_sets_itself_stays(own):
    own_rate = load_real_recipe(recipe_of(own, "rejection: {optim: {lr: 1.0e-3}}\n"), own / "data")
    assert own_rate.rejection.optim == dataclasses.replace(RealRecipe().rejection.optim, lr=1e-3, gain_lr=1.0)
    assert own_rate.sft.optim.lr == for_checkpoint(RealRecipe(), parameters_of(own / "data" / "start")).sft.optim.lr
    assert parameters_of(own / "data" / "start") == sum(p.numel() for p in Llama(NANO).parameters())
    # Where the upper layers alone are trained, they count alone.
    upper = sum(p.numel() for p in Llama(NANO).layers[-1].parameters())
    assert parameters_of(own / "data" / "start", 1) == upper
    of_upper = load_real_recipe(recipe_of(own, "trained_layers: 1\n"), own / "data")
    assert of_upper.ppo.optim.lr == for_checkpoint(RealRecipe(), upper).ppo.optim.lr > own_rate.ppo.optim.lr
    # Without a checkpoint everything is as it was.
    assert load_real_recipe(RECIPE).sft.optim == RealRecipe().sft.optim == Optim(lr=1e-3, warmup=0.05)
    assert preset("mini").rlhf.rejection.optim == Optim(lr=2e-4, warmup=0.05, gain_lr=200.0)


@pytest.mark.parametrize(
    "find, new, line, says",
    [
        ("answer: say}, max_tokens: 64", "answer: say}, max_tokens: 257", 5, "data.sft.max_tokens must be at most"),
        ("helpful.jsonl], max_tokens: 64", "helpful.jsonl], max_tokens: 240", 13, "prompt_tokens is too much"),
    ],
)
def test_texts_longer_than_the_checkpoint_reads_are_refused_before_anything_is_trained(own, find, new, line, says):
    file = recipe_of(own, "prompt_tokens: 240\n")
    file.write_text(file.read_text().replace(find, new))
    with pytest.raises(LabError) as e:
        load_real_recipe(file, own / "data")
    assert str(e.value).startswith(f"{file}:{line}: {says}") and "256" in str(e.value)


def test_hasty_rates_are_named():
    recipe = for_checkpoint(RealRecipe(), 135_000_000)
    assert hasty(recipe, 135_000_000) == []
    fast = dataclasses.replace(recipe, rejection=RealRecipe().rejection)
    assert [line.split(" is ")[0] for line in hasty(fast, 135_000_000)] == [
        "rejection.optim.lr",
        "rejection.optim.gain_lr",
    ]


# ---- what a stage must not forget ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "after, gain_lr, words",
    [
        (0.95, 1.0, ""),
        (0.7, 1.0, ""),
        (1.2, 1.0, "lower sft.optim.lr (it is 0.001)"),
        (4.5, 400.0, "lower sft.optim.gain_lr (it is 400)"),
        (float("nan"), 1.0, "lower sft.optim.lr"),
    ],
)
def test_worse_reading_is_said(after, gain_lr, words):
    said = worsened("sft", "sft.optim", Optim(lr=1e-3, gain_lr=gain_lr), 0.9, after)
    assert words in said and bool(said) == bool(words)


@pytest.mark.realdata
def test_a_wrecking_rate_is_said_loudly(own, capsys):
    data = os.environ.get("LLAMA2LAB_DATA")
    if not data or not (Path(data) / "stories260k").is_dir():
        pytest.skip("LLAMA2LAB_DATA names no folder with stories260k")
    (own / "data" / "stories.txt").write_text(
        "\n\n".join(
            json.loads(line)["text"].replace("\n", " ")
            for line in (Path(data) / "tinystories" / "stories.jsonl").read_text().splitlines()[:80]
        )
    )
    path = recipe_of(own, "rejection: {prompts: 4, unsafe_prompts: 4, k: 2, chat_rows: 8, optim: {lr: 0.1}}\n")
    path.write_text(path.read_text().replace("start_from: start", f"start_from: {data}/stories260k"))
    results = run_real(path, own / "run", 0, "cpu", "fp32", own / "data")
    said = {name: stage["metrics"].get("warnings") for name, stage in results["stages"].items()}
    assert said["sft"] == [] and said["base"] == []  # the rule's own rate does no harm
    [warning] = said["rlhf-v1"]
    assert "rlhf-v1 reads held-out text worse" in warning and "lower rejection.optim.lr (it is 0.1)" in warning
    log = capsys.readouterr().err
    assert f"WARNING: {warning}" in log and "WARNING: rejection.optim.lr is 0.1, where 260,032 parameters" in log
    assert f"WARNING: {warning}" in stage_table(load_run(own / "run"))
    assert warning in report([own / "run"], own / "page.html").read_text()


# ---- tokens --------------------------------------------------------------------------------------------------


def test_only_the_upper_layers_of_a_run_are_trained(own):
    run_real(recipe_of(own, "trained_layers: 1\n"), own / "run", 0, "cpu", "fp32", own / "data")
    base = load_model(own / "run" / "base").state_dict()
    trained = ["sft", "reward-helpfulness-v1", "reward-safety-v1", "judge-safety", "rlhf-v1", "rlhf-v2"]
    for stage in trained:
        folder = own / "run" / stage
        model = load_model(folder) if stage in ("sft", "rlhf-v1", "rlhf-v2") else load_reward(folder).backbone
        changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, base[name])}
        upper = {name for name in changed if name.startswith(("layers.1.", "norm."))}
        assert upper and changed <= upper | {"lm_head.weight"}, stage  # NANO's head is not tied, and is trained too


def letters(**settings) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, a beginning (256) and an end (257), which knows nothing of the chat format."""
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", **settings
    )


@pytest.mark.parametrize("tie", [False, True])
def test_a_padded_vocabulary_gives_new_tokens_no_row_of_zeros(tie):
    before, (after, lacked) = letters(), with_control_tokens(letters())
    assert len(before) == 258 and len(lacked) == 8
    model = Llama(dataclasses.replace(NANO, vocab_size=280, tie_embeddings=tie), seed=3)
    tables = ["embed.weight"] + ([] if tie else ["lm_head.weight"])
    with torch.no_grad():
        for name in tables:
            model.get_parameter(name)[258:] = 0.0
    grown = with_room(model, before, after, seed=0)
    assert grown.config.vocab_size == 280
    for name in tables:
        old, new = model.get_parameter(name), grown.get_parameter(name)
        assert torch.equal(new[:258], old[:258])
        assert torch.equal(new[after.bos_token_id], old[256]) and torch.equal(new[after.eos_token_id], old[257])
        for token in set(lacked) - {"<s>", "</s>"}:
            row = new[after.get_vocab()[token]]
            assert row.abs().max() > 0 and (row - old[:258].mean(0)).norm() < old[:258].norm(dim=1).mean()
        assert not new[266:].any()  # padding stays padding
    assert (grown.lm_head.weight is grown.embed.weight) == tie
    with pytest.raises(LabError, match="has 258 tokens, the model has rows for 257"):
        with_room(Llama(dataclasses.replace(NANO, vocab_size=257)), before, after, 0)


def test_new_tokens_never_take_the_id_of_another():
    gaps = letters()
    parts = json.loads(gaps.backend_tokenizer.to_str())
    parts["model"]["vocab"] = {token: 2 * i for token, i in parts["model"]["vocab"].items()}
    gaps = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts | {"added_tokens": []})))
    with pytest.raises(LabError, match="with ids of their own"):
        with_control_tokens(gaps)


def test_a_token_without_a_row_is_one_line(tmp_path):
    model = Llama(dataclasses.replace(NANO, vocab_size=264), seed=0)
    high = encode_chat(TOKENIZER, [{"role": "user", "content": "the mill"}], add_generation_prompt=True)[0]
    assert max(high) >= 264
    for read in (
        lambda: generate(model, [high], 3),
        lambda: model(torch.tensor([high])),
        lambda: fit_packed(model, pack([(high, [1] * len(high))], 32, 0, 3), 1, 32, Optim(lr=1e-3), 0, CPU),
    ):
        with pytest.raises(LabError, match=r"token \d+, the model has rows for 264 only"):
            read()


# ---- content -------------------------------------------------------------------------------------------------


def test_another_checkpoint_at_the_same_path_is_noticed(own, tmp_path):
    start = own / "data" / "start"
    recipe = load_real_recipe(recipe_of(own), own / "data")
    texts = load_texts(recipe, own / "data", 0)

    def base_of(out: str) -> tuple[float, int]:
        shop = Workshop(Run(tmp_path / out, {"seed": 0}, say=lambda _: None), 0, CPU, None, None)
        world = RealWorld(recipe, 0, texts, folder=own / "data")
        tokenizer_stage(world, shop)
        base_stage(world, shop)
        weights = tmp_path / out / "base" / "model.safetensors"
        return load_model(tmp_path / out / "base").embed.weight[9, 0].item(), weights.stat().st_mtime_ns

    first = base_of("run")
    assert base_of("run") == first  # nothing is rebuilt
    digest = checkpoint_digest(start)
    start.rename(own / "data" / "elsewhere")
    assert checkpoint_digest(own / "data" / "elsewhere") == digest
    (own / "data" / "elsewhere" / "notes.json").write_text("{}")  # a run's stage that was measured meanwhile
    assert checkpoint_digest(own / "data" / "elsewhere") == digest
    save_model(start, Llama(NANO, seed=2), TOKENIZER)
    assert checkpoint_digest(start) != digest
    assert base_of("run")[0] == load_model(start).embed.weight[9, 0].item() != first[0]
    (start / "tokenizer_config.json").write_text((start / "tokenizer_config.json").read_text() + " ")
    assert checkpoint_digest(start) not in (digest, checkpoint_digest(own / "data" / "elsewhere"))


# ---- memory and disk -----------------------------------------------------------------------------------------


def test_a_reference_is_linked_and_not_written_again(tmp_path):
    chat = Llama(dataclasses.replace(NANO, vocab_size=300), seed=1)
    save_model(tmp_path / "sft", chat, TOKENIZER)
    (tmp_path / "sft" / "rows.jsonl").write_text("{}")
    model = RewardModel(Llama(dataclasses.replace(NANO, vocab_size=300), seed=2), load_model(tmp_path / "sft"))
    save_reward(tmp_path / "reward", model, TOKENIZER, tmp_path / "sft")
    linked = tmp_path / "reward" / "reference" / "model.safetensors"
    assert linked.stat().st_ino == (tmp_path / "sft" / "model.safetensors").stat().st_ino
    assert not (linked.parent / "rows.jsonl").exists()
    save_model(tmp_path / "sft", Llama(dataclasses.replace(NANO, vocab_size=300), seed=7), TOKENIZER)
    reference = load_reward(tmp_path / "reward").reference  # what happens to the one does not reach the other
    assert torch.equal(reference.embed.weight, chat.embed.weight)


@pytest.mark.parametrize(
    "extra",
    [
        {"head": "lineer"},
        {"head": "linear"},
        {"head": "linear", "a": "x", "offset": 0.0},
        {"head": "linear", "a": 0.0, "offset": [1]},
    ],
)
def test_a_reward_head_of_the_wrong_shape_is_one_line(tmp_path, extra):
    save_reward(tmp_path / "r", RewardModel(Llama(NANO)), TOKENIZER)
    load_reward(tmp_path / "r")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    (tmp_path / "r" / "config.json").write_text(json.dumps(config | {"llama2lab": extra}))
    with pytest.raises(LabError, match=r"config.json: llama2lab: .*; train it again"):
        load_reward(tmp_path / "r")


def test_where_there_are_no_links_files_are_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(1, "Operation not permitted")

    save_model(tmp_path / "m", Llama(NANO, seed=1), TOKENIZER)
    monkeypatch.setattr(os, "link", no_links)
    link_model(tmp_path / "m", tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {p.name for p in (tmp_path / "m").iterdir()}
    assert torch.equal(load_model(tmp_path / "copy").embed.weight, load_model(tmp_path / "m").embed.weight)


def test_a_state_that_is_saved_is_not_copied_first():
    model = Llama(NANO)
    optimizer = torch.optim.AdamW(model.parameters())
    saved = module_tensors("m", model, optimizer)
    assert all(saved[f"m.{name}"].data_ptr() == p.data_ptr() for name, p in model.named_parameters())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says where memory comes from")
def test_a_loaded_model_is_the_files_own_pages(tmp_path):
    """Weights take memory of their own only once they are changed, and the file never changes with them."""
    save_model(tmp_path / "m", Llama(NANO, seed=1), TOKENIZER)
    whole = (tmp_path / "m" / "model.safetensors").read_bytes()
    model = load_model(tmp_path / "m")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "model.safetensors" in line]
    ends = [[int(x, 16) for x in line[0].split("-")] for line in maps]
    assert any(start <= model.embed.weight.data_ptr() < end for start, end in ends)
    with torch.no_grad():
        model.embed.weight.zero_()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == whole


def test_many_small_parts_give_the_gradient_of_the_batch(monkeypatch):
    model = Llama(dataclasses.replace(NANO, n_layers=1), seed=0)
    data = pack([(list(range(10, 10 + n)), [1] * n) for n in range(5, 30)], 32, 0, 3)
    parameters = list(model.parameters())

    def loss_of(rows):
        from llama2lab.stages.pretrain import rows_loss

        loss, count = rows_loss(model, data, rows, CPU)
        return loss, float(count), {"loss": loss.item()}

    found = {}
    for large in (False, True):
        parts = parallel.split(range(len(data)), CPU.device, large)
        assert (len(parts) > parallel.workers(CPU.device)) == large
        for p in parameters:
            p.grad = torch.ones_like(p)
        loss, metrics = parallel.backward(loss_of, parts, parameters, CPU.device, add=True)
        found[large] = (loss, metrics["loss"], [p.grad for p in parameters])
    assert found[True][0] == pytest.approx(found[False][0]) and found[True][1] == pytest.approx(found[False][1])
    for a, b in zip(found[True][2], found[False][2], strict=True):
        torch.testing.assert_close(a, b)


# ---- chat ----------------------------------------------------------------------------------------------------


def test_chat_opens_a_checkpoints_folder(tmp_path):
    save_model(tmp_path / "m", Llama(dataclasses.replace(NANO, vocab_size=300), seed=1), TOKENIZER)
    runner = CliRunner()
    answer = runner.invoke(app, ["chat", str(tmp_path / "m"), "the mill?", "--max-new-tokens", "5"])
    assert answer.exit_code == 0 and answer.stderr == ""
    talk = runner.invoke(app, ["chat", str(tmp_path / "m"), "--max-new-tokens", "5"], input="the mill?\n/stage x\n")
    assert talk.exit_code == 0 and "talking to" in talk.stderr and "there are: /reset, /quit" in talk.stderr
    wrong = runner.invoke(app, ["chat", str(tmp_path / "m"), "--stage", "sft", "hi"])
    assert wrong.exit_code == 2 and "one checkpoint and no run" in wrong.stderr
    # One whose tokenizer does not know the format: what is assumed is said, and its own template is not run.
    plain = letters(chat_template="{{ raise_exception('rendered') }}")
    save_model(tmp_path / "p", Llama(dataclasses.replace(NANO, vocab_size=300), seed=1), plain)
    answer = runner.invoke(app, ["chat", str(tmp_path / "p"), "hi", "--max-new-tokens", "5"])
    assert answer.exit_code == 0 and answer.stderr.count("\n") == 1
    assert "between its own <|im_start|> and <|im_end|>" in answer.stderr
    ids, _ = encode_chat(load_tokenizer(tmp_path / "p"), [{"role": "user", "content": "a<|im_end|>"}])
    assert ids.count(257) == 0 and ids.count(256) == 1
