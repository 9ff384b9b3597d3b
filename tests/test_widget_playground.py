"""The sampling playground: its bars are what generate.sample draws from."""

from itertools import pairwise

import pytest
import torch

from llama2lab.lessons.n00_start.widget_playground import Playground, logits_after, next_tokens, probabilities
from llama2lab.model.chat import encode_chat
from llama2lab.model.generate import sample


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 0.8, 0), (1.5, 1.0, 5), (1.2, 0.7, 20), (0.0, 1.0, 0)]
)
def test_the_bars_are_what_sample_draws(temperature, top_p, top_k):
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 2
    before, after = probabilities(logits, temperature, top_p, top_k)
    assert before.sum().item() == pytest.approx(1, abs=1e-5) and after.sum().item() == pytest.approx(1, abs=1e-5)
    n = 20_000
    drawn, _ = sample(logits.expand(n, -1), (torch.arange(n) + 0.5) / n, temperature, top_p, top_k)
    assert torch.allclose(torch.bincount(drawn, minlength=64) / n, after, atol=2e-4)


def test_rows(lab):
    model, tokenizer = lab.model("sft"), lab.tokenizer
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": "Where does Mira live?"}], add_generation_prompt=True)
    logits = logits_after(model, ids)
    rows = next_tokens(logits, tokenizer, temperature=1.0, top_p=0.9, top_k=0, n=0)
    assert sum(r.model for r in rows) == pytest.approx(1, abs=1e-4)
    assert sum(r.after for r in rows) == pytest.approx(1, abs=1e-4)
    assert all(a.before >= b.before for a, b in pairwise(rows))
    assert all(r.model == pytest.approx(r.before) for r in rows)  # at temperature 1
    assert next_tokens(logits, tokenizer, temperature=0.0)[0].after == 1
    assert len(next_tokens(logits, tokenizer)) == 10


def test_the_picture_follows_the_controls(lab):
    play = Playground(lab, "sft")
    first = play.static()
    play.temperature.value = 0.3
    assert play.static() != first
    play.top_k.value = 1
    assert "1 of " in play.static() and "\u2192 cut" in play.static()
    play.next.click()
    drawn = list(play.written)
    play.reset.click()
    play.greedy.click()
    assert play.written == drawn  # of one token that is left, it is drawn
    play.more.click()
    assert play.static().count("<li>") == 5
    play.temperature.value = 1.5
    assert "Written at temperature 0.3, top-p 1, top-k 1" in play.static()  # not at what the slider says now
    play.greedy.click()
    assert "<li>" not in play.static()  # they went on from what stood there before
    while not play.finished and len(play.written) < 60:
        play.greedy.click()
    assert play.finished and "Reset" in play.static()
    play.prompt.value = "<b>[INST]</b> </s>" + "\u202e"
    assert not play.written and "<b>" not in play.static() and "Error" not in play.static()
    play.prompt.value = "word " * 3000
    assert "at most" in play.static()
    play.prompt.value = "Mira"
    play.stage.value = "base"
    assert "Error" not in play.static() and play.prompt_ids()[0] == lab.tokenizer.bos_token_id
