"""Exercises of notebook 08: PPO (Llama 2, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import Wrong, close, judge, randn, read
from llama2lab.lab.predictions import Choice, Prediction, Ranking
from llama2lab.lessons.n08_ppo import three_tokens
from llama2lab.lessons.n08_ppo.own_output import draw_clip, draw_gae, draw_kl, draw_policy, draw_value_loss
from llama2lab.model.generate import sample
from llama2lab.stages import ppo


def check_kl(f: Callable) -> None:
    policy, reference = randn(2, 5) - 2, randn(2, 5, seed=1) - 2
    result = f(policy, reference)
    if isinstance(result, tuple | list) and len(result) == 3:
        result = dict(zip(("k1", "k2", "k3"), result, strict=False))
    if not isinstance(result, Mapping) or set(result) != {"k1", "k2", "k3"}:
        raise Mistake("A dictionary with k1, k2 and k3 is expected (or three tensors in that order).")
    right = ppo.kl_estimates(policy, reference)
    ratio = reference - policy
    judge(
        read(result["k1"], (2, 5), "k1"),
        right["k1"],
        (ratio, "The KL has the wrong sign: k1 is log pi - log pi_0, on average positive where pi differs."),
        (right["k1"].abs(), "k1 may be negative on single tokens; without its sign it is no estimate of the KL."),
        what="k1",
    )
    judge(
        read(result["k2"], (2, 5), "k2"),
        right["k2"],
        (ratio**2, "k2 lacks its factor one half."),
        (0.5 * ratio, "k2 is half the SQUARE of the log ratio."),
        what="k2",
    )
    judge(
        read(result["k3"], (2, 5), "k3"),
        right["k3"],
        (
            (-ratio).exp() - 1 + ratio,
            "k3 has its ratio upside down: r is pi_0 / pi, because the tokens come from pi; k3 = r - 1 - log r.",
        ),
        (ratio.exp() - 1 + ratio, "The sign of the logarithm in k3 is wrong: r - 1 - log r."),
        (ratio.exp() - ratio, "k3 lacks its - 1: it must be 0 where both agree."),
        (-right["k3"], "k3 has the wrong sign: it is never negative."),
        what="k3",
    )


KL = Exercise(
    "08.kl",
    "Three estimates of the KL",
    "Write kl_estimates(policy, reference) for log-probabilities (batch, steps) of tokens drawn from the policy: a "
    "dictionary with k1 = log pi - log pi_0, k2 = half the squared log ratio, k3 = r - 1 - log r with r = pi_0 / pi.",
    Level(difficulty=2, minutes=10, points=3),
    "3.2.3; Schulman 2020",
    ("log r = reference - policy.", "k1 = -log r; k3 = exp(log r) - 1 - log r."),
    check_kl,
    ppo.kl_estimates,
    lesson="k1 and k3 have the same mean, because r averages to 1 over tokens drawn from pi: r - 1 adds nothing on "
    "average and takes away the scatter, as long as r stays near 1.",
    extra=True,
    picture=draw_kl,
)


def _gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    masked: bool = True,
    bootstrap: bool = True,
    same: bool = False,
) -> Tensor:
    """Advantages with the usual mistakes as arguments."""
    out, running, ahead = torch.zeros_like(rewards), torch.zeros(len(rewards)), torch.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        following = values[:, t] if same else ahead if bootstrap else torch.zeros_like(ahead)
        running = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * running
        ahead = values[:, t]
        if masked:
            running, ahead = running * mask[:, t], ahead * mask[:, t]
        out[:, t] = running
    return out


def check_gae(f: Callable) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]]).bool()
    rewards, values, gamma, lam = randn(2, 6), randn(2, 6, seed=1), 0.9, 0.8  # what lies outside the mask is noise
    result = f(rewards, values, mask, gamma, lam)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise Mistake("Two tensors are expected: advantages and returns.")
    got, returns = (read(r, (2, 6), name) for r, name in zip(result, ("the advantages", "the returns"), strict=False))
    right, right_returns = ppo.gae(rewards, values, mask, gamma, lam)
    plain = _gae(rewards, values, mask, gamma, lam)
    judge(
        got * mask,
        right,
        (
            _gae(rewards, values, mask, gamma, lam, masked=False) * mask,
            "The mask is not used: rewards and values behind the answer's end leak into it.",
        ),
        (
            _gae(rewards, values, mask, gamma, lam, bootstrap=False),
            "The value of the next step is missing in delta = reward + gamma * next value - value.",
        ),
        (
            _gae(rewards, values, mask, gamma, lam, same=True),
            "delta uses the value of the same step twice; the next step's value belongs to gamma.",
        ),
        (_gae(rewards, values, mask, gamma, 1.0), "lambda is not used."),
        (_gae(rewards, values, mask, 1.0, lam), "gamma is not used."),
        (
            _gae(rewards, values, mask, gamma, 0.0),
            "That is delta alone: add gamma * lambda times the next advantage.",
        ),
        (_gae(rewards, values, mask, gamma, lam / gamma), "The sum decays by lambda; it is gamma * lambda."),
        (right_returns, "Those are the returns; advantages are returns - values."),
        what="the advantages",
    )
    if not close(got, right):
        raise Mistake("Outside of the mask the advantages must be 0.")
    judge(
        returns * mask,
        right_returns,
        (plain, "The returns equal the advantages; returns = advantages + values."),
        ((plain - values) * mask, "The returns are advantages PLUS values."),
        what="the returns",
    )


GAE = Exercise(
    "08.gae",
    "Generalised advantage estimation",
    "Write gae(rewards, values, mask, gamma, lam) -> (advantages, returns), all (batch, steps). delta_t = reward_t + "
    "gamma * value_(t+1) - value_t; advantage_t = delta_t + gamma * lam * advantage_(t+1); returns = advantages + "
    "values. The mask is True on the answer's tokens, one block; beyond its end everything is 0.",
    Level(difficulty=4, minutes=25, points=4),
    "3.2.3; arXiv 1506.02438",
    (
        "Go backwards, and carry the running advantage and the next value along.",
        "Where the mask is False set both to 0: so the last token sees nothing behind it.",
        "torch.where(mask[:, t], ..., 0) for both.",
    ),
    check_gae,
    ppo.gae,
    lesson="An advantage is what the critic did not foresee: under a perfect one it is 0 on average. Lambda trades the "
    "critic's errors (at 0) against the luck of all that follows (at 1).",
    picture=draw_gae,
)


def clipped_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """The library's policy loss without its metrics."""
    return ppo.policy_loss(new, old, advantages, mask, clip)[0]


def check_clip(f: Callable) -> None:
    old, advantages = randn(2, 6) - 2, randn(2, 6, seed=1)
    new = old + 0.5 * randn(2, 6, seed=2)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()
    ratio = (new - old).exp()
    one, two = ratio * advantages, ratio.clamp(0.8, 1.2) * advantages

    def mean(x: Tensor) -> Tensor:
        return x[mask].mean()

    inverse = (old - new).exp()
    got = read(f(new, old, advantages, mask, 0.2), (), "the loss")
    judge(
        got,
        clipped_loss(new, old, advantages, mask, 0.2),
        (
            mean(torch.minimum(one, two)),
            "The sign is wrong: a loss is made small, the objective large. Put a minus before it.",
        ),
        (
            -mean(torch.maximum(one, two)),
            "The larger of the two objectives is taken; PPO takes the smaller one (for losses, which have a minus, the "
            "larger), else clipping never holds anything back.",
        ),
        (-mean(one), "Nothing is clipped."),
        (
            -mean(two),
            "Only the clipped term is used; the smaller of both counts, so that a bad move is always undone.",
        ),
        (
            -torch.minimum(one, two).mean(),
            "The mean goes over padding and prompt too; only tokens of the mask count.",
        ),
        (
            -mean(torch.minimum((new - old) * advantages, (new - old).clamp(0.8, 1.2) * advantages)),
            "The ratio is exp(new - old); you use the difference of logarithms.",
        ),
        (
            -mean(torch.minimum(one, (new - old).clamp(-0.2, 0.2).exp() * advantages)),
            "You clip the log ratio; the ratio itself is clipped to [1 - clip, 1 + clip].",
        ),
        (
            -mean(torch.minimum(inverse * advantages, inverse.clamp(0.8, 1.2) * advantages)),
            "The ratio is upside down: new over old.",
        ),
        (-torch.minimum(one, two)[mask].sum(), "That is the sum; the loss is the mean over the mask."),
        what="the loss",
    )
    judge(
        read(f(new, old, advantages, mask, 0.05), (), "the loss"),
        clipped_loss(new, old, advantages, mask, 0.05),
        what="the loss for a clip of 0.05",
    )


CLIPPED = Exercise(
    "08.clipped_loss",
    "The clipped objective",
    "Write clipped_loss(new, old, advantages, mask, clip) for log-probabilities (batch, steps): minus the mean over "
    "the mask of min(ratio * A, clamp(ratio, 1 - clip, 1 + clip) * A).",
    Level(difficulty=3, minutes=15, points=3),
    "3.2.3; arXiv 1707.06347",
    ("ratio = exp(new - old).", "torch.minimum of the two products, then the mean over mask, then a minus."),
    check_clip,
    clipped_loss,
    lesson="Where the clip bites, the gradient is 0: the token no longer pulls, nor does anything push it back. The "
    "clip does not bound how far the policy moves; it ends the reward for moving.",
    picture=draw_clip,
)


def check_rewards(f: Callable) -> None:
    scores, policy, reference, beta = torch.tensor([1.5, -2.0]), randn(2, 6) - 2, randn(2, 6, seed=1) - 2, 0.1
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0]]).bool()
    got = read(f(scores, policy, reference, mask, beta), (2, 6), "the rewards")
    penalty = -beta * (policy - reference) * mask
    last = torch.zeros(2, 6)
    last[0, 5] = last[1, 3] = 1
    end = torch.zeros(2, 6)
    end[:, -1] = 1
    score = scores[:, None]
    judge(
        got,
        ppo.token_rewards(scores, policy, reference, mask, beta),
        (
            -penalty + score * last,
            "The KL has the wrong sign: what moves away from the first model must cost something.",
        ),
        (
            penalty + score * mask,
            "The score stands on every token; the reward model judges the whole answer, once, at its last token.",
        ),
        (
            penalty + score * end,
            "The score stands at the end of the row, behind a short answer; it belongs to the last token of the mask.",
        ),
        (penalty, "The scores are missing."),
        (score * last, "The KL penalty is missing."),
        (-beta * (policy - reference) + score * last, "The penalty is charged outside of the mask too."),
        (penalty / beta + score * last, "beta is not used."),
        what="the rewards",
    )


TOKEN_REWARDS = Exercise(
    "08.token_rewards",
    "Rewards of tokens",
    "Write token_rewards(scores, policy, reference, mask, beta) -> (batch, steps): -beta * (policy - reference) on "
    "every token of the mask, plus the answer's score on its last token; 0 elsewhere.",
    Level(difficulty=3, minutes=12, points=2),
    "3.2.3",
    (
        "Rows end at different places: find the last True of each.",
        "mask.long().cumsum(1) reaches its largest value first at the last token.",
    ),
    check_rewards,
    ppo.token_rewards,
    lesson="A single score for a whole answer and a price for each token: the price is known at once, the score only "
    "at the end. GAE carries it back to the words that earned it.",
)

FIRST_RATIO = Exercise(
    "08.first_ratio",
    "The first ratio",
    "In the panel the ratio of the first minibatch is exactly 1. It would be so had the answers been sampled at "
    "temperature 0.2, too. Why?",
    Level(difficulty=2, minutes=2, points=1),
    "3.2.3",
    ("Which two numbers does the ratio divide, and who computed them?",),
    Choice(
        a=(
            "the clip holds it there",
            "The clip acts on the loss. Without it, too, the ratio before the first step is 1.",
        ),
        b=(
            "sampling and scoring agree",
            "At temperature 0.2 they do not, and it is 1 all the same: the ratio never asks what sampling said.",
        ),
        c="the same weights score both of its sides: before the first step it is 1 by construction",
    ),
    lesson="A quantity that cannot come out otherwise tests nothing. It still serves as a guard of the bookkeeping: "
    "were it not 1, tokens, mask or dropout would differ between the two passes.",
)


def sampling_gap(sampled: Tensor, scored: Tensor, mask: Tensor) -> Tensor:
    """The mean gap that the library's `logprobs.sampling_gap` gives, of padded rows."""
    return ppo.masked_mean((sampled - scored).abs(), mask)


def drawn(**settings: Any) -> tuple[Tensor, Tensor]:
    """Tokens drawn as `generate` draws them: what the sampler says of each, and what scoring says, both (2, 6)."""
    logits = 2 * randn(12, 40, seed=3)
    uniform = torch.rand(12, generator=torch.Generator().manual_seed(4))
    token, sampled = sample(logits, uniform, **settings)
    return sampled.view(2, 6), logits.log_softmax(-1).gather(1, token[:, None]).view(2, 6)


def check_gap(f: Callable) -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()
    cancel = "Without absolute values, tokens that the sampler likes more and those that it likes less cancel."
    ratio = "That is a ratio; the gap is the difference of log-probabilities."
    for name, settings in (
        ("that is the policy itself", {}),
        ("at temperature 0.2", {"temperature": 0.2}),
        ("with top-k 3", {"top_k": 3}),
        ("at temperature 1.5", {"temperature": 1.5}),
    ):
        sampled, scored = drawn(**settings)
        what, gap = f"the gap of a sampler {name}", sampled - scored
        on = gap[mask]
        got = read(f(sampled, scored, mask), (), what)
        judge(
            got,
            sampling_gap(sampled, scored, mask),
            (
                torch.tensor(0.0),
                f"You find no gap of a sampler {name}, which draws from another distribution: compare "
                "what SAMPLING said with what scoring says.",
            ),
            (on.mean(), cancel),
            (-on.mean(), cancel),
            (gap.abs().mean(), "The mean goes over padding and prompt too; only tokens of the mask count."),
            (on.abs().max(), "That is the largest gap of one token; the mean is asked for."),
            (on.abs().sum(), "That is the sum; the mean over the mask is asked for."),
            (
                (sampled.exp() - scored.exp())[mask].abs().mean(),
                "You compare probabilities; the gap is one of log-probabilities, in nats.",
            ),
            (on.exp().mean(), ratio),
            ((-on).exp().mean(), ratio),
            (on.square().mean(), "That is the squared gap; take absolute values."),
            what=what,
        )


SAMPLING_GAP = Exercise(
    "08.sampling_gap",
    "Is what was sampled what is scored?",
    "Write sampling_gap(sampled, scored, mask) -> the mean over the mask of |sampled - scored|, in nats. `sampled` is "
    "what the sampler said of each token that it drew, `scored` what a pass over the finished answer says: both are "
    "log-probabilities (batch, steps). The check draws tokens from the policy, at other temperatures and with top-k; "
    "your function must tell them apart.",
    Level(difficulty=2, minutes=8, points=2),
    "3.2.3",
    ("Absolute values first, then the mean over the tokens of the mask.", "(sampled - scored).abs()[mask].mean()"),
    check_gap,
    sampling_gap,
    lesson="Real systems sample with one engine and train with another, in other precisions: this gap is then never "
    "quite 0, and a run may fail of it while loss and ratio look well.",
    extra=True,
)


def check_value_loss(f: Callable) -> None:
    old, returns = randn(2, 6), randn(2, 6, seed=1)
    new = old + 0.6 * randn(2, 6, seed=2)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]]).bool()

    def half(x: Tensor) -> Tensor:
        return 0.5 * x[mask].mean()

    for clip in (0.2, 0.5):
        far = new - old
        one, two = (new - returns) ** 2, (old + far.clamp(-clip, clip) - returns) ** 2
        both, what = torch.maximum(one, two), f"the loss for a clip of {clip}"
        judge(
            read(f(new, old, returns, mask, clip), (), what),
            ppo.value_loss(new, old, returns, mask, clip),
            (half(one), "Nothing is clipped."),
            (
                half(two),
                "Only the clipped value is used: where it is wrong in the good direction, its error is hidden.",
            ),
            (
                half(torch.minimum(one, two)),
                "The smaller error is taken; the larger one counts, so that clipping never makes a loss look better.",
            ),
            (2 * half(both), "The half is missing: it is half the squared error."),
            (0.5 * both.mean(), "The mean goes over padding and prompt too; only tokens of the mask count."),
            (0.5 * both[mask].sum(), "That is the sum; the loss is the mean over the mask."),
            (
                half(torch.maximum(one, (new.clamp(-clip, clip) - returns) ** 2)),
                "You clip the value itself; what is clipped is how far it has moved from `old`.",
            ),
            (
                half(torch.maximum(one, (old * (new / old).clamp(1 - clip, 1 + clip) - returns) ** 2)),
                "Values are no probabilities: clip their difference, not their ratio.",
            ),
            (
                half(torch.maximum((new - returns).abs(), (old + far.clamp(-clip, clip) - returns).abs())),
                "You take absolute errors; they are squared.",
            ),
            what=what,
        )


VALUE_LOSS = Exercise(
    "08.value_loss",
    "The critic's loss",
    "Write value_loss(new, old, returns, mask, clip) for values (batch, steps): half the mean over the mask of the "
    "larger of two squared errors against `returns`, that of `new` and that of `new` held within `clip` of `old`, what "
    "the critic said before the update.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.3; arXiv 2005.12729",
    (
        "How far a value has moved is new - old; clamp that, and add it to old.",
        "torch.maximum of the two squared errors, then the mean over mask, then the half.",
    ),
    check_value_loss,
    ppo.value_loss,
    lesson="The larger error is the cautious one, as the smaller objective is for the policy. The paper of PPO does "
    "not have this clip; it came with its code, and later studies found little use in it.",
    extra=True,
    picture=draw_value_loss,
)


def ppo_step(logits: Tensor, tokens: Tensor, old: Tensor, advantages: Tensor, clip: float, lr: float) -> Tensor:
    """A step of gradient descent on the library's loss."""
    return three_tokens.step(logits, tokens, old, advantages, clip, lr)[0]


def _wrong_step(
    logits: Tensor,
    tokens: Tensor,
    old: Tensor,
    advantages: Tensor,
    lr: float,
    objective: Callable,
    softmax: bool = True,
) -> Tensor:
    """Logits after a step up the mean of another objective(new, old, advantages) of each token."""
    free = logits.clone().requires_grad_()
    new = (free.log_softmax(-1) if softmax else free)[tokens]
    (gradient,) = torch.autograd.grad(objective(new, old, advantages).mean(), free)
    return logits + lr * gradient


def check_ppo_step(f: Callable) -> None:
    tokens = torch.tensor([0, 1, 2, 0, 1, 2, 2, 0])
    advantages = torch.tensor([1.0, -1.0, 0.4, 0.8, -0.6, -0.4, 0.6, -0.5])
    logits, before, clip = torch.tensor([0.6, -0.4, 0.2]), torch.tensor([0.0, 0.1, 0.3]), 0.2

    def clipped(new: Tensor, old: Tensor, a: Tensor) -> Tensor:
        ratio = (new - old).exp()
        return torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)

    for when, at, lr in (("the first step", logits, 0.5), ("a later step", before, 0.8)):
        old = at.log_softmax(-1)[tokens]
        what = f"the policy after {when}"
        good, bad = ppo_step(logits, tokens, old, advantages, clip, lr), partial(_wrong_step, logits, tokens, old)
        got = read(f(logits, tokens, old, advantages, clip, lr), (3,), "the logits")
        if close(got, good.softmax(-1)):
            raise Mistake("Those are probabilities. Give the logits, so that the next step can go on from them.")
        wrongs: list[Wrong] = [
            (
                logits,
                "Nothing has moved: the gradient does not reach the logits. They must ask for it, and `old` is a "
                "number that is given, not computed anew from them.",
            ),
            (
                bad(advantages, -lr, clipped),
                "The step goes the wrong way: it makes good tokens rarer. Up the objective is down the loss.",
            ),
            (bad(advantages, lr * len(tokens), clipped), "That is the sum over the tokens; take their mean."),
            (bad(advantages, 1.0, clipped), "lr is not used."),
            (
                bad(advantages, lr, lambda new, old, a: (new - old).exp() * a),
                "Nothing is clipped: tokens whose ratio has left 1 - clip to 1 + clip the good way still pull.",
            ),
            (
                bad(advantages, lr, lambda new, old, a: (new - old).exp().clamp(1 - clip, 1 + clip) * a),
                "Only the clipped term is used; the smaller of both counts, so that a bad move is always undone.",
            ),
            (
                bad(advantages, lr, lambda new, old, a: new * a),
                "`old` is not used: the ratio exp(new - old) weighs each token by how far the policy has moved since.",
            ),
            (
                bad(advantages, lr, clipped, softmax=False),
                "Logits are no log-probabilities: take log_softmax first. What one token gains the others must lose.",
            ),
        ]
        # Logits say the same with any number added to all of them.
        judge(
            got.double().log_softmax(-1),
            good.double().log_softmax(-1),
            *((value.double().log_softmax(-1), name) for value, name in wrongs),
            what=what,
        )


PPO_STEP = Exercise(
    "08.ppo_step",
    "PPO on three tokens",
    "Write ppo_step(logits, tokens, old, advantages, clip, lr) -> the logits (3,) after one step of gradient descent "
    "with rate lr on the clipped objective's loss. The policy is softmax(logits) over three tokens; tokens (n,) were "
    "drawn from it, old (n,) are their log-probabilities at that time, advantages (n,) what they brought.",
    Level(difficulty=3, minutes=15, points=4),
    "3.2.3; arXiv 1707.06347",
    (
        "x = logits.clone().requires_grad_(); x.log_softmax(-1)[tokens] are the log-probabilities now.",
        "The loss is the one above, of one row, with every token in the mask.",
        "loss.backward(), then logits - lr * x.grad.",
    ),
    check_ppo_step,
    ppo_step,
    lesson="This is all of PPO's learning: a model only puts a transformer between prompt and logits. Tokens that "
    "nobody drew move too: softmax takes from them what the good ones gain.",
    extra=True,
    picture=draw_policy,
)

BETA = Prediction(
    "08.beta",
    "What beta does",
    "Three runs with beta 0, 0.1 and 0.5. Order them by the KL that they end with, smallest first.",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.3",
    ("beta is the price of a nat.",),
    Ranking(
        {"zero": "beta 0", "small": "beta 0.1", "large": "beta 0.5"},
        {("large", "zero"): "The dearer the KL the less of it: beta holds the policy near its start."},
    ),
    lesson="Beta sets the exchange rate of reward and distance: the best policy for it is pi_0 times exp(R / beta), "
    "made to sum to 1. Halving beta squares that tilt.",
)

EXERCISES = (KL, GAE, CLIPPED, TOKEN_REWARDS, VALUE_LOSS, PPO_STEP, FIRST_RATIO, SAMPLING_GAP, BETA)
