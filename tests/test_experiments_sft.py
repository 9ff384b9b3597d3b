"""Experiments of supervised fine-tuning, on tiny settings."""

from dataclasses import replace

from llama2lab.lessons.n04_sft import experiments as s


def test_the_base_model_is_left_alone_and_budgets_are_compared(lab):
    before = lab.model("base").embed.weight.clone()
    result = s.quality_budgets(
        lab, (("clean", 20), ("noisy", 20), ("noisy", 40)), (0, 1), prompts=12, settings=replace(s.SETTINGS, epochs=1.0)
    )
    assert (lab.model("base").embed.weight == before).all()
    assert [(r["quality"], r["examples"]) for r in result["rows"]] == [("clean", 20), ("noisy", 20), ("noisy", 40)]
    assert list(result["claims"]) == ["20 clean less 20 noisy: helpfulness", "20 clean less 40 noisy: helpfulness"]
    first = result["rows"][0]["helpfulness"]
    assert first["n"] == 24 and len(first["each"]) == 2 and first["low"] < first["mean"] < first["high"]
    assert list(s.by_examples(result)["noisy"]) == ["20", "40"]


def test_answers_have_a_length_and_an_end_or_none(lab):
    result = s.eos_length(lab, examples=16, prompts=6, longest=12)
    for name in ("with", "without"):
        assert len(result[name]["lengths"]) == 6 and max(result[name]["lengths"]) <= 12
        assert result[name]["finished"]["n"] == 6


def test_base_and_sft_answer_the_same_questions(lab):
    rows = s.base_and_sft(lab, lab.prompts(helpful=2))
    assert len(rows) == 2 and set(rows[0]) == {"question", "base, as a chat", "base, as a page", "SFT"}
