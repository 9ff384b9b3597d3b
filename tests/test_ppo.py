"""PPO: each piece against a case worked by hand, the KL against its exact value, and a policy that really learns."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim, make_optimizer
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.generate import generate
from llama2lab.model.logprobs import only_rounded, sampling_gap, token_logprobs
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.gate import mean_and_std
from llama2lab.stages.ppo import (
    Critic,
    PPOSettings,
    explained_variance,
    gae,
    kl_estimates,
    masked_mean,
    plain_iteration,
    policy_loss,
    ppo,
    token_rewards,
    value_loss,
)
from llama2lab.stages.reward import RewardModel
from llama2lab.town.items import Prompt

CPU = Machine(torch.device("cpu"), "fp32")

ON = torch.ones(1, 3, dtype=torch.bool)


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = gae(rewards, values, ON, gamma=0.9, lam=0.8)
    d2 = 1.0 - 0.7
    d1 = 0.9 * 0.7 - 0.6
    d0 = 0.9 * 0.6 - 0.5
    a2, a1, a0 = d2, d1 + 0.72 * d2, d0 + 0.72 * (d1 + 0.72 * d2)
    assert advantages[0].tolist() == pytest.approx([a0, a1, a2], rel=1e-5)
    assert returns[0].tolist() == pytest.approx([a0 + 0.5, a1 + 0.6, a2 + 0.7], rel=1e-5)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.integers(0, 3), st.integers(0, 3))
def test_gae_ignores_what_lies_outside_the_answer(rewards, before, after):
    n = len(rewards)
    r = torch.tensor([rewards])
    v = r.flip(1) * 0.5
    inside, _ = gae(r, v, torch.ones(1, n, dtype=torch.bool))

    def padded(x):
        return torch.cat([torch.full((1, before), 99.0), x, torch.full((1, after), -99.0)], 1)

    mask = torch.zeros(1, before + n + after, dtype=torch.bool)
    mask[:, before : before + n] = True
    advantages, returns = gae(padded(r), padded(v), mask)
    assert torch.allclose(advantages[mask], inside[0], atol=1e-5)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_gae_is_zero_outside_the_answer_even_where_that_is_nan():
    mask = torch.tensor([[False, True, True, False]])
    rewards, values = torch.tensor([[0.3, 0.0, 1.0, 0.2]]), torch.tensor([[0.4, 0.5, 0.6, 0.7]])
    right = gae(rewards, values, mask, 0.9, 0.8)
    for bad in (math.nan, math.inf):
        got = gae(rewards.masked_fill(~mask, bad), values.masked_fill(~mask, bad), mask, 0.9, 0.8)
        assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))


def test_returns_with_lambda_one_are_the_sums_of_rewards():
    _, returns = gae(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.3, -0.2, 5.0]]), ON, 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([6, 5, 3], rel=1e-5)


def test_policy_loss_clips_and_measures():
    old = torch.zeros(1, 3)
    new = torch.log(torch.tensor([[1.0, 1.5, 0.5]]))
    advantages = torch.tensor([[1.0, 1.0, -1.0]])
    loss, metrics = policy_loss(new, old, advantages, ON, clip=0.2)
    assert loss.item() == pytest.approx((-1.0 - 1.2 + 0.8) / 3, rel=1e-5)
    assert metrics["clipfrac"] == pytest.approx(2 / 3)
    assert metrics["ratio"] == pytest.approx(1.0)
    k3 = [r - 1 - math.log(r) for r in (1.0, 1.5, 0.5)]
    assert metrics["approx_kl"] == pytest.approx(sum(k3) / 3, rel=1e-4)


def test_nothing_outside_the_mask_counts_even_if_infinite():
    mask = torch.tensor([[True, False]])
    assert masked_mean(torch.tensor([[2.0, math.inf]]), mask).item() == 2.0
    loss, _ = policy_loss(torch.tensor([[0.0, -math.inf]]), torch.zeros(1, 2), torch.ones(1, 2), mask)
    assert loss.item() == pytest.approx(-1.0)


def test_value_loss_is_clipped():
    new, old, returns = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])
    on = torch.tensor([[True]])
    assert value_loss(new, old, returns, on, clip=0.2).item() == pytest.approx(0.5 * 0.8**2)
    assert value_loss(new, old, returns, on, clip=5.0).item() == 0.0


def test_score_lands_on_the_last_token_and_the_kl_on_all():
    mask = torch.tensor([[False, True, True, False], [False, True, True, True]])
    policy, reference = torch.full((2, 4), -1.0), torch.full((2, 4), -1.5)
    rewards = token_rewards(torch.tensor([2.0, 3.0]), policy, reference, mask, beta=0.1)
    assert rewards[0].tolist() == pytest.approx([0, -0.05, 1.95, 0])
    assert rewards[1].tolist() == pytest.approx([0, -0.05, -0.05, 2.95])


def test_an_answer_without_a_token_earns_nothing():
    rewards = token_rewards(torch.tensor([2.0]), torch.zeros(1, 3), torch.zeros(1, 3), torch.zeros(1, 3).bool(), 0.1)
    assert (rewards == 0).all()


def test_what_does_not_vary_has_no_variance_to_explain():
    values = torch.tensor([0.0, 1.0, 3.0])
    assert explained_variance(values, values) == 1.0
    assert explained_variance(values[:1], values[:1]) is None and explained_variance(values, torch.ones(3)) is None


def test_monte_carlo_kl_agrees_with_the_exact_one():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(8, generator=g).log_softmax(0)
    q = (p + 0.3 * torch.randn(8, generator=g)).log_softmax(0)
    exact = (p.exp() * (p - q)).sum().item()
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=g)
    estimates = kl_estimates(p[drawn], q[drawn])
    for name in ("k1", "k3"):
        standard_error = estimates[name].std().item() / 200_000**0.5
        assert abs(estimates[name].mean().item() - exact) < 4 * standard_error, name
    assert (estimates["k3"] >= 0).all()
    assert estimates["k3"].var() < estimates["k1"].var()  # true for policies that are close, as in PPO


def test_token_logprobs_are_those_of_the_model_at_the_sampling_temperature():
    torch.manual_seed(0)
    model = Llama(ModelConfig(vocab_size=40, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_seq_len=32))
    tokens, wanted = torch.randint(4, 40, (2, 6)), torch.zeros(2, 6, dtype=torch.bool)
    wanted[:, 3:] = True
    exact = (model(tokens)[:, :-1] / 0.7).log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    got = token_logprobs(model, tokens, wanted, temperature=0.7)
    assert torch.allclose(got[:, 3:], exact[:, 2:], atol=1e-5) and (got[:, :3] == 0).all()


# ---- a tiny policy that PPO must bring to the known optimum ------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["yes no maybe so"] * 50, 290, chat_template=CHAT_TEMPLATE)


def world(tokenizer):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=64
    )
    policy = Llama(config)
    prompt = Prompt("p", ({"role": "user", "content": "yes or no"},), "facts", "helpful", "", "train")
    critic = Critic(RewardModel(Llama(config)))
    return policy, critic, prompt


SETTINGS = PPOSettings(
    iterations=60,
    batch=64,
    minibatch=32,
    beta=0.0,
    critic_warmup=1,
    max_new_tokens=2,
    no_eos_penalty=0.0,
    early_stop_kl=1e9,
    optim=Optim(lr=5e-3),
    critic_optim=Optim(lr=5e-3),
)


def unchecked(settings, **changes):
    """Settings with values that no recipe may hold."""
    made = copy.copy(settings)
    for name, value in changes.items():
        object.__setattr__(made, name, value)
    return made


def share_of_target(prompts, answers):
    """The known optimum: every answer starts with the letter y."""
    return [1.0 if a[:1] == "y" else 0.0 for a in answers]


def test_ppo_reaches_the_known_optimum_and_starts_with_ratio_one(tokenizer):
    policy, critic, prompt = world(tokenizer)
    metrics = ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, SETTINGS, 0, CPU)
    log = metrics["log"]
    assert log[0]["score"] < 0.2 and sum(e["score"] for e in log[-5:]) / 5 > 0.9
    assert all(e["first_ratio"] == 1.0 for e in log)
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert {"approx_kl", "clipfrac", "entropy", "value_loss", "explained_variance", "length"} <= set(log[0])


@pytest.mark.parametrize("minibatch", [48, 20])
def test_the_plain_iteration_learns_what_ppo_learns(tokenizer, minibatch):
    """Three iterations from the same start, with scores of two kinds, a KL to another model, and answers cut short."""
    policy, critic, prompt = world(tokenizer)
    critic.head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    reference = Llama(policy.config, seed=5)
    prompts = [prompt, replace(prompt, kind="unsafe"), prompt] * 16
    s = PPOSettings(
        iterations=3,
        batch=48,
        minibatch=minibatch,
        beta=0.3,
        critic_warmup=0,
        max_new_tokens=36,
        replay=0.0,
        early_stop_kl=1e9,
        optim=Optim(lr=2e-3),
        critic_optim=Optim(lr=2e-3),
    )
    given: list[list[float]] = []

    def score(asked, answers):
        given.append([len(set(a)) - 3.0 * (p.kind == "unsafe") for p, a in zip(asked, answers, strict=True)])
        return given[-1]

    fast, fast_critic = copy.deepcopy(policy), copy.deepcopy(critic)
    metrics = ppo(fast, fast_critic, score, tokenizer, lambda i: prompts, s, 7, CPU, reference=reference)
    assert 0 < metrics["log"][0]["finished"] < 1 and metrics["log"][0]["kl"] != 0
    first = torch.tensor(given[0])
    unsafe = torch.tensor([p.kind == "unsafe" for p in prompts])
    scale = torch.where(unsafe[:, None], mean_and_std(first[unsafe]), mean_and_std(first[~unsafe]))
    optimizers = make_optimizer(policy, s.optim), make_optimizer(critic, s.critic_optim)
    start = copy.deepcopy(policy)
    for number in range(3):
        plain_iteration(policy, critic, reference, *optimizers, tokenizer, prompts, score, scale, s, 70_000 + number)
    assert given[:3] == given[3:]
    assert (policy.lm_head.weight - start.lm_head.weight).abs().max() > 1e-3
    torch.testing.assert_close(policy.state_dict(), fast.state_dict(), atol=1e-5, rtol=0)
    torch.testing.assert_close(critic.state_dict(), fast_critic.state_dict(), atol=1e-5, rtol=0)


# ---- does the sampler draw from what is scored? -------------------------------------------------------------


def with_sampler(monkeypatch, change):
    """PPO samples by `change(policy, **settings)`, which gives what `generate` is called with instead."""

    def sampler(model, prompts, max_new_tokens, **settings):
        model, settings = change(model, settings)
        return generate(model, prompts, max_new_tokens, **settings)

    monkeypatch.setattr("llama2lab.stages.ppo.generate", sampler)


def test_sampling_and_scoring_agree_but_for_rounding(tokenizer):
    policy, critic, prompt = world(tokenizer)
    s = replace(SETTINGS, iterations=3)
    for entry in ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU)["log"]:
        assert entry["first_ratio"] == 1.0
        assert 0 <= entry["sampling_gap"] <= entry["sampling_gap_max"] < 1e-4 and abs(entry["sampling_kl"]) < 1e-5


def stale(model, settings):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.05)
    return model, settings


@pytest.mark.parametrize(
    "change",
    [
        lambda m, s: (m, {**s, "temperature": 0.2}),
        lambda m, s: (m, {**s, "temperature": 1.3}),
        lambda m, s: (m, {**s, "temperature": 0}),
        lambda m, s: (m, {**s, "top_k": 3}),
        lambda m, s: (m, {**s, "top_p": 0.8}),
        lambda m, s: (m, {**s, "precision": "bf16"}),
        stale,
    ],
    ids=["temperature .2", "temperature 1.3", "greedy", "top-k 3", "top-p .8", "bf16", "another policy"],
)
def test_a_sampler_that_differs_stops_ppo_where_the_first_ratio_sees_nothing(tokenizer, monkeypatch, change):
    policy, critic, prompt = world(tokenizer)
    with torch.no_grad():
        policy.lm_head.weight.mul_(8)  # as sure of its tokens as a trained model is
    with_sampler(monkeypatch, change)
    s = replace(SETTINGS, iterations=1, critic_warmup=0)
    with pytest.raises(LabError, match=r"sampling_gap.*temperature 1, without top-p and top-k"):
        ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU)
    monkeypatch.setattr("llama2lab.model.logprobs.SAMPLING_KL", 1e9)
    monkeypatch.setattr("llama2lab.model.logprobs.ROUNDING", {"fp32": 1e9})
    (entry,) = ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU)["log"]
    assert entry["first_ratio"] == 1.0 and entry["sampling_gap"] > 3e-4


def test_rounding_in_bf16_is_no_other_sampler():
    g = torch.Generator().manual_seed(0)
    scored = -torch.rand(4000, generator=g)
    rounded = scored + 0.05 * torch.randn(4000, generator=g)
    gap = sampling_gap(rounded, scored)
    assert gap["sampling_gap"] == pytest.approx(0.04, abs=0.01) and abs(gap["sampling_kl"]) < 0.003
    assert gap["sampling_gap_max"] == pytest.approx((rounded - scored).abs().max().item())
    assert only_rounded(rounded, scored, "bf16") and only_rounded(scored, scored, "fp32")
    assert only_rounded(scored[:1], scored[:1], "fp32")
    wide = scored + 0.2 * torch.randn(4000, generator=g)
    for sampled, precision in (
        (rounded, "fp32"),
        (rounded + 0.01, "bf16"),
        (wide, "bf16"),
        (torch.cat([rounded[1:], torch.tensor([math.nan])]), "bf16"),
    ):
        assert not only_rounded(sampled, scored, precision)


# ---- nothing that is not finite goes on ----------------------------------------------------------------------


def test_every_figure_of_an_iteration_is_finite_also_of_a_single_token(tokenizer):
    policy, critic, prompt = world(tokenizer)
    s = replace(SETTINGS, iterations=2, batch=1, minibatch=1, max_new_tokens=1)
    log = ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt], s, 0, CPU)["log"]
    assert all(math.isfinite(value) for entry in log for value in entry.values())
    assert all(
        "explained_variance" not in entry and {"loss", "grad_norm", "critic_grad_norm"} <= set(entry) for entry in log
    )


def test_no_iterations_are_no_figures(tokenizer):
    policy, critic, prompt = world(tokenizer)
    s = unchecked(SETTINGS, iterations=0)
    metrics = ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt], s, 0, CPU)
    assert metrics == {"log": [], "iterations": 0, "stopped_early": False}
    with pytest.raises(LabError, match="iteration 0 has no prompts"):
        ppo(policy, critic, share_of_target, tokenizer, lambda i: [], SETTINGS, 0, CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_stop_ppo_before_anything_is_kept(tokenizer, tmp_path, bad):
    policy, critic, prompt = world(tokenizer)
    kept = []
    with pytest.raises(LabError, match=r"scores of iteration 0: 1 of 64 values are not finite"):
        ppo(
            policy,
            critic,
            lambda p, a: [bad, *share_of_target(p, a)[1:]],
            tokenizer,
            lambda i: [prompt] * 64,
            SETTINGS,
            0,
            CPU,
            tmp_path,
            lambda i, rows: kept.append(rows),
        )
    assert not kept and not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(LabError, match="scores of held-out prompts"):
        ppo(
            policy,
            critic,
            lambda p, a: [bad] * len(p) if len(p) == 3 else share_of_target(p, a),
            tokenizer,
            lambda i: [prompt] * 64,
            replace(SETTINGS, iterations=1, critic_warmup=0),
            0,
            CPU,
            tmp_path,
            heldout=[prompt] * 3,
        )
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"beta": math.nan}, "the rewards of iteration 0"),
        ({"head": math.nan}, "the advantages of iteration 0"),
        (
            {"optim": unchecked(Optim(lr=1.0), lr=1e39), "critic_warmup": 0, "minibatch": 64},
            "the policy's weights after iteration 0",
        ),
        (
            {"critic_optim": unchecked(Optim(lr=1.0), lr=1e39), "minibatch": 64},
            "the critic's weights after iteration 0",
        ),
    ],
)
def test_whatever_becomes_nan_stops_ppo_by_its_name(tokenizer, tmp_path, change, words):
    policy, critic, prompt = world(tokenizer)
    change = dict(change)
    critic.head.weight.data.fill_(change.pop("head", 0.0))
    s = unchecked(SETTINGS, **change)
    with pytest.raises(LabError, match=words):
        ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_large_beta_holds_the_policy_at_its_start(tokenizer):
    def kl(beta):
        policy, critic, prompt = world(tokenizer)
        s = replace(SETTINGS, iterations=25, beta=beta)
        return ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU)["kl"]

    assert kl(2.0) < 0.5 * kl(0.0)


def test_the_last_gain_learns_at_a_rate_of_its_own(tokenizer):
    """Adam's first step is as long as the learning rate."""
    policy, critic, prompt = world(tokenizer)
    before = {name: w.detach().clone() for name, w in policy.named_parameters()}
    s = replace(
        SETTINGS, iterations=1, minibatch=64, critic_warmup=0, optim=Optim(lr=1e-3, weight_decay=0.0, gain_lr=7.0)
    )
    ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU)
    for name, w in policy.named_parameters():
        step = (w.detach() - before[name]).abs().max().item()
        assert step == pytest.approx(7e-3 if name == "norm.weight" else 1e-3, rel=0.2), name


def test_beta_can_change_between_iterations(tokenizer):
    def run(beta, beta_for=None):
        policy, critic, prompt = world(tokenizer)
        s = replace(SETTINGS, iterations=6, beta=beta)
        return ppo(policy, critic, share_of_target, tokenizer, lambda i: [prompt] * 64, s, 0, CPU, beta_for=beta_for)[
            "log"
        ]

    assert run(0.0, lambda i: 0.7) == run(0.7) != run(0.0)
    late, free = run(0.7, lambda i: 0.0 if i < 5 else 0.7), run(0.0)
    assert late[:5] == free[:5] and late[5]["pg_loss"] != free[5]["pg_loss"]


def test_ppo_resumes_as_if_nothing_had_happened(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("llama2lab.engine.loop.SAVE_EVERY", 0.0)
    s = replace(SETTINGS, iterations=6, batch=32, minibatch=16)

    class Killed(BaseException):
        pass

    def train(folder, die_at=None):
        policy, critic, prompt = world(tokenizer)

        def prompts_for(i):
            if i == die_at:
                raise Killed
            return [prompt] * 32

        ppo(policy, critic, share_of_target, tokenizer, prompts_for, s, 0, CPU, folder)
        return policy.state_dict()

    undisturbed = train(None)
    with pytest.raises(Killed):
        train(tmp_path, die_at=4)
    resumed = train(tmp_path)
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)
