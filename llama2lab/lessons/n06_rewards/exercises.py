"""Exercises of notebook 06: the two reward models (Llama 2, sections 3.2.2 and 3.2.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import close, judge, randn, read
from llama2lab.lab.predictions import Choice, Pick, Prediction, Ranking
from llama2lab.lessons.n06_rewards.own_output import draw_gate, draw_places, draw_ranking
from llama2lab.stages import gate, reward


def check_last_token(f: Callable) -> None:
    weight = randn(5, seed=1)
    for lengths in (torch.tensor([5, 3, 1, 4]), torch.tensor([6, 2])):
        n = len(lengths)
        hidden = randn(n, 6, 5, seed=n)  # behind a row's end stands what padding makes of it
        scores = hidden @ weight  # (batch, seq): what each place would give
        inside = torch.arange(6) < lengths[:, None]
        right = reward.last_token_scores(hidden, lengths, weight)
        got = torch.as_tensor(f(hidden, lengths, weight))
        if got.shape == (n, n):
            raise Mistake(
                f"The result has shape ({n}, {n}): hidden[:, lengths - 1] takes every row at every row's place. Number "
                "the rows too: hidden[torch.arange(batch), ...]."
            )
        judge(
            read(got, (n,), "the scores"),
            right,
            (
                scores[:, -1],
                "You read the end of the padded row. In the shorter rows padding stands there, so the score hangs on "
                "which answers shared the batch.",
            ),
            (
                scores.gather(1, lengths.clamp(max=5)[:, None])[:, 0],
                "You read one place behind the last token: places count from 0, so it is lengths - 1.",
            ),
            (
                scores[:, 0],
                "You read the first token. Each state has seen only what stands before it, and so the first one "
                "nothing of the answer.",
            ),
            (
                (scores * inside).sum(1) / lengths,
                "That is the mean over the row's tokens; the head reads its last token alone.",
            ),
            (scores.mean(1), "That is the mean over the row, padding included; the head reads the last token alone."),
            ((scores * inside).sum(1), "That is the sum over the row's tokens; the head reads its last token alone."),
            (right.sigmoid(), "That is a probability; the score comes before any sigmoid."),
            (right / 5, "You take the mean over the dimensions; the head is a dot product, which sums."),
            what="the scores",
        )


LAST_TOKEN = Exercise(
    "06.last_token",
    "Where a reward model reads",
    "Write last_token_scores(hidden, lengths, weight) -> (batch,): the dot product of weight (dim,) with the hidden "
    "state of each row's last token. hidden is (batch, seq, dim); rows are padded on the right, and lengths (batch,) "
    "says how many tokens of each are no padding.",
    Level(difficulty=2, minutes=8, points=2),
    "3.2.2",
    (
        "Which place does the last of three tokens have, when the first one has place 0?",
        "Two lists of indices of one length take one state of each row: hidden[[0, 1], [4, 2]].",
        "torch.arange(len(hidden)) numbers the rows.",
    ),
    check_last_token,
    reward.last_token_scores,
    lesson="Only the last state has read the whole answer, and it may not hang on the batch's padding. The library "
    "multiplies in float32: in bfloat16 many answers would get one and the same score.",
    picture=draw_places,
)


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """The library's loss, which wants (batch,) everywhere."""
    return reward.ranking_loss(chosen.squeeze(-1), rejected.squeeze(-1), margin)


def check_ranking(f: Callable) -> None:
    chosen, rejected = randn(5, 1), randn(5, 1, seed=1)
    margin = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0, 1.0])
    gap = (chosen - rejected).squeeze(-1)
    judge(
        read(f(chosen, rejected, margin), (), "the loss"),
        ranking_loss(chosen, rejected, margin),
        (
            -F.logsigmoid(chosen - rejected - margin).mean(),
            "The scores have shape (batch, 1) and the margin (batch,): their difference broadcasts to (batch, batch), "
            "every pair with every margin, in silence. Bring them to one shape.",
        ),
        (
            -F.logsigmoid(gap + margin).mean(),
            "The margin has the wrong sign: it is subtracted, so that a clear pair must differ by more.",
        ),
        (-F.logsigmoid(gap).mean(), "The margin is not used."),
        (-F.logsigmoid(-gap - margin).mean(), "Chosen and rejected are swapped."),
        (-F.logsigmoid(-gap + margin).mean(), "Chosen and rejected are swapped, and the margin with them."),
        (F.logsigmoid(gap - margin).mean(), "The sign of the loss is wrong: it would push chosen answers down."),
        (-F.logsigmoid(gap - margin).sum(), "That is the sum; the loss is the mean."),
        (-torch.sigmoid(gap - margin).mean(), "The logarithm is missing."),
        ((margin - gap).clamp(min=0).mean(), "That is the hinge loss; the report's is -log sigmoid."),
        what="the loss",
    )
    far = read(
        f(torch.full((1, 1), -150.0), torch.full((1, 1), 150.0), torch.zeros(1)), (), "the loss of a hopeless pair"
    )
    if far.isinf():
        raise Mistake(
            "For scores far apart sigmoid becomes 0 and its logarithm infinite: use F.logsigmoid, which overflows "
            "nowhere."
        )
    judge(far, 300.0, what="the loss of a hopeless pair")


RANKING_LOSS = Exercise(
    "06.ranking_loss",
    "The ranking loss with its margin",
    "Write ranking_loss(chosen, rejected, margin): the mean of -log sigmoid(chosen - rejected - margin). The head "
    "gives chosen and rejected as (batch, 1); margin is (batch,).",
    Level(difficulty=2, minutes=10, points=3),
    "3.2.2, equation 2",
    (
        "Print the shape of chosen - margin before you go on.",
        "squeeze(-1) takes the last dimension away.",
        "F.logsigmoid does not overflow; log(sigmoid(x)) does.",
    ),
    check_ranking,
    ranking_loss,
    lesson="Only the difference counts, so pairs never fix the zero: add a number to all scores and the loss is the "
    "same. An offset after training, or a second loss on single answers, sets it.",
    picture=draw_ranking,
)


def check_gate(f: Callable) -> None:
    helpfulness = torch.tensor([2.0, 1.0, -1.0, 0.5, 3.0, -2.0])
    safety = torch.tensor([-3.0, 1.5, 0.05, -1.0, 2.5, -2.5])
    tagged = torch.tensor([False, True, False, False, False, True])
    h, s = helpfulness.sigmoid(), safety.sigmoid()
    got = read(f(helpfulness, safety, tagged, 0.15), (6,))
    judge(
        got,
        gate.gated_reward(helpfulness, safety, tagged, 0.15),
        (
            torch.where(tagged | (safety < 0.15), s, h),
            "The threshold is a probability: compare sigmoid(safety) with it, not the raw score.",
        ),
        (
            torch.where(tagged | (safety < 0.15), safety, helpfulness),
            "Scores become probabilities first: the sigmoid is missing.",
        ),
        (
            torch.where(tagged | (s < 0.15), safety, helpfulness),
            "The result must be a probability: take the sigmoid of what you choose.",
        ),
        (
            torch.where(tagged, s, h),
            "An answer whose safety is under the threshold must be gated too, whatever its prompt.",
        ),
        (torch.where(s < 0.15, s, h), "The prompt's tag is not used: safety prompts are always judged by safety."),
        (torch.where(tagged & (s < 0.15), s, h), "It is tag OR low safety; you ask for both."),
        (torch.where(tagged | (s < 0.15), h, s), "The two models are swapped."),
        (
            torch.where(tagged | (s > 0.15), s, h),
            "The gate is the wrong way round: it closes when safety is UNDER the threshold.",
        ),
        (torch.minimum(h, s), "That is the smaller of the two; the report switches between them."),
    )
    judge(
        read(f(helpfulness, safety, tagged, 0.4), (6,)),
        gate.gated_reward(helpfulness, safety, tagged, 0.4),
        what="the result for another threshold",
    )


GATE = Exercise(
    "06.gate",
    "The safety gate",
    "Write gated_reward(helpfulness, safety, is_safety, threshold) for raw scores (batch,): the probability of the "
    "safety model where the prompt is tagged or that probability is under the threshold, else that of the helpfulness "
    "model.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.3",
    ("Probabilities are the sigmoid of scores.", "torch.where(condition, a, b); | is OR."),
    check_gate,
    gate.gated_reward,
    lesson="A switch cannot be bought: in a weighted sum, enough helpfulness would pay for any harm. The price is a "
    "jump at the threshold, where two answers that hardly differ are judged by different models.",
    picture=draw_gate,
)


def logit_whiten(r: Tensor) -> Tensor:
    """The library's two steps."""
    raw = gate.logit(r)
    return gate.whiten(raw, *gate.mean_and_std(raw))


def check_whiten(f: Callable) -> None:
    r = torch.sigmoid(randn(9) * 2 + 1)
    raw = torch.logit(r)
    got = read(f(r), (9,))
    white = (raw - raw.mean()) / raw.std(unbiased=False)  # as good: the report does not say which deviation
    wrongs = [
        ((r - r.mean()) / r.std(unbiased=False), "The logit is missing: whitening comes after log(r / (1 - r))."),
        (raw, "The logit is right, and not yet whitened."),
        (raw - raw.mean(), "The mean is 0, the standard deviation not yet 1: divide by it."),
        ((raw - raw.mean()) / raw.var(unbiased=False), "You divide by the variance; it is its square root."),
        (raw / raw.std(unbiased=False), "The mean is not taken away."),
        (white + raw.mean(), "The whitening adds the mean back: rewards must have mean 0."),
        (-white, "The logit has the wrong sign: log(r / (1 - r))."),
    ]
    if not close(got, white, 1e-3):
        judge(got, logit_whiten(r), *wrongs, tolerance=1e-3)
    sure = torch.as_tensor(f(torch.tensor([0.0, 0.3, 1.0])))
    if not sure.isfinite().all():  # infinity, or the NaN that its mean makes of all
        raise Mistake("A probability of exactly 0 or 1 has an infinite logit: clamp it first (to 1e-6, say).")


WHITEN = Exercise(
    "06.whiten",
    "Logit and whitening",
    "Write logit_whiten(r) for probabilities r (batch,): log(r / (1 - r)), then mean 0 and standard deviation 1. An r "
    "of exactly 0 or 1 must not give infinity.",
    Level(difficulty=2, minutes=8, points=2),
    "3.2.3",
    ("torch.logit(r, eps) clamps and takes the logit.", "Subtract the mean, divide by the standard deviation."),
    check_whiten,
    logit_whiten,
    lesson="The sigmoid flattens what lies far out; the logit gives back the room between good and very good. "
    "Whitening gives the reward a fixed size, or beta, the price of the KL, would mean something else for each reward "
    "model.",
)

WHY_MARGIN = Exercise(
    "06.why_margin",
    "What the margin changes",
    "The plot shows score gaps by grade, with and without margin. What does the margin do?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.2, table 28",
    ("For which grade is it largest?",),
    Choice(
        a="gaps of clear pairs grow",
        b=("all gaps shrink", "A margin asks for larger gaps: the loss falls only once a gap exceeds it."),
        c=(
            "negligible pairs gain most",
            "The margin of negligible pairs is 0; with the large margins of the report's table 28 they lose a little.",
        ),
    ),
    lesson="Accuracy asks for the order alone and hardly sees this. Rejection sampling keeps by the order too; PPO "
    "climbs the size, so a margin changes what it is paid for.",
)

BY_GRADE = Prediction(
    "06.by_grade",
    "On which pairs is the reward model right?",
    "Order the grades by the accuracy of the helpfulness model on test pairs, smallest first.",
    Level(difficulty=1, minutes=2, points=1),
    "3.2.2, table 8",
    ("People agree least where answers are alike.",),
    Ranking(
        {"sig": "significantly better", "better": "better", "slightly": "slightly better", "neg": "negligibly better"},
        {("neg", "sig"): "Where people toss a coin the model cannot know better."},
    ),
    lesson="The report: 80.7, 67.5, 60.9, 54.7 percent from significantly to negligibly.",
)

START = Prediction(
    "06.start",
    "What should a reward model start from?",
    "Three helpfulness models learn from the same pairs; they start from the chat model, from the base model and from "
    "random weights. Order them by accuracy on held-out pairs, smallest first.",
    Level(difficulty=1, minutes=2, points=1),
    "3.2.2",
    ("Which of them can tell a true answer before it has seen a pair?",),
    Ranking(
        {"random": "random weights", "base": "the base model", "chat": "the chat model"},
        {
            ("random", "chat"): "A thousand pairs teach taste, not a language and a town: those were there before.",
            ("base", "chat"): "The chat model has also seen how answers are written.",
        },
    ),
    lesson="The report starts from the chat model, so that the reward model knows what the chat model knows; it gives "
    "no figure for the others.",
)

EPOCHS = Prediction(
    "06.epochs",
    "Four epochs instead of one",
    "The same pairs are shown once, or four times. What becomes of the loss on held-out pairs?",
    Level(difficulty=1, minutes=2, points=1),
    "3.2.2",
    ("The loss is not the accuracy: being wrong with confidence costs most.",),
    Pick(
        lower=(
            "it is lower after four epochs",
            "Repeated pairs are learnt by heart, and their annotators' slips with them.",
        ),
        higher=("it is higher after four epochs", "At this size the repetition did not yet cost what it teaches."),
        unclear=(
            "the interval of the difference reaches 0",
            "The difference was large enough to be seen with so few pairs.",
        ),
    ),
    lesson="The report trains one epoch, because longer training was seen to overfit.",
)

EXERCISES = (LAST_TOKEN, RANKING_LOSS, GATE, WHITEN, WHY_MARGIN, BY_GRADE, START, EPOCHS)
