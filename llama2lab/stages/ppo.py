"""Proximal policy optimisation (Llama 2, section 3.2.3).

The reward is the report's: R = whiten(logit(R_c)) - beta * KL(pi || pi_0), with R_c the gated choice between the two
reward models. Clip 0.2, one gradient step a minibatch, AdamW 0.9/0.95, constant learning rate, all as reported.
`plain_iteration` is one iteration, to be read; `ppo` does the same in two threads, or in several processes
(engine/distributed.py), and can be killed.

Ours, with the reason; docs/trials.md has the figures:
- learning rate 2e-4 instead of 1e-6, batch 256 instead of 512: a model 7,000 times smaller, minutes instead of days;
- GAE with gamma 1 and lambda 0.95, a critic that starts from the helpfulness reward model, three warm-up iterations
  for it: the report gives no details of its value function;
- beta 0.2 instead of 0.01 or 0.005: with less the policy found habits that no preference pair had shown to be bad;
- near half of the prompts are unsafe: with fewer V5 violated more than V4;
- the last norm's gain learns 200 times as fast as the matrices: it sets how sure a policy is of its answers, is near 3
  and not near 0, and would hardly move in a hundred steps;
- whitening statistics are those of the first batch: per-batch statistics would hide the growth of the reward. They are
  taken over safety prompts and over the others apart: the safety model's scores spread several times as far, and
  whitened together a refusal gains more on one unsafe prompt than a right answer on many others;
- the KL is charged token by token (k1, log pi - log pi_0), which has the same expectation;
- every step also takes in some pretraining text (`replay`; InstructGPT's "ptx" term, arXiv 2203.02155, which the report
  does not mention): a small model that climbs a reward on training prompts forgets what they do not name;
- an answer that does not end in `</s>` loses one point: the length is limited, and a cut answer must not pay;
- answers are sampled at temperature 1 without top-p or top-k, so the sampled distribution is the scored one. The ratio
  of the first minibatch is 1 by construction and does not show that; `sampling_gap` does.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from llama2lab.engine import distributed, sharded
from llama2lab.engine.device import Machine, on_device
from llama2lab.engine.errors import LabError
from llama2lab.engine.finite import all_finite, check_tensors
from llama2lab.engine.loop import resumable_loop
from llama2lab.engine.optim import Optim, make_optimizer
from llama2lab.engine.packing import epoch_batches, pack
from llama2lab.engine.parallel import Figure, figure, in_parallel, is_large, numbers, shared_cores, split
from llama2lab.engine.settings import Clash, Count, CountOrNone, Few, Limit, Share, Weight, checked
from llama2lab.engine.state import module_tensors, restore_module
from llama2lab.model.chat import decode_answer, encode_chats
from llama2lab.model.generate import Generation, generate, undivided
from llama2lab.model.logprobs import only_rounded, pad_right, sampling_gap, token_logprobs
from llama2lab.model.lower import Lower, train_upper
from llama2lab.model.network import Llama
from llama2lab.stages.gate import mean_and_std, whiten
from llama2lab.stages.pretrain import encode_documents, rows_loss
from llama2lab.stages.reward import RewardModel
from llama2lab.town.items import Prompt

REPLAY_SEQ = 256  # tokens in a row of replayed text


@checked
@dataclass(frozen=True)
class PPOSettings:
    iterations: Few = 20
    batch: Count = 256  # answers an iteration
    minibatch: Count = 64
    unsafe_share: Share = 0.45  # of the prompts
    borderline_share: Share = 0.2  # of the other prompts
    clip: Limit = 0.2
    beta: Weight = 0.2
    gamma: Share = 1.0
    lam: Share = 0.95
    value_clip: Limit = 0.2
    no_eos_penalty: Weight = 1.0
    replay: Weight = 1.0  # weight of the loss on pretraining text; 0 is the report's
    replay_tokens: Count = 2048  # a step
    critic_warmup: CountOrNone = 3  # iterations in which only the critic learns
    max_new_tokens: Few = 48
    early_stop_kl: Limit = 8.0  # nats an answer; a policy this far from its start is no longer being improved
    optim: Optim = Optim(lr=2e-4, gain_lr=200.0)
    critic_optim: Optim = Optim(lr=5e-4)

    def __post_init__(self) -> None:
        if self.minibatch > self.batch:
            raise Clash(f"must be at most batch ({self.batch}), not {self.minibatch}", "minibatch", "batch")
        if self.critic_warmup >= self.iterations:
            raise Clash(
                f"must be less than iterations ({self.iterations}), or the policy learns nothing, and is "
                f"{self.critic_warmup}",
                "critic_warmup",
                "iterations",
            )


class Critic(nn.Module):
    """Expected return from each position: a decoder with a scalar head, started from a reward model."""

    def __init__(self, reward: RewardModel):
        super().__init__()
        self.backbone = copy.deepcopy(reward.backbone).requires_grad_(True)
        if isinstance(self.backbone.lower, Lower):
            train_upper(self.backbone, self.backbone.lower)
        self.head = nn.Linear(self.backbone.config.dim, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor, backbone: Llama | None = None) -> Tensor:
        """(batch, seq), float32 under autocast too: the value before token t is written, which is read at t - 1. As
        `backbone` a copy of it may be given."""
        values = ((backbone or self.backbone).hidden(tokens).float() * self.head.weight).sum(-1)
        return F.pad(values[:, :-1], (1, 0))


# ---- the pieces, each with a test --------------------------------------------------------------------------


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over answer tokens.

    Args:
        rewards, values, mask: (batch, steps); `values[:, t]` is the critic's view before token t is written, and the
            mask marks the answer's tokens, which must be contiguous. What lies outside counts as nothing.

    Returns:
        (advantages, returns), both (batch, steps) and 0 outside the mask. Returns = advantages + values, before
        any whitening.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)  # what lies outside may be NaN
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, 0.0)
        next_value = values[:, t]
        advantages[:, t] = running
    return advantages, torch.where(mask, advantages + values, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask. `where`, not a product: what lies outside may be infinite."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def policy_loss(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
) -> tuple[Tensor, dict[str, Figure]]:
    """The clipped objective with its metrics: `ratio`, `approx_kl` (k3: mean of ratio - 1 - log ratio), `clipfrac`;
    numbers, which on a GPU were not waited for (`parallel.numbers`).

    Args:
        new, old: (batch, steps) log-probabilities of the taken tokens, now and when they were sampled.
    """
    log_ratio = torch.where(mask, new - old, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(pg_loss1, pg_loss2), mask)
    with torch.no_grad():
        metrics = {
            "ratio": figure(masked_mean(ratio, mask)),
            "approx_kl": figure(masked_mean(torch.expm1(log_ratio) - log_ratio, mask)),
            "clipfrac": figure(masked_mean(((ratio - 1).abs() > clip).float(), mask)),
        }
    return loss, metrics


def value_loss(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Half the squared error; a value that has moved by more than `clip` gains nothing from going further."""
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.maximum((new - returns) ** 2, (clipped - returns) ** 2), mask)


def kl_estimates(policy: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Per-token estimators of KL(pi || pi_0) on tokens sampled from pi (Schulman): k1 unbiased, k2 small variance,
    k3 unbiased and never negative."""
    log_ratio = reference - policy
    return {"k1": -log_ratio, "k2": 0.5 * log_ratio**2, "k3": torch.expm1(log_ratio) - log_ratio}


def token_rewards(scores: Tensor, policy: Tensor, reference: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(batch, steps): -beta * (log pi - log pi_0) on every answer token, plus the answer's score on its last; 0 outside
    of the mask."""
    rewards = torch.where(mask, -beta * (policy - reference), 0.0)
    last = mask.shape[1] - 1 - mask.long().flip(1).argmax(1)  # (batch,) index of the last marked token
    rewards[torch.arange(len(scores), device=rewards.device), last] += torch.where(mask.any(1), scores, 0.0)
    return rewards


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """The share of the returns' variance that the critic's values explain, both (tokens,); None where the returns do
    not vary, so that there is nothing to explain."""
    if len(returns) < 2 or returns.var() == 0:
        return None
    return float(1 - (returns - values).var() / returns.var())


# ---- one iteration, to be read -----------------------------------------------------------------------------

Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]  # logit(R_c) of one answer a prompt


def rollout(
    policy: Llama,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int,
    precision: str = "fp32",
) -> tuple[list[list[int]], list[Generation]]:
    """Each prompt's ids, and the answer that the policy draws to it."""
    asked = [ids for ids, _ in encode_chats(tokenizer, [list(p.messages) for p in prompts], add_generation_prompt=True)]
    policy.eval()
    return asked, generate(
        policy,
        asked,
        max_new_tokens,
        temperature=1.0,
        seed=seed,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        precision=precision,
    )


def with_answers(asked: Sequence[list[int]], written: Sequence[Generation], pad: int) -> tuple[Tensor, Tensor]:
    """(batch, seq) prompts with their answers, padded on the right, and a mask of the answers' tokens."""
    tokens, lengths = pad_right([ids + g.tokens for ids, g in zip(asked, written, strict=True)], pad)
    at, starts = torch.arange(tokens.shape[1]), torch.tensor([len(ids) for ids in asked])
    return tokens, (at >= starts[:, None]) & (at < lengths[:, None])


def plain_iteration(
    policy: Llama,
    critic: Critic,
    reference: Llama,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    score: Score,
    scale: Tensor,
    s: PPOSettings,
    seed: int,
) -> None:
    """One iteration of PPO, step by step: what `ppo` does once the critic is warm, without replay and figures.

    Args:
        reference: pi_0, the policy before PPO.
        scale: (batch, 2), mean and standard deviation that each prompt's score is whitened by.
    """
    # Rollouts: an answer to each prompt from the policy as it is now
    asked, written = rollout(policy, tokenizer, prompts, s.max_new_tokens, seed)
    tokens, mask = with_answers(asked, written, tokenizer.pad_token_id)  # (batch, seq)
    answers = [decode_answer(tokenizer, g.tokens) for g in written]
    finished = torch.tensor([g.finished for g in written])  # (batch,)

    # Rewards: the score on an answer's last token, the KL on each
    scores = whiten(torch.tensor(score(prompts, answers)), *scale.unbind(1)) - s.no_eos_penalty * ~finished  # (batch,)
    with torch.no_grad():
        old = token_logprobs(policy, tokens, mask)  # (batch, seq), as all that follows
        ref = token_logprobs(reference, tokens, mask)
        values = critic(tokens)
    rewards = token_rewards(scores, old, ref, mask, s.beta)

    # Advantages: what a token brought beyond what the critic had expected
    advantages, returns = gae(rewards, values, mask, s.gamma, s.lam)
    advantages = whiten(advantages, *mean_and_std(advantages[mask]))

    # Minibatches: a step each of the policy and of the critic
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    for rows in order.split(s.minibatch):
        new = token_logprobs(policy, tokens[rows], mask[rows])
        loss, _ = policy_loss(new, old[rows], advantages[rows], mask[rows], s.clip)
        loss.backward()
        step(policy, policy_optimizer, s.optim.clip)

        new_values = critic(tokens[rows])
        loss = value_loss(new_values, values[rows], returns[rows], mask[rows], s.value_clip)
        loss.backward()
        step(critic, critic_optimizer, s.critic_optim.clip)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, clip: float, learns: bool = True) -> Figure:
    """Clip the gradients, take the step if the module `learns` yet, and free them: the next module needs the room.
    Their norm before the clip."""
    norm = figure(sharded.clip_gradients(module.parameters(), clip))
    if learns:
        optimizer.step()
    optimizer.zero_grad()
    return norm


# ---- what runs ---------------------------------------------------------------------------------------------


TOLD = ("sampled", "old", "advantages", "values", "returns")  # what every process must know of all answers


class Part(NamedTuple):
    """Some rollouts of a minibatch; all (part, seq)."""

    tokens: Tensor
    wanted: Tensor  # the answers' tokens, on the CPU
    mask: Tensor  # the same
    sampled: Tensor  # the answers' log-probabilities as the sampler gave them
    old: Tensor  # and as `token_logprobs` gives them, before the first step
    ref: Tensor  # those of the model before PPO
    values: Tensor
    advantages: Tensor
    returns: Tensor


def checked_gap(sampled: Tensor, scored: Tensor, precision: str, number: int) -> dict[str, float]:
    """`sampling_gap` of an iteration's tokens; LabError where it is more than rounding."""
    gap = sampling_gap(sampled, scored)
    if not only_rounded(sampled, scored, precision):
        raise LabError(
            f"PPO: sampling and scoring disagree by {gap['sampling_gap']:.2g} nats a token "
            f"(sampling_gap; sampling_kl {gap['sampling_kl']:.2g}) in iteration {number}, more than "
            f"rounding in {precision}: answers were not drawn from the policy that learns from them; sample "
            "at temperature 1, without top-p and top-k, with the weights and in the precision that score"
        )
    return gap


def finite(what: str, *tensors: Tensor) -> None:
    """LabError that names `what` where some of it is NaN or infinite."""
    cure = "nothing is saved of this iteration; lower the learning rate, or train the model they come from again"
    for x in tensors if not all_finite(tensors) else ():
        check_tensors({what: x}, "PPO", cure)


def ppo(
    policy: Llama,
    critic: Critic,
    score: Score,
    tokenizer: PreTrainedTokenizerFast,
    prompts_for: Callable[[int], list[Prompt]],
    settings: PPOSettings,
    seed: int,
    machine: Machine,
    folder: Path | None = None,
    on_rollouts: Callable[[int, list[dict]], None] | None = None,
    heldout: Sequence[Prompt] = (),
    documents: Sequence[str] = (),
    beta_for: Callable[[int], float] | None = None,
    reference: Llama | None = None,
) -> dict[str, Any]:
    """Improve `policy` in place. Returns metrics with `log`, one dict of standard metrics an iteration, all finite;
    `kl` and `clipfrac` are those of the last one, and missing where there was none.

    Args:
        score: logit(R_c) for (prompts, answers); see `gate.combined_scores`.
        prompts_for: `prompts_for(iteration)` gives at least `settings.batch` training prompts.
        on_rollouts: called with (iteration, rows of prompt, answer, score), to keep them for later judgement.
        heldout: prompts the score is also measured on every four iterations (`heldout_score`), as the report does for
            early stopping; training keeps the policy of the last iteration.
        documents: pretraining text for `settings.replay`.
        beta_for: `beta_for(iteration)` in place of `settings.beta`: a panel's slider acts between iterations.
        reference: pi_0, the policy as it is now; without it, a copy is made.

    Raises:
        LabError: scores, rewards, advantages or weights that are not finite, or answers that were not sampled from the
            distribution that scores them (`sampling_gap`). The state of the iterations before it is kept.
    """
    s, device, pad = settings, machine.device, tokenizer.pad_token_id
    policy.to(device)
    critic.to(device)
    reference = copy.deepcopy(policy) if reference is None else reference.to(device)
    reference.requires_grad_(False).eval()
    divided = contextlib.ExitStack()  # not left after an error
    for module in (policy, critic):
        divided.enter_context(sharded.divided(module, machine))
    policy_optimizer, critic_optimizer = make_optimizer(policy, s.optim), make_optimizer(critic, s.critic_optim)
    weights = [p for p in policy.parameters() if p.requires_grad]
    critic_weights = [p for p in critic.parameters() if p.requires_grad]
    large = is_large(weights)
    seq_len = min(REPLAY_SEQ, policy.config.context)
    replayed = (
        pack(list(encode_documents(tokenizer, documents)), seq_len, seed, pad) if s.replay and documents else None
    )
    replay_rows = epoch_batches(len(replayed), max(1, s.replay_tokens // seq_len), seed) if replayed else None
    steps_each = math.ceil(s.batch / s.minibatch)
    whitening = torch.zeros(2, 2)  # mean and std of logit(R_c) in the first batch: of safety prompts, of the others
    stopped: list[int] = []

    def scored(what: str, prompts: Sequence[Prompt], written: Sequence[Generation]) -> tuple[list[str], Tensor]:
        """The answers' texts and their logit(R_c), (batch,)."""
        texts = [decode_answer(tokenizer, g.tokens) for g in written]
        raw = torch.tensor(score(prompts, texts))
        finite(f"the reward models' scores of {what}", raw)
        return texts, raw

    # The losses, with autocast and figures: each thread of each process computes them of its part of a minibatch.
    def policy_part(part: Part) -> tuple[Tensor, Figure, dict[str, Figure]]:
        with machine.autocast():
            new = token_logprobs(policy, part.tokens, part.wanted)
        loss, metrics = policy_loss(new, part.old, part.advantages, part.mask, s.clip)
        metrics |= {
            "pg_loss": figure(loss),
            "entropy": figure(masked_mean(-part.old, part.mask)),
        }  # a sample estimate, in nats a token
        return loss, float(part.wanted.sum()), metrics

    def critic_part(part: Part) -> tuple[Tensor, Figure, dict[str, Figure]]:
        with machine.autocast():
            new_values = critic(part.tokens)
        loss = value_loss(new_values, part.values, part.returns, part.mask, s.value_clip)
        return loss, float(part.wanted.sum()), {"value_loss": figure(loss)}

    def replay_part(rows: Sequence[int]) -> tuple[Tensor, Figure, dict[str, Figure]]:
        assert replayed is not None
        with machine.autocast():
            loss, count = rows_loss(policy, replayed, rows, machine)
        return s.replay * loss, float(count), {}

    def iteration(number: int) -> dict[str, float]:
        if stopped:
            return {"skipped": 1.0}

        # Rollouts
        prompts = prompts_for(number)[: s.batch]
        if not prompts:
            raise LabError(f"PPO: iteration {number} has no prompts; give it some, and a batch of at least 1")
        acting = [undivided(policy), undivided(critic.backbone)]
        asked, written = rollout(
            acting[0], tokenizer, prompts, s.max_new_tokens, seed * 10_000 + number, machine.precision
        )
        answers, raw = scored(f"iteration {number}", prompts, written)
        finished = torch.tensor([g.finished for g in written])  # (batch,)
        if on_rollouts:
            on_rollouts(
                number,
                [
                    {"prompt": asdict(p), "answer": a, "score": round(x, 4)}
                    for p, a, x in zip(prompts, answers, raw.tolist(), strict=True)
                ],
            )

        # Rewards and advantages, in the parts of minibatches that will be learnt from, so that the first ratio is 1
        kinds = torch.tensor([p.kind != "unsafe" for p in prompts]).long()  # (batch,) row of `whitening`
        if not whitening.any():
            whitening.copy_(torch.stack([mean_and_std(raw[kinds == row]) for row in (0, 1)]))
        scores = whiten(raw, *whitening[kinds].unbind(1)) - s.no_eos_penalty * ~finished
        beta = beta_for(number) if beta_for else s.beta

        def evaluate(rows: Sequence[int]) -> Part:
            tokens, wanted = with_answers([asked[i] for i in rows], [written[i] for i in rows], pad)
            sampled = torch.zeros(wanted.shape)
            sampled[wanted] = torch.tensor([x for i in rows for x in written[i].logprobs])
            tokens, mask, sampled = (on_device(x, device) for x in (tokens, wanted, sampled))
            with torch.no_grad(), machine.autocast():
                old = token_logprobs(acting[0], tokens, wanted)
                ref = token_logprobs(reference, tokens, wanted)
                values = critic(tokens, acting[1])
            rewards = token_rewards(scores[rows].to(device), old, ref, mask, beta)
            finite(f"the rewards of iteration {number}", rewards)
            return Part(tokens, wanted, mask, sampled, old, ref, values, *gae(rewards, values, mask, s.gamma, s.lam))

        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed * 10_000 + number)).tolist()
        minibatches = [
            in_parallel(evaluate, split(distributed.shared(order[start : start + s.minibatch]), device, large), device)
            for start in range(0, len(order), s.minibatch)
        ]
        every = [part for parts in minibatches for part in parts]
        told = [[getattr(p, name)[p.mask].cpu() for name in TOLD] for p in every]
        acting.clear()  # copies, where the models are divided
        # of the answers' tokens of all processes alone, each (tokens,)
        sampled, old, advantages, values, returns = map(
            torch.cat, zip(*itertools.chain(*distributed.gathered(told)), strict=True)
        )
        gap = checked_gap(sampled, old, machine.precision, number)
        finite(f"the advantages of iteration {number}", advantages)
        mean, std = mean_and_std(advantages)
        minibatches = [
            [part._replace(advantages=whiten(part.advantages, mean, std)) for part in parts] for parts in minibatches
        ]

        # One gradient step a minibatch. Policy and critic share no weight, so each learns from its own loss.
        steps: list[dict[str, Figure]] = []
        policy.train()
        for i, parts in enumerate(minibatches):
            loss, metrics = sharded.backward(policy_part, parts, weights, device)
            if replay_rows is not None:
                rows = split(distributed.shared(replay_rows(number * steps_each + i)), device, large)
                metrics["replay_loss"], _ = sharded.backward(replay_part, rows, weights, device, add=True)
            metrics["grad_norm"] = step(policy, policy_optimizer, s.optim.clip, number >= s.critic_warmup)
            critic_loss, more = sharded.backward(critic_part, parts, critic_weights, device)
            steps.append(
                {
                    **metrics,
                    **more,
                    "loss": loss + critic_loss,
                    "critic_grad_norm": step(critic, critic_optimizer, s.critic_optim.clip),
                }
            )
        log = [numbers(entry) for entry in steps]
        for what, module in (("policy", policy), ("critic", critic)):  # before they are saved
            weights_now = (sharded.local(p.detach()) for p in module.parameters())
            finite(f"the {what}'s weights after iteration {number}", *weights_now)

        # Figures
        kls = [(kl_estimates(p.old, p.ref)["k1"] * p.mask).sum().item() for p in every]
        kl = sum(itertools.chain(*distributed.gathered(kls))) / len(prompts)
        if kl > s.early_stop_kl:
            stopped.append(number)
        result = {
            "score": raw.mean().item(),
            "kl": kl,
            "reward": scores.mean().item(),
            "first_ratio": log[0]["ratio"],
            "length": len(old) / len(prompts),
            "finished": finished.sum().item() / len(prompts),
            **gap,
            **{key: sum(entry[key] / len(log) for entry in log) for key in log[0]},
        }
        explained = explained_variance(values, returns)
        if explained is not None:
            result["explained_variance"] = explained
        if heldout and (number % 4 == 3 or number == s.iterations - 1):
            _, held = rollout(policy, tokenizer, heldout, s.max_new_tokens, seed * 10_000 + 5000, machine.precision)
            result["heldout_score"] = scored("held-out prompts", heldout, held)[1].mean().item()
        return result

    def tensors() -> dict[str, Tensor]:
        return {
            **module_tensors("policy", policy, policy_optimizer),
            **module_tensors("critic", critic, critic_optimizer),
            "whitening": whitening,
            "stopped": torch.tensor(stopped),
        }

    def restore(saved: dict[str, Tensor]) -> None:
        restore_module("policy", policy, policy_optimizer, saved)
        restore_module("critic", critic, critic_optimizer, saved)
        whitening.copy_(saved["whitening"])
        stopped.extend(int(x) for x in saved["stopped"])

    with shared_cores(device):
        log = resumable_loop(s.iterations, iteration, tensors, restore, folder, "PPO", "iteration")
    divided.close()
    policy.eval()
    log = [entry for entry in log if "skipped" not in entry]
    return {
        "log": log,
        "iterations": len(log),
        "stopped_early": bool(stopped),
        **{key: log[-1][key] for key in ("kl", "clipfrac") if log},
    }
