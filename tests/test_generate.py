"""Sampling: the right distribution, and results that do not depend on the company."""

import math
import random
import threading

import pytest
import torch

from llama2lab.engine.errors import LabError
from llama2lab.engine.parallel import limited_to, shared_cores
from llama2lab.model.generate import COLDEST, _read, generate, sample
from llama2lab.model.network import SIZES, Llama

NANO = SIZES["nano"]


@pytest.fixture(scope="module")
def model() -> Llama:
    model = Llama(NANO, seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model.eval()


def prompts(n: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    return [
        [1, *torch.randint(8, 512, (int(torch.randint(1, 30, (), generator=g)),), generator=g).tolist()]
        for _ in range(n)
    ]


def token_ids(generations) -> list[list[int]]:
    return [g.tokens for g in generations]


def test_greedy_equals_the_argmax_of_full_passes(model):
    [generation] = generate(model, [[1, 20, 30]], 15, temperature=0, eos_id=-1, precision="fp32")
    ids = [1, 20, 30]
    with torch.no_grad():
        for _ in range(15):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generation.tokens == ids[3:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_row_does_not_depend_on_its_batch(model, temperature, batch_size):
    settings = dict(temperature=temperature, seed=3, precision="fp32", eos_id=20)
    alone = generate(model, prompts(8), 15, batch_size=256, **settings)
    assert token_ids(generate(model, prompts(8), 15, batch_size=batch_size, **settings)) == token_ids(alone)


def test_long_prompts_go_in_smaller_batches(model, monkeypatch):
    settings = {"temperature": 1.0, "seed": 4}
    together = generate(model, prompts(8), 15, **settings)
    sizes = []

    def watched(model, texts, pad_id):
        sizes.append((len(texts), max(map(len, texts))))
        return _read(model, texts, pad_id)

    monkeypatch.setattr("llama2lab.model.generate._read", watched)
    monkeypatch.setattr("llama2lab.model.generate.PAIRS", 1200)
    assert token_ids(generate(model, prompts(8), 15, **settings)) == token_ids(together)
    assert sum(n for n, _ in sizes) == 8 and len({n for n, _ in sizes}) > 1
    assert all(n == 1 or n * longest**2 <= 1200 for n, longest in sizes)


def test_the_first_rows_stay_when_rows_are_added(model):
    few = generate(model, prompts(5), 20, seed=3, precision="fp32")
    assert token_ids(generate(model, prompts(20), 20, seed=3, precision="fp32"))[:5] == token_ids(few)
    assert token_ids(generate(model, prompts(5), 20, seed=4, precision="fp32")) != token_ids(few)


def test_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    generate(model, prompts(2), 4)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"top_p": 0.8},
        {"top_k": 3},
        {"temperature": 0},
        {"temperature": 0.2, "top_p": 0.9, "top_k": 5},
        {},
    ],
)
def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(model, settings):
    """After temperature, top-k and top-p: a plain full pass would say something else of what was sampled."""
    temperature, top_k, top_p = settings.get("temperature", 1.0), settings.get("top_k", 0), settings.get("top_p", 1.0)
    for prompt, g in zip(
        prompts(6), generate(model, prompts(6), 12, **settings, precision="fp32", eos_id=-1), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + g.tokens]))[0, len(prompt) - 1 : -1]
        for row, token, logprob in zip(logits, g.tokens, g.logprobs, strict=True):
            if temperature == 0:
                assert token == int(row.argmax()) and logprob == 0.0
                continue
            kept = sorted((row / temperature).softmax(-1).tolist(), reverse=True)[: top_k or len(row)]
            kept = [p for i, p in enumerate(kept) if sum(kept[:i]) < top_p * sum(kept)]
            taken = (row / temperature).softmax(-1)[token].item()
            assert logprob == pytest.approx(math.log(taken / sum(kept)), abs=1e-3)


def test_eos_ends_a_row(model):
    free = generate(model, prompts(30), 25, seed=1, eos_id=-1, precision="fp32")
    eos = free[0].tokens[10]
    for whole, cut in zip(free, generate(model, prompts(30), 25, seed=1, eos_id=eos, precision="fp32"), strict=True):
        end = whole.tokens.index(eos) + 1 if eos in whole.tokens else 25
        assert (cut.tokens, cut.finished) == (whole.tokens[:end], eos in whole.tokens)
        assert len(cut.logprobs) == end


def test_dropping_finished_rows_changes_nothing(model, monkeypatch):
    settings = dict(seed=2, precision="fp32", eos_id=generate(model, prompts(40), 1, seed=2)[3].tokens[0])
    dropped = generate(model, prompts(40), 30, **settings)
    monkeypatch.setattr("llama2lab.model.generate.DROP_AT", 2.0)
    assert token_ids(generate(model, prompts(40), 30, **settings)) == token_ids(dropped)


def test_bf16_runs_and_reports_near_logprobs(model):
    for prompt, g in zip(prompts(4), generate(model, prompts(4), 8, precision="bf16", eos_id=-1), strict=True):
        with torch.no_grad():
            exact = model(torch.tensor([prompt + g.tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        for row, token, logprob in zip(exact, g.tokens, g.logprobs, strict=True):
            assert logprob == pytest.approx(row[token].item(), abs=0.2)
    assert next(model.parameters()).dtype == torch.float32


def test_progress_counts_every_row(model):
    seen: list[int] = []
    generate(model, prompts(25), 20, batch_size=10, eos_id=20, progress=seen.append)
    assert sum(seen) == 25


def draw(logits: list[float], n: int = 20_000, **settings) -> list[float]:
    """Shares of the tokens among n samples of one distribution."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    token, _ = sample(torch.tensor(logits).expand(n, -1), uniform, **settings)
    return (torch.bincount(token, minlength=len(logits)) / n).tolist()


def test_samples_follow_the_softmax():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert draw(logits) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)
    assert draw(logits, temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.015)
    assert draw(logits, top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert draw(logits, top_p=0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=0.015)
    assert draw(logits, top_p=0.4) == [1, 0, 0, 0]
    assert draw(logits, top_k=3, top_p=0.9) == pytest.approx([0.526, 0.316, 0.158, 0], abs=0.015)
    assert draw(logits, top_k=99) == draw(logits, top_p=1.0)


def test_samples_at_the_edges():
    logits = torch.tensor([[0.0, -1e4, 0.0, -1e4]] * 2)  # the last token has no probability at all
    token, logprob = sample(logits, torch.tensor([0.0, 1.0]))
    assert token.tolist() == [0, 2]
    assert logprob.tolist() == pytest.approx([-math.log(2)] * 2)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temperature": -1}, "temperature -1"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_k": -1}, "top_k -1"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 254}, "more than the context of 256"),
        ({"precision": "fp8"}, "fp8"),
        ({"temperature": 1e-40}, "temperature 1e-40"),
        ({"temperature": 1e-5}, r"at least 0\.0001"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_p": 1.5}, r"top_p 1\.5"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"top_p": -0.1}, r"top_p -0\.1"),
        ({"top_k": 2.5}, r"top_k 2\.5"),
        ({"top_k": math.nan}, "top_k nan"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens 2\.5"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_mistakes(model, settings, words):
    with pytest.raises(LabError, match=words):
        generate(model, [[1, 2, 3]], **{"max_new_tokens": 5, **settings})
    with pytest.raises(LabError, match="prompt 1 is empty"):
        generate(model, [[1], []], 5)


def test_one_token_is_drawn_from_the_settings_that_are_allowed():
    for settings in ({"temperature": 1e-40}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_k": -1}):
        with pytest.raises(LabError, match="allowed are"):
            sample(torch.zeros(1, 4), torch.zeros(1), **settings)


def test_the_coldest_temperature_is_greedy_in_numbers(model):
    cold = generate(model, prompts(4), 8, temperature=COLDEST, precision="fp32", eos_id=-1)
    assert all(math.isfinite(x) for g in cold for x in g.logprobs)
    assert token_ids(cold) == token_ids(generate(model, prompts(4), 8, temperature=0, precision="fp32", eos_id=-1))


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_whose_weights_are_no_numbers_writes_nothing(temperature):
    broken = Llama(NANO, seed=1)
    with torch.no_grad():
        broken.norm.weight.fill_(math.nan)
    with pytest.raises(LabError, match="weights are damaged"):
        generate(broken, [[1, 2]], 3, temperature=temperature)


@pytest.mark.parametrize("token", [-1, 512])
def test_a_token_that_the_model_lacks_is_named(model, token):
    with pytest.raises(LabError, match=f"prompt 1: the text holds token {token}, the model has rows for 512 only"):
        generate(model, [[1, 2], [1, token]], 3)


def test_no_prompts(model):
    assert generate(model, [], 5) == []


# ---- turn by turn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_dialogues_that_go_on_say_what_they_would_say_from_the_beginning(model, temperature):
    """Each prompt holds the last one, its answer and a question of some length; one is changed further back, one is
    shorter than before."""
    r = random.Random(0)
    prompts = [[1, *(r.randrange(8, 60) for _ in range(r.randrange(1, 9)))] for _ in range(7)]
    readings = []
    for turn in range(5):
        settings = {"temperature": temperature, "seed": turn, "precision": "fp32"}
        fresh = generate(model, prompts, 6, **settings)
        found = generate(model, prompts, 6, **settings, readings=readings)
        assert [g.tokens for g in found] == [g.tokens for g in fresh]
        for a, b in zip(found, fresh, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
        assert sorted(i for x in readings for i in x.rows) == list(range(7))
        prompts = [
            [*p, *g.tokens, *(r.randrange(8, 60) for _ in range(r.randrange(1, 5)))]
            for p, g in zip(prompts, fresh, strict=True)
        ]
        prompts[2] = [*prompts[2][:3], 9, *prompts[2][4:]]
        prompts[5] = prompts[5][: max(2, len(prompts[5]) - 12)]


def test_a_dialogue_reads_each_token_once(model, monkeypatch):
    read = []
    hidden = Llama.hidden
    monkeypatch.setattr(
        Llama, "hidden", lambda self, tokens, *rest: read.append(tokens.shape[1]) or hidden(self, tokens, *rest)
    )
    readings, prompt = [], [1, *range(8, 28)]
    generate(model, [prompt], 1, precision="fp32", readings=readings)
    generate(model, [[*prompt, 30, 31, 32]], 1, precision="fp32", readings=readings)
    assert read == [21, 3] and readings[0].tokens == [[*prompt, 30, 31, 32]]


def test_other_dialogues_do_not_go_on_from_these(model):
    readings = []
    generate(model, [[1, 9], [1, 10]], 1, precision="fp32", readings=readings)
    with pytest.raises(LabError, match="3 prompts do not go on from readings of 2"):
        generate(model, [[1, 9]] * 3, 1, precision="fp32", readings=readings)


def test_a_large_model_writes_all_rows_together_and_no_worker_fetches_its_weights_twice(model, monkeypatch):
    settings = dict(temperature=1.0, seed=4, precision="fp32", eos_id=20)
    with limited_to(2):
        alone = generate(model, prompts(6), 9, **settings)
        seen = []

        def watched(model, texts, pad_id):
            seen.append((len(texts), threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
            return _read(model, texts, pad_id)

        monkeypatch.setattr("llama2lab.model.generate._read", watched)
        monkeypatch.setattr("llama2lab.model.generate.is_large", lambda parameters: True)
        with shared_cores(torch.device("cpu")):  # as within a training stage
            assert token_ids(generate(model, prompts(6), 9, **settings)) == token_ids(alone)
            assert torch.get_num_threads() == 1
        assert seen == [(6, True, 2)]
        assert generate(model, [], 9, **settings) == []
