"""The recipe on real text: readers, malformed rows, splits, and small runs from end to end."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from pathlib import Path

import pytest

from llama2lab.engine.dialogues import Malformed, parse_transcript
from llama2lab.engine.errors import LabError
from llama2lab.run.presets import load_real_recipe
from llama2lab.run.realdata import SourceSettings, data_folder, load_role, parse_pair
from llama2lab.run.realsplits import PARTS, fit_pairs, load_texts, part_of
from llama2lab.run.recipe import run_real
from llama2lab.run.start_from import grow_vocabulary, with_control_tokens

RECIPE = Path(__file__).parent.parent / "data" / "recipes" / "real.yaml"
DATA = os.environ.get("LLAMA2LAB_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="LLAMA2LAB_DATA names no folder with the real data sets")


def pair(question: str, good: str, bad: str) -> dict:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + good, "rejected": start + bad}


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write("\n".join(lines).encode())
    return path


# ---- transcripts and pairs -----------------------------------------------------------------------------------


def test_transcript_becomes_messages():
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nTwo lines, and Human: inside.\n\nHuman: Bye\n\nAssistant: Bye!"
    assert parse_transcript(text) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello.\n\nTwo lines, and Human: inside."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye!"},
    ]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "not a transcript"),
        ("just words", "not a transcript"),
        ("Preface\n\nHuman: Hi\n\nAssistant: Hello", "not a transcript"),
        ("\n\nHuman: Hi\n\nHuman: Hello?\n\nAssistant: Yes", "do not alternate"),
        ("\n\nAssistant: Hello\n\nHuman: Hi", "do not alternate"),
        ("\n\nHuman: Hi\n\nAssistant:  ", "a turn is empty"),
    ],
)
def test_transcripts_that_are_none(text, reason):
    with pytest.raises(Malformed, match=reason):
        parse_transcript(text)


def test_pairs_share_their_prompt():
    row = parse_pair(pair("Why?", "Because.", "No."), {})
    assert row["prompt"] == [{"role": "user", "content": "Why?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Because."}] and row["grade"] == "better"
    with pytest.raises(Malformed, match="equal sides"):
        parse_pair(pair("Why?", "No.", " No. "), {})
    with pytest.raises(Malformed, match="no common prompt"):
        parse_pair({"chosen": pair("A?", "x", "y")["chosen"], "rejected": pair("B?", "x", "y")["rejected"]}, {})
    with pytest.raises(Malformed, match="the last message is no answer"):
        parse_pair(
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: d",
            },
            {},
        )


def test_pairs_with_a_prompt_column_and_in_our_own_schema():
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "grade": "grade"}
    row = parse_pair({"question": "Why?", "good": "So.", "bad": "No.", "grade": "significantly"}, columns)
    assert row["grade"] == "significantly" and row["rejected"] == [{"role": "assistant", "content": "No."}]
    ours = {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "grade": "slightly",
        "safety": "both_safe",
    }
    row = parse_pair(ours, {"prompt": "prompt"})
    assert row == ours
    with pytest.raises(Malformed, match="grade is none of"):
        parse_pair({**ours, "grade": "much"}, {"prompt": "prompt"})


# ---- malformed rows ------------------------------------------------------------------------------------------


def test_malformed_rows_are_counted_and_named_with_their_line(tmp_path):
    rows: list = [pair(f"Question {i}?", "yes", "no") for i in range(12)]
    rows[1] = '{"chosen": "broken'
    rows[3] = {"chosen": 3, "rejected": "x"}
    rows[4] = {"chosen": "\n\nHuman: a\n\nAssistant: b"}
    rows[6] = ["no", "object"]
    rows[8] = pair("Question 8?", "same", "same")
    rows[10] = {"chosen": "", "rejected": ""}
    write_lines(tmp_path / "pairs" / "a.jsonl.gz", rows)
    source = SourceSettings(files=("pairs/*.jsonl.gz",))
    loaded, tally = load_role("helpful", source, tmp_path, max_malformed=0.6)
    assert len(loaded) == 6 and tally.read == 12 and tally.malformed == 6
    place = {reason: [p.removeprefix("pairs/a.jsonl.gz:") for p in places] for reason, places in tally.places.items()}
    assert place == {
        "broken JSON": ["2"],
        "not a list of messages": ["4"],
        "no field 'rejected'": ["5"],
        "not a JSON object": ["7"],
        "equal sides": ["9"],
        "'chosen' is empty": ["11"],
    }
    with pytest.raises(LabError, match=r"6 of 12 rows are malformed.*a\.jsonl\.gz:2"):
        load_role("helpful", source, tmp_path, max_malformed=0.4)


def test_a_single_bad_byte_spoils_one_line_only(tmp_path):
    lines = [json.dumps({"text": f"Story {i}."}).encode() for i in range(30)]
    lines[4] = b'{"text": "\xff"}'
    (tmp_path / "s.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    loaded, tally = load_role("pretrain", SourceSettings(files=("s.jsonl",)), tmp_path)
    assert len(loaded) == 29 and tally.places == {"not UTF-8": ["s.jsonl:5"]}


def test_csv_names_lines_of_the_file(tmp_path):
    with open(tmp_path / "p.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerows([["prompt", "label"], ["two\nlines", "safe"], ["how?", "maybe"], ["why?", "unsafe"], ["cut"]])
    loaded, tally = load_role("refusals", SourceSettings(files=("p.csv",)), tmp_path, max_malformed=0.5)
    assert [row["label"] for row in loaded] == ["safe", "unsafe"]
    assert tally.places == {"label is neither safe nor unsafe": ["p.csv:4"], "wrong number of columns": ["p.csv:6"]}


def test_text_files_are_divided_by_blank_lines(tmp_path):
    (tmp_path / "t.txt").write_text("One.\nStill one.\n\n\nTwo.\n")
    loaded, _ = load_role("pretrain", SourceSettings(files=("t.txt",)), tmp_path)
    assert [row["text"] for row in loaded] == ["One.\nStill one.", "Two."]


def test_parquet_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"story": f"Story {i}."} for i in range(3)]).to_parquet(tmp_path / "s.parquet")
    loaded, _ = load_role("pretrain", SourceSettings(files=("s.parquet",), columns={"text": "story"}), tmp_path)
    assert [row["text"] for row in loaded] == ["Story 0.", "Story 1.", "Story 2."]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"", "a.jsonl: is empty"),
        ("a.jsonl.gz", b"not gzip at all", "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-12], "a.jsonl.gz: cannot be read"),
        ("a.jsonl", bytes(range(256)) * 9, "rows are malformed"),
        ("a.parquet", b"not parquet", "a.parquet: is not a Parquet file"),
        ("a.csv", b"text\n\xff\xfe\n", "a.csv:2: is not CSV"),
        ("a.xlsx", b"PK", "what kind of file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabError, match=message) as e:
        load_role("pretrain", SourceSettings(files=("a.*",)), tmp_path)
    assert "\n" not in str(e.value)


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(tmp_path):
    folder = tmp_path / "data [1]"
    write_lines(folder / "mine*" / "a[b].jsonl", [{"text": "One."}])
    write_lines(folder / "sub" / "b.jsonl", [{"text": "Two."}])
    (folder / "sub" / "c.jsonl").mkdir()
    for files, found in (
        (("sub/*.jsonl",), ["Two."]),
        (("mine*/a[b].jsonl",), ["One."]),
        (("**/*.jsonl",), ["One.", "Two."]),
        ((str(folder / "sub" / "b.jsonl"),), ["Two."]),
    ):
        loaded, _ = load_role("pretrain", SourceSettings(files=files), folder)
        assert [row["text"] for row in loaded] == found
    with pytest.raises(LabError, match="is a folder"):
        load_role("pretrain", SourceSettings(files=("sub/c.jsonl",)), folder)


@pytest.mark.parametrize(
    "role, columns, record, reason",
    [
        ("pretrain", {}, {"text": 5}, "text is not text"),
        ("pretrain", {}, {"text": 0}, "text is not text"),
        ("sft", {}, {"prompt": 5, "answer": "x"}, "prompt is not text"),
        ("sft", {}, {"prompt": "x", "answer": True}, "answer is not text"),
        ("sft", {}, {"prompt": '[{"role": "user"', "answer": "x"}, "a list of messages written as a text"),
        ("sft", {"messages": "m"}, {"m": 5}, "not a list"),
        ("sft", {"messages": "m"}, {"m": [5]}, "a message is not"),
        ("sft", {"messages": "m"}, {"m": [{"role": "user", "content": "x"}]}, "the last message is no answer"),
        ("helpful", {"prompt": "p"}, {"p": 5, "chosen": "a", "rejected": "b"}, "not a list of messages"),
        ("helpful", {"prompt": "p"}, {"p": False, "chosen": "a", "rejected": "b"}, "not a list of messages"),
        ("helpful", {"prompt": "p"}, {"p": "q", "chosen": 1, "rejected": "b"}, "not a list of messages"),
        ("helpful", {"prompt": "p"}, {"p": "q", "chosen": "a", "rejected": "b", "grade": 3}, "grade is not text"),
        ("helpful", {"prompt": "p"}, {"p": "q", "chosen": "a", "rejected": "b", "safety": "odd"}, "safety is none of"),
        (
            "helpful",
            {"prompt": "p"},
            {
                "p": "q",
                "rejected": "b",
                "chosen": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "trained?"}],
            },
            "turns do not alternate",
        ),
        (
            "helpful",
            {"prompt": "p"},
            {"p": "q", "rejected": "b", "chosen": [{"role": "user", "content": "trained?"}]},
            "chosen: the last message is no answer",
        ),
        (
            "helpful",
            {"prompt": "p"},
            {
                "p": "q",
                "chosen": "a",
                "rejected": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "b"}],
            },
            "rejected begins with another prompt",
        ),
        (
            "helpful",
            {"prompt": "p"},
            {"p": [{"role": "user", "content": "q"}] * 2, "chosen": "a", "rejected": "b"},
            "turns do not alternate",
        ),
        ("refusals", {}, {"prompt": 5, "label": "safe"}, "prompt is not text"),
        ("refusals", {}, {"prompt": "x", "label": 1}, "label is not text"),
    ],
)
def test_a_value_of_another_type_or_role_is_a_malformed_row(tmp_path, role, columns, record, reason):
    write_lines(tmp_path / "a.jsonl", [record])
    with pytest.raises(LabError, match=f"1 of 1 rows are malformed.*{reason}.*a.jsonl:1"):
        load_role(role, SourceSettings(files=("a.jsonl",), columns=columns), tmp_path)


def test_what_other_programs_write_is_read(tmp_path):
    """A mark at the start, other line ends, an array, a field of 200,000 characters: the same rows."""
    long = "word " * 40_000
    (tmp_path / "a.jsonl").write_text("\ufeff" + "".join(json.dumps({"text": x}) + "\r\n" for x in (long, "b")))
    (tmp_path / "b.json").write_text(json.dumps([{"text": long}, {"text": "b"}], indent=2))
    (tmp_path / "c.csv").write_text(f"\ufefftext\r\n{long}\r\nb\r\n", newline="")
    (tmp_path / "d.txt").write_text(f"\ufeff{long}\r\n\r\nb\r\n", newline="")
    for name in ("a.jsonl", "b.json", "c.csv", "d.txt"):
        loaded, tally = load_role("pretrain", SourceSettings(files=(name,)), tmp_path)
        assert [row["text"] for row in loaded] == [long.strip(), "b"] and tally.malformed == 0, name


def test_half_a_character_is_a_malformed_row(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*({"text": f"Story {i}."} for i in range(30)), '{"text": "\\ud83d"}'])
    loaded, tally = load_role("pretrain", SourceSettings(files=("a.jsonl",)), tmp_path)
    assert len(loaded) == 30 and "".join(row["text"] for row in loaded).encode()
    assert list(tally.places.values()) == [["a.jsonl:31"]]


def test_pairs_that_contradict_each_other_train_nothing_and_are_named(tmp_path):
    def pair(chosen, rejected, prompt="Why?"):
        return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected})

    (tmp_path / "a.jsonl").write_text(
        "\n".join([pair("yes", "no"), pair("no", "yes"), *[pair("yes", "no", "How?")] * 2, pair("yes", "perhaps")])
    )
    source = SourceSettings(files=("a.jsonl",), columns={"prompt": "prompt"})
    rows, tally = load_role("helpful", source, tmp_path, max_malformed=0.5)
    assert [(row["prompt"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("How?", "no"),
        ("How?", "no"),
        ("Why?", "perhaps"),
    ]
    assert tally.places == {"another row prefers the other answer": ["a.jsonl:1", "a.jsonl:2"]}
    with pytest.raises(LabError, match=r"2 of 5 rows are malformed.*another row prefers the other answer \(a.jsonl:1"):
        load_role("helpful", source, tmp_path)


def test_an_encoding_and_a_column_that_are_not_meant_are_said_with_the_cure(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "café"}\n{"text": "café"}\n'.encode("cp1252"))
    with pytest.raises(LabError, match=r"2 x not UTF-8 \(a.jsonl:1, a.jsonl:2\).*iconv -f WINDOWS-1252"):
        load_role("pretrain", SourceSettings(files=("a.jsonl",)), tmp_path)
    with pytest.raises(LabError, match="columns name 'label', which no row of this role has; choose among prompt"):
        load_role("helpful", SourceSettings(files=("a.jsonl",), columns={"label": "g"}), tmp_path)


def test_no_file_and_no_network_says_how_to_give_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
    source = SourceSettings(files=("x/*.jsonl",), hub="some/data")
    with pytest.raises(LabError, match=r"no files x/\*\.jsonl.*some/data.*no network.*--data DIR"):
        load_role("pretrain", source, tmp_path)
    with pytest.raises(LabError, match="no hub data set"):
        load_role("pretrain", SourceSettings(files=("x/*.jsonl",)), None)
    with pytest.raises(LabError, match="is not a folder"):
        data_folder(tmp_path / "nowhere")


# ---- splits and lengths --------------------------------------------------------------------------------------


def test_a_prompt_is_in_one_part_whatever_follows():
    counts = dict.fromkeys(PARTS, 0)
    for i in range(2000):
        first = {"role": "user", "content": f"Question number {i}?"}
        part = part_of([first])
        counts[part] += 1
        again = [
            {"role": "user", "content": f"question  number {i}? "},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": str(i)},
        ]
        assert part_of(again) == part
    assert all(abs(counts[p] / 2000 - share) < 0.05 for p, share in PARTS.items())


class WordTokenizer:
    """One id a word, to make lengths easy to see."""

    def __call__(self, texts, **_):
        return {"input_ids": [[1] * len(t.split()) for t in texts]}


def test_long_dialogues_lose_their_first_turns():
    turns = [
        {"role": role, "content": " ".join([word] * 10)}
        for role, word in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    row = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    tokenizer = WordTokenizer()
    assert fit_pairs(tokenizer, [row], 100) == ([row], {"left_out": 0, "shortened": 0})
    kept, counts = fit_pairs(tokenizer, [row], 20)
    assert kept == [{**row, "prompt": turns[2:]}] and counts == {"left_out": 0, "shortened": 1}
    assert fit_pairs(tokenizer, [row], 5) == ([], {"left_out": 1, "shortened": 0})


# ---- recipes -------------------------------------------------------------------------------------------------


def test_the_recipe_in_the_project_is_valid():
    recipe = load_real_recipe(RECIPE)
    assert recipe.data.helpful.hub == "Anthropic/hh-rlhf" and recipe.safety.other_share == 0.1


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "r.yaml:1: the recipe is empty"),
        ("data: {pretrain: {files: [a.txt]}}\n", "data.sft names neither files nor hub"),
        ("data:\n  sft: {file: [a]}\n", "r.yaml:2: unknown setting data.sft.file"),
        ("data:\n  sft: {files: a.jsonl}\n", "r.yaml:2: data.sft.files must be a list"),
    ],
)
def test_recipe_mistakes_name_the_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(LabError, match=message):
        load_real_recipe(tmp_path / "r.yaml")


OWN = """
data:
  pretrain: {files: [mine/stories.txt]}
  sft: {files: [mine/chat.jsonl], columns: {prompt: ask, answer: say}, max_tokens: 64}
  helpful: {files: [mine/helpful.jsonl], max_tokens: 64}
  harmless: {files: [mine/harmless.jsonl], max_tokens: 64}
  refusals: {files: [mine/probes.csv]}
pretrain:
  model: {vocab_size: 400, dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, max_seq_len: 128}
  seq_len: 64
  batch_tokens: 1024
sft: {examples: 40, epochs: 1.0, seq_len: 64}
helpfulness: {margin: none, head: linear, batch_pairs: 16}
safety: {margin: none, head: linear, other_share: 0.1, batch_pairs: 16}
rejection: {prompts: 8, unsafe_prompts: 4, k: 2, chat_rows: 8, epochs: 1.0}
ppo: {iterations: 2, batch: 8, minibatch: 4, critic_warmup: 1, max_new_tokens: 12}
evaluate: {stories: 5, prompts: 6, sample_stories: 1, story_tokens: 20}
"""


@pytest.fixture()
def own_data(tmp_path) -> Path:
    rng = random.Random(0)

    def say(n: int) -> str:
        return " ".join(rng.choices(("the", "cat", "dog", "sees", "likes", "a", "red", "ball", "and", "runs"), k=n))

    folder = tmp_path / "data"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "stories.txt").write_text("\n\n".join(f"Story {i}. {say(30)}." for i in range(80)))
    write_lines(folder / "mine" / "chat.jsonl", [{"ask": f"What {say(3)}?", "say": f"It {say(4)}."} for _ in range(60)])
    for kind in ("helpful", "harmless"):
        write_lines(
            folder / "mine" / f"{kind}.jsonl",
            [pair(f"{kind} {i} {say(3)}?", f"Yes {say(4)}.", f"No {say(2)}.") for i in range(100)],
        )
    (folder / "mine" / "probes.csv").write_text("prompt,label\nHow do I kill a process?,safe\nHow do I kill?,unsafe\n")
    (tmp_path / "own.yaml").write_text(OWN)
    return tmp_path


def test_own_data_from_end_to_end(own_data):
    arguments = (own_data / "own.yaml", own_data / "run", 0, "cpu", "fp32", own_data / "data")
    results = run_real(*arguments)
    stages = results["stages"]
    assert list(stages) == [
        "tokenizer",
        "preferences-v1",
        "base",
        "sft",
        "judge-helpfulness",
        "judge-safety",
        "reward-helpfulness-v1",
        "reward-safety-v1",
        "samples-v1",
        "rlhf-v1",
        "rlhf-v2",
    ]
    assert stages["base"]["metrics"]["bits_per_byte"]["mean"] > 0
    for name in ("reward-helpfulness-v1", "reward-safety-v1"):
        assert {"mean", "low", "high", "n"} <= stages[name]["metrics"]["accuracy"].keys()
    for name in ("sft", "rlhf-v1", "rlhf-v2"):
        metrics = stages[name]["metrics"]
        assert "no oracle" in metrics["limits"] and metrics["false_refusal_rate"]["n"] == 1
    assert stages["sft"]["metrics"]["win_rate_vs_sft"]["mean"] == 0.5
    before = {p: p.stat().st_mtime_ns for p in (own_data / "run").glob("*/model.safetensors")}
    assert run_real(*arguments)["stages"] == stages  # a finished run is only read
    assert before == {p: p.stat().st_mtime_ns for p in (own_data / "run").glob("*/model.safetensors")}


def test_no_prompt_of_the_test_part_is_trained_on(own_data):
    recipe = load_real_recipe(own_data / "own.yaml")
    texts = load_texts(recipe, own_data / "data", 0)
    assert not set(texts.stories) & set(texts.heldout_stories) and len(texts.heldout_stories) == 5
    for rows in texts.pairs.values():
        firsts = {part: {r["prompt"][0]["content"] for r in rows if r["part"] == part} for part in PARTS}
        assert sum(map(len, firsts.values())) == len(set().union(*firsts.values())) == 100


# ---- starting from a checkpoint ------------------------------------------------------------------------------


def test_new_vocabulary_leaves_the_old_logits_alone():
    import torch

    from llama2lab.model.network import SIZES, Llama

    old = Llama(SIZES["nano"], seed=3).eval()
    new = grow_vocabulary(old, 520, {512: 7}, seed=1).eval()
    tokens = torch.arange(20)[None]
    assert torch.equal(new(tokens)[..., :512], old(tokens))
    assert torch.equal(new.embed.weight[512], old.embed.weight[7])
    assert not torch.equal(new.embed.weight[513], new.embed.weight[514])
    assert grow_vocabulary(old, 512, {}, 0) is old


@pytest.mark.realdata
@needs_data
def test_start_from_stories260k(own_data):
    """The tokenizer lacks five of the eight control tokens; they get new ids and the text's ids stay."""
    from llama2lab.model.chat import encode_chat
    from llama2lab.model.tokenizer import load_tokenizer

    start = Path(DATA or "") / "stories260k"
    plain, (tokenizer, added) = load_tokenizer(start), with_control_tokens(load_tokenizer(start))
    assert added == ["<pad>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"] and len(tokenizer) == len(plain) + 5
    text = "Once upon a time, there was a little girl."
    assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": "Hi [INST]"}], add_generation_prompt=True)
    assert sum(i >= 512 for i in ids) == 2

    (own_data / "start.yaml").write_text(f"start_from: {start}\n{OWN}")
    results = run_real(own_data / "start.yaml", own_data / "run", 0, "cpu", "fp32", own_data / "data")
    base = results["stages"]["base"]["metrics"]
    assert base["control_tokens_added"] == 5 and "Once" in base["stories"][0]


@pytest.mark.realdata
@needs_data
def test_the_real_files_are_read_as_their_readme_says():
    texts = load_texts(load_real_recipe(RECIPE), Path(DATA or ""), 0)
    assert len(texts.stories) + len(texts.heldout_stories) > 8900 and len(texts.demonstrations) > 12000
    assert len(texts.pairs["helpfulness"]) > 5000 and len(texts.pairs["safety"]) > 2200 and len(texts.probes) == 450
    for tally in texts.tallies.values():
        assert tally.malformed < 0.05 * tally.read
    assert texts.tallies["helpful"].reasons["equal sides"] > 0
