"""Ghost Attention and rejection sampling: what exactly is trained on."""

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.model.chat import CHAT_TEMPLATE, encode_chat
from llama2lab.model.logprobs import answer_loglikelihoods
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.gatt import dialogue_messages, gatt_row, gatt_rows, instructed, sample_dialogues
from llama2lab.stages.rejection import Samples, best_of, best_of_curve, finetuning_rows
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.items import Prompt

CPU = Machine(torch.device("cpu"), "fp32")
QUESTIONS = [[f"Question {d} {t}?" for t in range(5)] for d in range(4)]
ANSWERS = [[f"Ahoy! Answer {d} {t}." for t in range(5)] for d in range(4)]


def test_the_instruction_stays_on_the_first_turn_only():
    for row in gatt_rows(QUESTIONS, ["Act as a pirate."] * 4, ANSWERS, 20, 0):
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        assert users[0].startswith("Act as a pirate. Question")
        assert not any("pirate" in u for u in users[1:])
        assert row["messages"][-1]["role"] == "assistant" and row["turns"] == len(users)


def test_what_is_asked_and_what_is_trained_differ_in_the_instruction_alone():
    asked = dialogue_messages("Act as a pirate.", QUESTIONS[0], ANSWERS[0][:2], everywhere=True)
    trained = dialogue_messages("Act as a pirate.", QUESTIONS[0], ANSWERS[0][:2], everywhere=False)
    for messages, told in ((asked, (0, 1, 2)), (trained, (0,))):
        assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]
        assert [m["content"] for m in messages[1::2]] == ANSWERS[0][:2]
        for t, m in enumerate(messages[::2]):
            assert m["content"] == ("Act as a pirate. " if t in told else "") + QUESTIONS[0][t]
    assert len(dialogue_messages("x", QUESTIONS[0], ANSWERS[0], everywhere=False)) == 10  # nothing is left to answer
    row = gatt_row("Act as a pirate.", QUESTIONS[0], ANSWERS[0], 2)
    assert row["messages"] == trained[:4] and row["loss"] == "last"


@pytest.mark.parametrize("seen", [None, 2])
@pytest.mark.parametrize("everywhere", [True, False])
def test_each_turn_is_sampled_after_the_ones_before(monkeypatch, seen, everywhere):
    """The model sees the last `seen` turns, or all; an instruction on the first alone may be out of sight."""
    heard = []

    def answer(model, tokenizer, conversations, **how):
        heard.append(conversations[0])
        return [[f"answer {len(heard)}"] for _ in conversations]

    monkeypatch.setattr("llama2lab.stages.gatt.sample_answers", answer)
    questions = [["a?", "b?", "c?"]]
    said = sample_dialogues(None, None, questions, ["Be brief."], everywhere, temperature=1.0, seed=0, seen_turns=seen)
    assert said == [["answer 1", "answer 2", "answer 3"]]
    first = "Be brief. a?"
    b, c = ("Be brief. b?", "Be brief. c?") if everywhere else ("b?", "c?")
    whole = [first, "answer 1", b, "answer 2", c]
    last = whole[2:] if seen else whole
    assert [[m["content"] for m in messages] for messages in heard] == [[first], [first, "answer 1", b], last]


def test_the_loss_is_zero_on_all_tokens_of_previous_turns():
    tokenizer = train_tokenizer(["Ahoy! Answer question pirate Act as a"] * 20, 300, chat_template=CHAT_TEMPLATE)
    row = next(r for r in gatt_rows(QUESTIONS, ["Act as a pirate."] * 4, ANSWERS, 20, 0) if r["turns"] >= 3)
    ids, mask = encode_chat(tokenizer, row["messages"], mask_turns="last")
    learnt = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learnt.replace("</s>", "").strip() == row["messages"][-1]["content"]
    first = mask.index(1)
    assert all(mask[first:]) and ids[-1] == tokenizer.eos_token_id


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        ["Ahoy! Answer question pirate Act as a 0 1 2 3 4 ? ."] * 20, 300, chat_template=CHAT_TEMPLATE
    )


def small(tokenizer):
    return Llama(ModelConfig(len(tokenizer), 32, 1, 2, 1, 48, max_seq_len=256), seed=1)


def test_training_learns_the_last_answer_alone(tokenizer, monkeypatch):
    """Not only the encoding can mask: of the rows as they are made, what reaches the loss of `sft` is each dialogue's
    last answer and its </s>; without their mark, it is every answer."""
    rows = gatt_rows(QUESTIONS, ["Act as a pirate."] * 4, ANSWERS, 12, 0)
    assert any(row["turns"] > 1 for row in rows)
    learnt = []

    def look(model, data, *_):
        for tokens, mask, segments in zip(data.tokens, data.loss_mask, data.segments, strict=True):
            for number in range(1, int(segments.max()) + 1):
                learnt.append(tokenizer.decode(tokens[mask & (segments == number)]))
        return []

    monkeypatch.setattr("llama2lab.stages.sft.fit_packed", look)

    def texts(row, answers):
        said = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        return "".join(f"{a}</s>" for a in (said if answers == "all" else said[-1:]))

    for answers in ("last", "all"):
        learnt.clear()
        marked = rows if answers == "last" else [{**row, "loss": "all"} for row in rows]
        metrics = sft(small(tokenizer), tokenizer, marked, SFTSettings(replay=0.0), 0, CPU)
        assert sorted(t.replace(" ", "") for t in learnt) == sorted(texts(r, answers).replace(" ", "") for r in rows)
        assert metrics["examples"] == len(rows)
    with pytest.raises(LabError, match="a row's loss is 'lats'; it is one of all, last"):
        sft(small(tokenizer), tokenizer, [{**rows[0], "loss": "lats"}], SFTSettings(), 0, CPU)


def test_a_masked_answer_is_not_learnt(tokenizer):
    """Trained with the mask, a model likes the last answer; the first one, which stood in every row, it likes as little
    as before. Without the mask it learns both."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Question 0?"},
                {"role": "assistant", "content": "Ahoy! Ahoy!"},
                {"role": "user", "content": "Question 1?"},
                {"role": "assistant", "content": "pirate"},
            ],
            "loss": "last",
        }
    ] * 8
    settings = SFTSettings(epochs=60, batch_tokens=512, replay=0.0, optim=Optim(lr=1e-2))

    def likelihoods(loss):
        model = small(tokenizer)
        if loss:
            sft(model, tokenizer, [{**row, "loss": loss} for row in rows], settings, 0, CPU)
        encoded = [encode_chat(tokenizer, rows[0]["messages"][:n], mask_turns="last") for n in (2, 4)]
        return answer_loglikelihoods(model, encoded, tokenizer.pad_token_id, CPU)

    before, masked, unmasked = likelihoods(""), likelihoods("last"), likelihoods("all")
    assert masked[1] > 0.5 * before[1] and unmasked[1] > 0.5 * before[1]
    assert masked[0] < 0.7 * before[0] < 0.5 * before[0] < unmasked[0]


def test_half_of_the_instructions_are_shortened():
    short = [lambda rng: rng.choice(("Act as a pirate.", "Figure: pirate"))] * 4
    rows = gatt_rows(QUESTIONS, short, ANSWERS, 200, 1)
    share = sum(r["messages"][0]["content"].startswith("Figure") for r in rows) / len(rows)
    assert 0.35 < share < 0.65


def test_dialogues_are_cut_at_every_length():
    assert {r["turns"] for r in gatt_rows(QUESTIONS, ["x"] * 4, ANSWERS, 60, 2)} == {1, 2, 3, 4, 5}
    assert instructed("Be brief.", "Why?") == "Be brief. Why?"


def samples():
    prompts = [
        Prompt(f"p{i}", ({"role": "user", "content": f"{i}?"},), "facts", "helpful", "", "train") for i in range(3)
    ]
    return Samples(
        prompts, [["a", "b", "c"], ["d", "e", "f"], ["", "h", "i"]], [[0.1, 2.0, 1.0], [5.0, 1.0, 0.0], [9.0, 1.0, 2.0]]
    )


def test_the_best_by_the_reward_is_kept_and_the_control_is_blind():
    assert [r["messages"][-1]["content"] for r in best_of(samples())] == ["b", "d"]  # an empty best is left out
    picks = {tuple(r["messages"][-1]["content"] for r in best_of(samples(), "random", seed)) for seed in range(20)}
    assert len(picks) > 3


def test_max_grows_with_k_and_the_median_need_not():
    curve = best_of_curve([[0.0, 1.0, 2.0, 3.0]], (1, 2, 4))
    assert [(r["k"], r["max"], r["median"]) for r in curve] == [(1, 0, 0), (2, 1, 0.5), (4, 3, 1.5)]


def test_the_best_of_all_rounds_are_learnt():
    rows = finetuning_rows([[{"r": 1}] * 3, [{"r": 2}] * 3], [{"chat": i} for i in range(10)], 4, 0)
    assert sum(r.get("r") == 1 for r in rows) == 3 and sum("chat" in r for r in rows) == 4
    assert finetuning_rows([[]], [{"chat": 0}], 5, 0) == [{"chat": 0}]


def test_an_instruction_may_depend_on_chance_only_through_the_seed():
    texts = [lambda rng: str(rng.random())] * 4
    assert gatt_rows(QUESTIONS, texts, ANSWERS, 5, 3) == gatt_rows(QUESTIONS, texts, ANSWERS, 5, 3)
