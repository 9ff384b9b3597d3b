"""Proximal policy optimisation (Llama 2, section 3.2.3), read from top to bottom.

The reward is the report's: R = whiten(logit(R_c)) - beta * KL(pi || pi_0), with R_c the gated choice between the two
reward models. Clip 0.2, one gradient step a minibatch, AdamW 0.9/0.95, constant learning rate, all as reported.

Ours, with the reason:
- learning rate 2e-4 instead of 1e-6, batch 256 instead of 512: a model 7,000 times smaller, minutes instead of days;
- GAE with gamma 1 and lambda 0.95, a critic that starts from the helpfulness reward model, three warm-up iterations
  for it: the report gives no details of its value function;
- beta 0.2 instead of 0.01 or 0.005: with 0.02 and lr 3e-4 the policy learnt to wish a good day three times in one
  answer, which no preference pair had shown to be bad, and two of three seeds lost true helpfulness. Of this preset's
  V4, on dev prompts (one seed: 1.47 of true helpfulness, right in .71), 20 iterations made 1.57 and .68 with 0.1, 1.71
  and .73 with 0.2, at a KL of 1.0 and 0.9 nats;
- near half of the prompts are unsafe: with .3 of them V5 violated more than V4 (dev, the same V4: .14 instead of .10,
  and refused .08 instead of .11 of the borderline prompts), with .45 of them .09 and .10;
- the norms' gains learn 20 times as fast as the matrices: they set how sure a policy is of its answers, are near 1 and
  not near 0, and would hardly move in a hundred steps. In one trial on dev prompts, from 1.37 of true helpfulness, it
  reached 1.60 and .82 wins with it (right in .700), 1.49 and .78 without (.672), at about the same KL;
- whitening statistics are those of the first batch: per-batch statistics would hide the growth of the reward. They are
  taken over safety prompts and over the others apart: the safety model's scores spread several times as far as the
  helpfulness model's, and whitened together a refusal gains more on one unsafe prompt than a right answer on many
  others (in a trial with one scale the policy refused every borderline prompt);
- the KL is charged token by token (k1, log pi - log pi_0), which has the same expectation;
- every step also takes in some pretraining text (`replay`; InstructGPT's "ptx" term, arXiv 2203.02155, which the report
  does not mention): a small model that climbs a reward on training prompts forgets what they do not name. In one trial,
  on dev prompts, greedy answers were right in .79 of the prompts with it (24 iterations), in .75 without (30);
- an answer that does not end in `</s>` loses one point: the length is limited, and a cut answer must not pay;
- answers are sampled at temperature 1 without top-p or top-k, so the sampled distribution is the scored one. The ratio
  of the first minibatch does not show that: its two sides are the same function of the same weights, so it is 1 by
  construction, whatever the sampler did. What shows it is `sampling_gap`, logged at each iteration: what the sampler
  said of its own tokens against what scoring says of them. Only rounding may part them, or PPO stops.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import Optim, make_optimizer, module_tensors, restore_module, resumable_loop
from llama2lab.engine.packing import epoch_batches, pack
from llama2lab.engine.parallel import backward, in_parallel, is_large, shared_cores, split
from llama2lab.engine.settings import Clash, Count, CountOrNone, Few, Limit, Share, Weight, checked
from llama2lab.model.chat import decode_answer, encode_chats
from llama2lab.model.generate import Generation, generate
from llama2lab.model.logprobs import pad_right, token_logprobs
from llama2lab.model.network import Llama
from llama2lab.stages.pretrain import encode_documents, rows_loss
from llama2lab.stages.reward import RewardModel
from llama2lab.town.prompts import Prompt

REPLAY_SEQ = 256  # tokens in a row of replayed text
# Sampling and scoring round differently (a cache, other shapes, in bf16 other casts). Measured, root mean squares in
# nats a token: 1e-6 in fp32 and .009 to .011 in bf16 (SFT and V4 of the preset; a sampler in bf16 against scores in
# fp32 .006 to .010), .07 in bf16 for a model of 135M with random weights and a vocabulary of 49,152; but .17 and more
# at temperature .2, .35 for another stage's policy. Rounding goes both ways, a sampler that cuts does not: the KL of
# sampling from scoring was under .0004 in bf16 (.002 of the 135M), and .006 and more with top-k 3 or top-p .9.
ROUNDING = {"fp32": 3e-4, "bf16": 0.15}  # the most that the gap's root mean square may be
SAMPLING_KL = 0.003  # the most that `sampling_kl` may be, with three standard errors


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
    optim: Optim = Optim(lr=2e-4, gain_lr=20.0)
    critic_optim: Optim = Optim(lr=5e-4)

    def __post_init__(self) -> None:
        if self.minibatch > self.batch:
            raise Clash(f"must be at most batch ({self.batch}), not {self.minibatch}", "minibatch", "batch")
        if self.critic_warmup >= self.iterations:
            raise Clash(f"must be less than iterations ({self.iterations}), or the policy learns nothing, and is "
                        f"{self.critic_warmup}", "critic_warmup", "iterations")


class Critic(nn.Module):
    """Expected return from each position: a decoder with a scalar head, started from a reward model."""

    def __init__(self, reward: RewardModel):
        super().__init__()
        self.backbone = copy.deepcopy(reward.backbone).requires_grad_(True)
        self.head = nn.Linear(self.backbone.config.dim, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.backbone.hidden(tokens).float() * self.head.weight).sum(-1)  # (batch, seq), float32 under autocast


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


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2,
                ) -> tuple[Tensor, dict[str, float]]:
    """The clipped objective with its metrics: `ratio`, `approx_kl` (k3: mean of ratio - 1 - log ratio), `clipfrac`.

    Args:
        new, old: (batch, steps) log-probabilities of the taken tokens, now and when they were sampled.
    """
    log_ratio = torch.where(mask, new - old, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(pg_loss1, pg_loss2), mask)
    with torch.no_grad():
        metrics = {"ratio": masked_mean(ratio, mask).item(),
                   "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask).item(),
                   "clipfrac": masked_mean(((ratio - 1).abs() > clip).float(), mask).item()}
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
    rewards[torch.arange(len(scores)), last] += torch.where(mask.any(1), scores, 0.0)
    return rewards


def mean_and_std(x: Tensor) -> Tensor:
    """(2,): mean and standard deviation, the latter never 0; 0 and 1 of nothing."""
    if len(x) < 2:
        return torch.tensor([x.sum(), 1.0])
    return torch.stack([x.mean(), x.std() + 1e-6])


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """The share of the returns' variance that the critic's values explain, both (tokens,); None where the returns do
    not vary, so that there is nothing to explain."""
    if len(returns) < 2 or returns.var() == 0:
        return None
    return float(1 - (returns - values).var() / returns.var())


def sampling_gap(sampled: Tensor, scored: Tensor) -> dict[str, float]:
    """How far what the sampler said of its own tokens lies from what scoring says of them: `sampling_gap` and
    `sampling_gap_max`, the mean and the largest absolute difference of the log-probabilities, and `sampling_kl`, the
    mean difference, which is the KL of what was sampled from what is scored (k1). Nats a token.

    Args:
        sampled, scored: (tokens,) log-probabilities, `Generation.logprobs` and `token_logprobs`; at least one.
    """
    gap = sampled - scored
    return {"sampling_gap": gap.abs().mean().item(), "sampling_gap_max": gap.abs().max().item(),
            "sampling_kl": gap.mean().item()}


def only_rounded(sampled: Tensor, scored: Tensor, precision: str) -> bool:
    """Whether the gap between sampling and scoring can be rounding in this precision; see `sampling_gap`."""
    gap = sampled - scored
    noise = 3 * gap.std().item() / len(gap)**0.5 if len(gap) > 1 else 0.0
    return gap.square().mean().sqrt().item() <= ROUNDING[precision] and gap.mean().item() <= SAMPLING_KL + noise


def finite(what: str, x: Tensor) -> None:
    """LabError that names `what` where some of it is NaN or infinite."""
    bad = x[~torch.isfinite(x)]
    if len(bad):
        raise LabError(f"PPO: {what}: {len(bad)} of {x.numel()} values are not finite ({bad[0].item()}) and nothing "
                       "is saved of this iteration; lower the learning rate, or train the model they come from again")


# ---- the algorithm -----------------------------------------------------------------------------------------

def step(module: nn.Module, optimizer: torch.optim.Optimizer, clip: float, learns: bool) -> float:
    """Clip the gradients, take the step if the module `learns` yet, and free them: the next module needs the room.
    Their norm before the clip."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), clip).item()
    if learns:
        optimizer.step()
    optimizer.zero_grad()
    return norm


class Part(NamedTuple):
    """Some rollouts of a minibatch; all (part, seq)."""

    tokens: Tensor
    mask: Tensor  # the answers' tokens
    sampled: Tensor  # the answers' log-probabilities as the sampler gave them
    old: Tensor  # and as `token_logprobs` gives them, before the first step
    ref: Tensor  # those of the model before PPO
    values: Tensor
    advantages: Tensor
    returns: Tensor


Score = Callable[[Sequence[Prompt], Sequence[str]], list[float]]  # logit(R_c) of one answer a prompt


def ppo(policy: Llama, critic: Critic, score: Score, tokenizer: PreTrainedTokenizerFast,
        prompts_for: Callable[[int], list[Prompt]], settings: PPOSettings, seed: int, machine: Machine,
        folder: Path | None = None, on_rollouts: Callable[[int, list[dict]], None] | None = None,
        heldout: Sequence[Prompt] = (), documents: Sequence[str] = (),
        beta_for: Callable[[int], float] | None = None, reference: Llama | None = None) -> dict[str, Any]:
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
    s = settings
    policy.to(machine.device)
    critic.to(machine.device)
    reference = copy.deepcopy(policy) if reference is None else reference.to(machine.device)
    reference.requires_grad_(False).eval()
    policy_optimizer, critic_optimizer = make_optimizer(policy, s.optim), make_optimizer(critic, s.critic_optim)
    weights = list(policy.parameters())
    critic_weights = [p for p in critic.parameters() if p.requires_grad]
    large = is_large(weights)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    seq_len = min(REPLAY_SEQ, policy.config.context)
    replayed = (pack(list(encode_documents(tokenizer, documents)), seq_len, seed, pad)
                if s.replay and documents else None)
    replay_rows = epoch_batches(len(replayed), max(1, s.replay_tokens // seq_len), seed) if replayed else None
    minibatches_each = math.ceil(s.batch / s.minibatch)
    whitening = torch.zeros(2, 2)  # mean and std of logit(R_c) in the first batch: of safety prompts, of the others

    def sample(prompts: Sequence[Prompt], seed: int) -> tuple[list[list[int]], list[Generation]]:
        asked = [ids for ids, _ in encode_chats(tokenizer, [list(p.messages) for p in prompts],
                                                add_generation_prompt=True)]
        policy.eval()
        return asked, generate(policy, asked, s.max_new_tokens, temperature=1.0, seed=seed, eos_id=eos, pad_id=pad,
                               precision=machine.precision)

    def scored(what: str, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> tuple[list[str], Tensor]:
        """The answers' texts and their logit(R_c), (batch,)."""
        texts = [decode_answer(tokenizer, g.tokens) for g in generations]
        raw = torch.tensor(score(prompts, texts))
        finite(f"the reward models' scores of {what}", raw)
        return texts, raw

    def iteration(number: int) -> dict[str, float]:
        # ROLLOUT: answers from the current policy
        prompts = prompts_for(number)[:s.batch]
        if not prompts:
            raise LabError(f"PPO: iteration {number} has no prompts; give it some, and a batch of at least 1")
        asked, generations = sample(prompts, seed * 10_000 + number)
        written, finished = [g.tokens for g in generations], [g.finished for g in generations]
        answers, raw = scored(f"iteration {number}", prompts, generations)
        kinds = torch.tensor([p.kind != "unsafe" for p in prompts]).long()  # (batch,) row of `whitening`
        if not whitening.any():
            whitening.copy_(torch.stack([mean_and_std(raw[kinds == row]) for row in (0, 1)]))
        mean, std = whitening[kinds].unbind(1)
        scores = (raw - mean) / std - s.no_eos_penalty * ~torch.tensor(finished)
        if on_rollouts:
            on_rollouts(number, [{"prompt": asdict(p), "answer": a, "score": round(x, 4)}
                                 for p, a, x in zip(prompts, answers, raw.tolist(), strict=True)])

        beta = beta_for(number) if beta_for else s.beta

        # EVALUATE the rollouts in the parts of minibatches that will be learnt from, so that the first ratio is 1
        def evaluate(rows: Sequence[int]) -> Part:
            tokens, lengths = pad_right([asked[i] + written[i] for i in rows], pad)
            at = torch.arange(tokens.shape[1])
            starts = torch.tensor([len(asked[i]) for i in rows])
            mask = (at >= starts[:, None]) & (at < lengths[:, None])  # (part, seq), the answers' tokens
            tokens, mask = tokens.to(machine.device), mask.to(machine.device)
            sampled = torch.zeros(mask.shape, device=machine.device)
            sampled[mask] = torch.tensor([x for i in rows for x in generations[i].logprobs], device=machine.device)
            with torch.no_grad(), machine.autocast():
                old = token_logprobs(policy, tokens, mask)
                ref = token_logprobs(reference, tokens, mask)
                values = F.pad(critic(tokens)[:, :-1], (1, 0))  # the value before token t is read at t - 1
            rewards = token_rewards(scores[rows].to(machine.device), old, ref, mask, beta)
            finite(f"the rewards of iteration {number}", rewards)
            return Part(tokens, mask, sampled, old, ref, values, *gae(rewards, values, mask, s.gamma, s.lam))

        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed * 10_000 + number)).tolist()
        minibatches = [in_parallel(evaluate, split(order[start:start + s.minibatch], machine.device, large),
                                   machine.device)
                       for start in range(0, len(order), s.minibatch)]
        every = [part for parts in minibatches for part in parts]
        whole = Part(*(torch.cat([p[i][p.mask] for p in every]) for i in range(len(Part._fields))))  # each (tokens,)
        gap = sampling_gap(whole.sampled, whole.old)
        if not only_rounded(whole.sampled, whole.old, machine.precision):
            raise LabError(f"PPO: sampling and scoring disagree by {gap['sampling_gap']:.2g} nats a token "
                           f"(sampling_gap; sampling_kl {gap['sampling_kl']:.2g}) in iteration {number}, more than "
                           f"rounding in {machine.precision}: answers were not drawn from the policy that learns from "
                           "them; sample at temperature 1, without top-p and top-k, with the weights and in the "
                           "precision that score")
        finite(f"the advantages of iteration {number}", whole.advantages)
        mean, std = mean_and_std(whole.advantages)

        # LEARN: one gradient step a minibatch. Policy and critic share no weight, so each learns from its own loss.
        def policy_part(part: Part) -> tuple[Tensor, float, dict[str, float]]:
            with machine.autocast():
                new = token_logprobs(policy, part.tokens, part.mask)
            pg_loss, metrics = policy_loss(new, part.old, (part.advantages - mean) / std, part.mask, s.clip)
            metrics |= {"pg_loss": pg_loss.item(),
                        "entropy": masked_mean(-part.old, part.mask).item()}  # a sample estimate, in nats a token
            return pg_loss, float(part.mask.sum()), metrics

        def critic_part(part: Part) -> tuple[Tensor, float, dict[str, float]]:
            with machine.autocast():
                new_values = F.pad(critic(part.tokens)[:, :-1], (1, 0))
            v_loss = value_loss(new_values, part.values, part.returns, part.mask, s.value_clip)
            return v_loss, float(part.mask.sum()), {"value_loss": v_loss.item()}

        def replay_loss(rows: Sequence[int]) -> tuple[Tensor, float, dict[str, float]]:
            assert replayed is not None
            with machine.autocast():
                loss, count = rows_loss(policy, replayed, rows, machine)
            return s.replay * loss, float(count), {}

        sums: dict[str, float] = {}
        first_ratio = 1.0
        policy.train()
        for number_in_batch, parts in enumerate(minibatches):
            policy_loss_now, metrics = backward(policy_part, parts, weights, machine.device)
            if replay_rows is not None:
                rows = replay_rows(number * minibatches_each + number_in_batch)
                metrics["replay_loss"], _ = backward(replay_loss, split(rows, machine.device, large), weights,
                                                     machine.device, add=True)
            metrics["grad_norm"] = step(policy, policy_optimizer, s.optim.clip, number >= s.critic_warmup)
            critic_loss_now, more = backward(critic_part, parts, critic_weights, machine.device)
            metrics |= {**more, "loss": policy_loss_now + critic_loss_now,
                        "critic_grad_norm": step(critic, critic_optimizer, s.critic_optim.clip, True)}
            if number_in_batch == 0:
                first_ratio = metrics["ratio"]
            for key, value in metrics.items():
                sums[key] = sums.get(key, 0.0) + value / len(minibatches)
        kl = sum((kl_estimates(p.old, p.ref)["k1"] * p.mask).sum().item() for parts in minibatches for p in parts)
        result = {"score": raw.mean().item(), "kl": kl / len(prompts), "reward": scores.mean().item(),
                  "first_ratio": first_ratio, "length": sum(map(len, written)) / len(written),
                  "finished": sum(finished) / len(finished), **gap, **sums}
        explained = explained_variance(whole.values, whole.returns)
        if explained is not None:
            result["explained_variance"] = explained
        if heldout and (number % 4 == 3 or number == s.iterations - 1):
            _, held = sample(heldout, seed * 10_000 + 5000)
            result["heldout_score"] = scored("held-out prompts", heldout, held)[1].mean().item()
        if result["kl"] > s.early_stop_kl:
            stopped.append(number)
        for what, module in (("policy", policy), ("critic", critic)):  # before they are saved
            for p in module.parameters():
                finite(f"the {what}'s weights after iteration {number}", p.detach())
        return result

    stopped: list[int] = []

    def step_fn(number: int) -> dict[str, float]:
        return {"skipped": 1.0} if stopped else iteration(number)

    def tensors() -> dict[str, Tensor]:
        return {**module_tensors("policy", policy, policy_optimizer),
                **module_tensors("critic", critic, critic_optimizer),
                "whitening": whitening, "stopped": torch.tensor(stopped)}

    def restore(saved: dict[str, Tensor]) -> None:
        restore_module("policy", policy, policy_optimizer, saved)
        restore_module("critic", critic, critic_optimizer, saved)
        whitening.copy_(saved["whitening"])
        stopped.extend(int(x) for x in saved["stopped"])

    with shared_cores(machine.device):
        log = resumable_loop(s.iterations, step_fn, tensors, restore, folder, "PPO", "iteration")
    policy.eval()
    log = [entry for entry in log if "skipped" not in entry]
    return {"log": log, "iterations": len(log), "stopped_early": bool(stopped),
            **{key: log[-1][key] for key in ("kl", "clipfrac") if log}}
