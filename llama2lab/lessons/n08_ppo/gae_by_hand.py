"""Generalised advantage estimation by hand: five real tokens, whose rewards and values can be dragged.

The figures are PPO's own: a short run of `ppo.ppo` gives a policy that has left its start and a critic that has learnt
from that policy's answers. `five_tokens` measures them (`lab.measured(five_tokens)`), `GaeByHand` is the picture.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from llama2lab.engine.errors import LabError
from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import table
from llama2lab.lessons.n08_ppo.experiments import Play
from llama2lab.model.chat import decode_answer
from llama2lab.model.logprobs import token_logprobs
from llama2lab.stages import ppo, reward
from llama2lab.stages.evaluate import judge_all
from llama2lab.stages.gate import mean_and_std, whiten
from llama2lab.town.items import Prompt

TOKENS = 5
PLAY = Play(start="rlhf-v4", iterations=7, batch=64, minibatch=16, beta=0.2, unsafe_share=0.0)
WARM = 5  # of them teach the critic alone
RULE = (
    "Of the short right answers to held-out prompts that end by themselves, with a reward above 0 at the end, whose "
    "last five tokens begin with a word and have values between the lowest and the highest score of PPO's first batch: "
    "the one in which the critic changes its mind most at one token."
)
Answer = dict[str, Any]  # `question`, `before` and `tokens` (texts), `rewards` and `values` (five numbers each)


def five_tokens(lab: Finished, play: Play = PLAY, warm: int = WARM, asked: int = 300, longest: int = 24) -> Answer:
    """The last five tokens of a real answer, with PPO's rewards and its critic's values, chosen by `RULE`. Advantages
    look forward only, so those of the last five tokens are the same as in the whole answer.

    Scores are whitened by the first batch as in `ppo.ppo`; rewards and values are in those units. Some ten seconds.

    Args:
        warm: iterations in which the critic learns alone; the policy moves in those that are left.
        asked: held-out prompts, one answer each.
        longest: tokens of the longest answer that counts as short, `</s>` among them.
    """
    judge, tokenizer, machine = lab.reward(play.rewarder), lab.tokenizer, lab.machine
    start = lab.model(play.start)
    policy, critic = copy.deepcopy(start), ppo.Critic(judge)
    first: list[float] = []  # scores of the first batch

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        return reward.score_answers(judge, tokenizer, [p.messages for p in prompts], answers, machine)

    def prompts_for(iteration: int) -> list[Prompt]:
        return lab.prompts(helpful=play.batch, seed=4000 + play.seed * 997 + 10 * iteration, split="train")

    def look(iteration: int, rows: list[dict]) -> None:
        first.extend(row["score"] for row in rows if iteration == 0)

    settings = replace(play.settings, critic_warmup=warm)
    ppo.ppo(policy, critic, score, tokenizer, prompts_for, settings, play.seed, machine, on_rollouts=look)
    scale = mean_and_std(torch.tensor(first))

    prompts = lab.prompts(helpful=asked, seed=14)
    ids, written = ppo.rollout(policy, tokenizer, prompts, settings.max_new_tokens, 3, machine.precision)
    tokens, mask = (t.to(machine.device) for t in ppo.with_answers(ids, written, tokenizer.pad_token_id))
    with torch.no_grad(), machine.autocast():
        new, old = (token_logprobs(model, tokens, mask) for model in (policy, start))
        values = critic(tokens)
    answers = [decode_answer(tokenizer, g.tokens) for g in written]
    scores = whiten(torch.tensor(score(prompts, answers)), *scale).to(machine.device)
    rewards = ppo.token_rewards(scores, new, old, mask, play.beta)

    found = []
    verdicts = judge_all(lab.oracle, prompts, answers)
    for i, (prompt, g, verdict) in enumerate(zip(prompts, written, verdicts, strict=True)):
        if verdict.correct and g.finished and rewards[i][mask[i]][-1] > 0 and TOKENS <= len(g.tokens) <= longest:
            words = [tokenizer.decode([token]) for token in g.tokens]
            if not words[-TOKENS].startswith(" "):
                continue
            found.append(
                {
                    "question": prompt.messages[-1]["content"],
                    "before": "".join(words[:-TOKENS]),
                    "tokens": words[-TOKENS:],
                    "rewards": rewards[i][mask[i]][-TOKENS:].float().tolist(),
                    "values": values[i][mask[i]][-TOKENS:].float().tolist(),
                }
            )
    ends = whiten(torch.tensor([min(first), max(first)]), *scale).tolist()
    told = {"gamma": settings.gamma, "lam": settings.lam, "beta": play.beta, "start": play.start, "rule": RULE}
    return chosen(found, *ends) | told


def chosen(answers: Sequence[Answer], low: float, high: float) -> Answer:
    """The answer that `RULE` names; LabError where no critic's values stay between `low` and `high`."""
    sane = [a for a in answers if low <= min(a["values"]) and max(a["values"]) <= high]
    if not sane:
        raise LabError(
            f"of {len(answers)} short answers none has values between {low:.2f} and {high:.2f}: the critic has learnt "
            "too little; give it more iterations (warm), or ask for more answers (asked, longest)"
        )
    return max(sane, key=lambda a: max(abs(y - x) for x, y in zip(a["values"], a["values"][1:], strict=False)))


def advantages(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """PPO's own `gae` on one answer's last tokens."""
    r, v = torch.tensor([rewards], dtype=torch.float64), torch.tensor([values], dtype=torch.float64)
    return ppo.gae(r, v, torch.ones_like(r).bool(), gamma, lam)[0][0].tolist()


class GaeByHand(Picture):
    """`answer`: what `five_tokens` gives, or any dictionary of its shape."""

    def __init__(self, answer: Mapping[str, Any]):
        super().__init__(data=dict(answer))

    def static(self) -> str:
        d = self.data
        r, v, gamma, lam = d["rewards"], d["values"], d["gamma"], d["lam"]
        columns = [r, v, *(advantages(r, v, gamma, x) for x in (0.0, lam, 1.0))]
        header = ("token", "reward", "value before it", "lambda 0: its own surprise", f"lambda {lam:g}", "lambda 1")
        rows = [
            (f"{i + 1} {token}", *(f"{column[i]:+.2f}" for column in columns)) for i, token in enumerate(d["tokens"])
        ]
        return (
            f"<p><strong>Surprise, carried backwards</strong></p><p>{html.escape(d['question'])} "
            f"&rarr; {html.escape(d['before'])}<strong>{html.escape(''.join(d['tokens']))}</strong></p>"
            f"{table(header, rows)}<p>Surprise = reward + gamma &times; next value &minus; value. The advantage of a "
            f"token is its surprise and those that follow, each shrunk by gamma &times; lambda a token. "
            f"Gamma is {gamma:g} here.</p><p>{html.escape(d['rule'])}</p>"
        )
