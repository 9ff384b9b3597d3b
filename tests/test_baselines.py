"""What a reward model on people's pairs is held against, worked out by hand; and the facts of the world."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.logprobs import answer_loglikelihoods
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run import baselines
from llama2lab.run.baselines import Reading
from llama2lab.run.facts import fact_pairs, read_facts
from llama2lab.stages.reward import RewardModel, encode_answers, score_encoded

CPU = Machine(torch.device("cpu"), "fp32")


def row(chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "Well?"}]
    return {"prompt": asked, "chosen": [{"content": chosen}], "rejected": [{"content": rejected}], **more}


ROWS = [row("a" * 20, "b" * 10), row("a" * 10, "b" * 20), row("a" * 100, "b" * 91), row("a" * 91, "b" * 100),
        row("a" * 50, "b" * 50)]  # fmt: skip


def test_the_longer_answer_is_a_judge_like_the_others():
    found = baselines.held_against([(1, 0), (1, 0), (1, 0), (0, 1), (1, 1)], ROWS, None)
    assert found["baselines"]["longer"]["mean"] == 0.5 and found["baselines"]["longer"]["n"] == 5
    assert list(found["baselines"]) == ["longer"]
    assert found["less_longer"]["mean"] == pytest.approx((0 + 1 + 0 + 0 + 0) / 5)
    assert found["less_longer"]["low"] < found["less_longer"]["mean"] < found["less_longer"]["high"]


def test_pairs_of_like_lengths_differ_by_less_than_a_tenth():
    assert baselines.alike([(20, 10), (100, 91), (91, 100), (100, 90), (50, 50), (0, 0)]) == [1, 2, 4]
    found = baselines.held_against([(1, 0), (1, 0), (1, 0), (0, 1), (1, 1)], ROWS, None)["equal_length"]
    assert found["model"]["n"] == found["longer"]["n"] == found["less_longer"]["n"] == 3
    assert found["model"]["mean"] == 0.5 == found["longer"]["mean"]


def test_without_pairs_of_like_lengths_nothing_is_said_of_them():
    readings = [(Reading(-1, -1, (0.0, 1.0)), Reading(-2, -2, (1.0, 0.0)))]
    found = baselines.held_against([(1, 0)], [row("aa", "b")], readings)
    assert found["equal_length"]["model"]["n"] == found["equal_length"]["random"]["n"] == 0


def test_likelihood_by_the_sum_and_by_the_token_are_two_judges():
    """The chosen answer is likelier by the token and, being longer, less likely as a whole."""
    readings = [(Reading(-6, -1, (2.0, 0.0)), Reading(-4, -2, (1.0, 1.0)))] * 4
    found = baselines.held_against([(1, 0)] * 4, [row("aaa", "b")] * 4, readings)["baselines"]
    assert {name: f["mean"] for name, f in found.items()} == {
        "longer": 1.0, "likelihood_sum": 0.0, "likelihood_mean": 1.0, "random": 0.5,
    }  # fmt: skip


def test_random_heads_are_no_surer_than_they_agree():
    same = baselines.over_heads([[1.0, 0.0, 1.0, 0.0]] * 4)
    apart = baselines.over_heads([[1.0] * 4, [0.0] * 4, [1.0] * 4, [0.0] * 4])
    assert same["mean"] == apart["mean"] == 0.5 and same["n"] == apart["n"] == 4
    assert same["low"] < 0.5 < same["high"]  # from pair to pair
    assert apart["low"] == 0.0 and apart["high"] == 1.0  # from head to head


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["Well? It is so, I say. " * 3] * 20, 300, chat_template=CHAT_TEMPLATE)


def tiny(tokenizer: Any) -> Llama:
    sizes = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "max_seq_len": 128}
    return Llama(ModelConfig(vocab_size=len(tokenizer), **sizes), seed=3).eval()


def test_one_pass_says_what_the_models_own_functions_say(tokenizer):
    model, said = tiny(tokenizer), ["It is so.", "No", "I say it is so, I say."]
    encoded = encode_answers(tokenizer, [[{"role": "user", "content": "Well?"}]] * 3, said)
    found = baselines.read_answers(model, encoded, tokenizer.pad_token_id, CPU, batch=2)
    sums = answer_loglikelihoods(model, encoded, tokenizer.pad_token_id, CPU)
    assert [r.total for r in found] == pytest.approx(sums, abs=1e-4)
    assert [r.mean for r in found] == pytest.approx([s / sum(m) for s, (_, m) in zip(sums, encoded, strict=True)])
    head = RewardModel(model)
    head.score.weight.data.copy_(baselines.random_heads(model.config.dim)[1:2])
    assert [r.heads[1] for r in found] == pytest.approx(score_encoded(head, encoded, tokenizer.pad_token_id, CPU))
    assert len(found[0].heads) == baselines.HEADS


def test_what_the_untouched_model_knows_is_the_likelier_fact(tokenizer, monkeypatch):
    said = {"right": Reading(-1, -3, ()), "wrong": Reading(-2, -2, ())}

    def read(model, encoded, pad, machine):
        return [said["right" if "right" in tokenizer.decode(ids) else "wrong"] for ids, _ in encoded]

    monkeypatch.setattr(baselines, "read_answers", read)
    pairs = [([{"role": "user", "content": "Well?"}], "it is right", "it is wrong")] * 3
    found = baselines.truth_by_likelihood(SimpleNamespace(), tokenizer, pairs, CPU)
    assert found["likelihood_sum"]["mean"] == 1.0 and found["likelihood_mean"]["mean"] == 0.0
    assert found["likelihood_sum"]["n"] == 3


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_the_facts_can_only_be_told_by_who_knows_them():
    """Within a kind every value is right as often as wrong, and a question has one right value."""
    facts = read_facts()
    assert len(facts) == 160 and len({f.question for f in facts}) == len({f.sentence for f in facts}) == 160
    for kind in {f.kind for f in facts}:
        some = [f for f in facts if f.kind == kind]
        assert Counter(f.right for f in some) == Counter(f.wrong for f in some), kind
        assert sum(abs(len(f.right) - len(f.wrong)) for f in some) / len(some) < 3, kind
        assert len(some) >= 10


def test_a_fact_is_two_answers_to_one_question_that_differ_in_the_value():
    [messages, right, wrong] = fact_pairs(read_facts())[0]
    assert messages == [{"role": "user", "content": "What is the capital of France?"}]
    assert right == "The capital of France is Paris." and wrong == "The capital of France is Sofia."


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("year,When?,In {}.,1066,", "facts.csv:2: no wrong"),
        ("year,When?,In .,1066,1067", r"facts.csv:2: the sentence wants \{\} once"),
        ("year,When?,In {}.,1066,1066", "values that differ"),
        ("year,When?,In {}.,1066,1067,1068", "facts.csv:2: "),
    ],
)
def test_what_is_no_fact_is_named_with_its_line(tmp_path, line, says):
    (tmp_path / "facts.csv").write_text(f"kind,question,sentence,right,wrong\n{line}\n")
    with pytest.raises(LabError, match=says):
        read_facts(tmp_path / "facts.csv")
