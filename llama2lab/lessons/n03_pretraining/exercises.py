"""Exercises of notebook 03: pretraining (Llama 2, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llama2lab.engine import stats
from llama2lab.engine.optim import Optim, cosine_lr, make_optimizer
from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Number, Prediction
from llama2lab.lessons.n03_pretraining.own_output import draw_schedule, draw_training
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.stages.pretrain import bits_of, packed_lm_loss

# ---- the learning rate -------------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
    """The library's schedule, which takes the warm-up as a share of the steps."""
    return cosine_lr(step, steps, Optim(lr=peak, warmup=warmup / steps, final=final))


def check_schedule(f: Callable) -> None:
    steps, peak, warmup, final = 40, 2e-3, 8, 0.1
    at = range(steps)
    got = read([float(read(f(s, steps, peak, warmup, final), (), "the rate")) for s in at], (steps,)) / peak
    right = read([learning_rate(s, steps, peak, warmup, final) for s in at]) / peak
    share = [(s - warmup) / (steps - 1 - warmup) for s in at]

    def variant(up: Callable[[int], float], down: Callable[[float], float], start: bool = False) -> list[float]:
        return [up(s) if s < warmup else down(s / (steps - 1) if start else share[s]) for s in at]

    def ramp(s: int) -> float:
        return (s + 1) / warmup

    def cosine(x: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * x)) / 2

    if got[0] == 0 and right[0] > 0:
        raise Mistake(
            "The first step has a rate of 0 and learns nothing: at step s of the warm-up it is peak * (s + 1) / warmup."
        )
    judge(
        got,
        right,
        (variant(lambda s: 1.0, cosine), "There is no warm-up: in the first steps the rate climbs in a line."),
        (variant(ramp, lambda x: (1 + math.cos(math.pi * x)) / 2), "The rate ends at 0; it ends at final * peak."),
        (
            variant(ramp, cosine, start=True),
            "The cosine begins at step 0, so that the rate jumps after the warm-up: it begins when the warm-up ends.",
        ),
        (
            variant(ramp, lambda x: 1 - (1 - final) * x),
            "That is a line down; here it is half a wave of the cosine.",
        ),
        (
            variant(ramp, lambda x: final + (1 - final) * math.cos(math.pi * x / 2)),
            "That is a quarter of a wave, which is steep at the end: use (1 + cos(pi * progress)) / 2.",
        ),
        (
            variant(ramp, lambda x: final + (1 + math.cos(math.pi * x)) / 2),
            "The rate goes above the peak: scale the wave by 1 - final before you add final.",
        ),
        what="the rate as a share of the peak",
    )


SCHEDULE = Exercise(
    "03.schedule",
    "The learning rate",
    "Write schedule(step, steps, peak, warmup, final): peak * (step + 1) / warmup for step < warmup, then half a "
    "cosine wave from peak (at step == warmup) down to final * peak (at the last step, steps - 1).",
    Level(difficulty=2, minutes=10, points=2),
    "2.2",
    (
        "After the warm-up let progress run from 0 to 1: (step - warmup) / (steps - 1 - warmup).",
        "(1 + cos(pi * progress)) / 2 runs from 1 to 0.",
    ),
    check_schedule,
    learning_rate,
    lesson="Large steps learn fast and keep the loss noisy; as the rate falls, the noise goes, so curves bend down at "
    "the end. The shape hangs on the number of steps: who stops half-way never gets that bend.",
    picture=draw_schedule,
)


# ---- a step ------------------------------------------------------------------------------------------------------

Batch = Sequence[Tensor]  # tokens, segments and loss mask, each (rows, seq), as `packed_lm_loss` takes them
Step = Callable[[Llama, torch.optim.Optimizer, Batch, float], Any]
CLIP = 1.0


def training_step(model: Llama, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> float:
    """One step down the library's loss, as `engine/loop.py` takes it; the loss before the step, in nats a token."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.zero_grad()
    loss, _ = packed_lm_loss(model, *batch)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss.item()


def faulty_step(
    clear: bool = True,
    clip: Callable[[list[nn.Parameter]], Any] = lambda parameters: nn.utils.clip_grad_norm_(parameters, CLIP),
    divide: bool = False,
) -> Step:
    """A step that keeps the gradients of the one before, clips in another way, or divides the loss by the number of
    tokens."""

    def step(model: Llama, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if clear:
            optimizer.zero_grad()
        loss, count = packed_lm_loss(model, *batch)
        (loss / count if divide else loss).backward()
        clip(list(model.parameters()))
        optimizer.step()

    return step


def watched(step: Step, batches: Sequence[Batch], rates: Sequence[float]) -> dict[str, Any]:
    """A model and an optimiser of the library, always the same, take these steps. Of each step `losses`, what it gave
    back; `after`, the loss on the same batch afterwards; `calls` of optimizer.step(); at the last of these `gradients`
    (steps, parameters) and `rates` (steps, groups); and `moved` (steps, parameters), by how much weights changed."""
    model = Llama(ModelConfig(24, 16, 1, 2, 1, 24, max_seq_len=16), seed=0)
    with torch.no_grad():
        model.norm.weight.fill_(6.0)  # loud logits: gradients longer than the clip
    parameters = list(model.parameters())
    optimizer = make_optimizer(model, Optim(lr=1.0, gain_lr=4.0))
    seen: dict[str, list[Any]] = {name: [] for name in ("losses", "after", "calls", "gradients", "rates", "moved")}
    calls: list[tuple[Tensor, list[float]]] = []

    def note(*_: Any) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        calls.append((_flat(gradients), [group["lr"] for group in optimizer.param_groups]))

    optimizer.register_step_pre_hook(note)
    for batch, rate in zip(batches, rates, strict=True):
        before, so_far = _flat(parameters), len(calls)
        with torch.enable_grad():  # whatever a notebook has set
            seen["losses"].append(step(model, optimizer, batch, rate))
        seen["calls"].append(len(calls) - so_far)
        seen["moved"].append(_flat(parameters) - before)
        gradient, groups = calls[-1] if len(calls) > so_far else (torch.zeros_like(before), [0.0])
        seen["gradients"].append(gradient)
        seen["rates"].append(groups)
        with torch.no_grad():
            seen["after"].append(packed_lm_loss(model, *batch)[0])
    stacked = {name: torch.stack(seen[name]) for name in ("after", "gradients", "moved")}
    return {**seen, **stacked}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def each_alone(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        nn.utils.clip_grad_norm_([p], CLIP)


def check_step(f: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    segments = torch.tensor([[1] * 7 + [2] * 5, [1] * 12])
    batches = [(torch.randint(24, (2, 12), generator=generator), segments, segments > 0) for _ in range(3)]
    rates = [0.002, 0.02, 0.01]
    right, got = watched(training_step, batches, rates), f(batches, rates)
    if got["losses"][0] is None:
        raise Mistake("Your function returns None; return the loss. Is the `return` missing?")
    if max(got["calls"]) > 1:
        raise Mistake("optimizer.step() is called more than once in a step.")
    if min(got["calls"]) == 0:
        raise Mistake(
            "You change the weights yourself; that is the optimiser's work: optimizer.step()."
            if got["moved"].any()
            else "The weights do not change: optimizer.step() is missing."
        )
    if not got["gradients"].any():
        raise Mistake(
            "There are no gradients when optimizer.step() is called: loss.backward() comes before it, and zero_grad() "
            "not between the two."
        )
    scale = torch.tensor(right["rates"]) / torch.tensor(rates)[:, None]  # (steps, groups)
    judge(
        read(got["rates"], scale.shape, "the rates"),
        right["rates"],
        (scale, 'The rate is not set: group["lr"] is still what it was when the optimiser was made.'),
        (
            scale * 0 + torch.tensor(rates)[:, None],
            'lr_scale is forgotten: the rate of a group is rate * group["lr_scale"].',
        ),
        what="the rates of the groups, a row a step",
    )

    def wrong(words: str, **faults: Any) -> tuple[Tensor, str]:
        return watched(faulty_step(**faults), batches, rates)["gradients"], words

    judge(
        read(got["gradients"], right["gradients"].shape, "the gradients"),
        right["gradients"],
        wrong(
            "The gradients of the steps before are still there: backward() adds to what it finds, so clear them first "
            "(optimizer.zero_grad()).",
            clear=False,
        ),
        wrong("When optimizer.step() is called the gradients are not clipped.", clip=lambda parameters: None),
        wrong(
            "You cut each number (clip_grad_value_), which turns the gradient; cut its length: clip_grad_norm_.",
            clip=lambda parameters: nn.utils.clip_grad_value_(parameters, CLIP),
        ),
        wrong("You clip each parameter by itself; the norm is that of all gradients together.", clip=each_alone),
        wrong("packed_lm_loss gives a mean already; you divide it by the number of tokens again.", divide=True),
        what="the gradient at optimizer.step(), a row a step,",
    )
    judge(
        read(got["moved"], right["moved"].shape, "the change of the weights"),
        right["moved"],
        what="the change of the weights (it is the optimiser's alone)",
    )
    judge(
        torch.stack([read(loss, (), "the loss") for loss in got["losses"]]),
        right["losses"],
        (right["after"], "That is the loss after the step; return the one from which you went backward."),
        what="the loss of each step",
    )


TRAINING_STEP = Exercise(
    "03.training_step",
    "A step of training",
    'Write training_step(model, optimizer, batch, rate) -> the loss before the step. Set the "lr" of every group in '
    'optimizer.param_groups to rate * group["lr_scale"]; packed_lm_loss(model, *batch) gives (mean loss, number of '
    "tokens); go backward from the loss, clip the norm of all gradients to 1.0, take the optimiser's step.",
    Level(difficulty=3, minutes=15, points=3),
    "2.2",
    (
        "Gradients add up over calls of backward(): optimizer.zero_grad() before it.",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) belongs between backward() and optimizer.step().",
        "loss.item() is the number of a tensor.",
    ),
    check_step,
    training_step,
    inside=watched,
    lesson="Adam remembers: its averages hold a single huge gradient for many steps, which are then too short and lean "
    "its way. The clip bounds what one bad batch can leave behind.",
    picture=draw_training,
)


# ---- bits a byte -------------------------------------------------------------------------------------------------


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> float:
    """The library's figure: the mean over the texts."""
    return stats.mean(bits_of(nats, texts))["mean"]


def check_bits(f: Callable) -> None:
    texts = ["Zoë's café is in Köln.", "東京 🙂", "Mira lives on Forest Road, beside the mill. " * 6]
    nats = [41.0, 3.5, 260.0]
    right = torch.tensor(bits_per_byte(nats, texts), dtype=torch.float64)
    size, letters = ([len(t) for t in some] for some in ([t.encode() for t in texts], texts))

    def mean(each: Callable[[float, int], float], sizes: Sequence[int] = size) -> float:
        return sum(map(each, nats, sizes)) / len(nats)

    judge(
        read(f(nats, texts), (), "the figure"),
        right,
        (
            mean(lambda x, n: x / n),
            "Those are nats a byte; a bit is ln 2 nats, so divide by math.log(2).",
        ),
        (mean(lambda x, n: x * math.log(2) / n), "A bit is ln 2 nats: divide by math.log(2), do not multiply."),
        (
            mean(lambda x, n: x / math.log(2) / n, letters),
            "You divide by characters; a byte is one of text.encode(), and é or 東 takes several.",
        ),
        (
            sum(nats) / math.log(2) / sum(size),
            "All bits over all bytes lets long documents count for more; take the mean over documents.",
        ),
        (mean(lambda x, n: x / math.log(2)), "Those are bits a document; divide by its bytes."),
        (mean(lambda x, n: n * math.log(2) / x), "Those are bytes a bit: it is upside down."),
        (mean(lambda x, n: x / math.log(2) / n / 8), "Those are bytes a byte; a bit is what is asked for."),
        what="the figure",
    )


BITS_PER_BYTE = Exercise(
    "03.bits_per_byte",
    "Bits a byte",
    "Write bits_per_byte(nats, texts): nats[i] is the loss of texts[i] in nats, the sum over all its tokens. Give the "
    "mean over the texts of bits a byte; bytes are those of UTF-8.",
    Level(difficulty=1, minutes=5, points=2),
    "2",
    ("len(text.encode()) counts bytes.", "A bit is ln 2 nats."),
    check_bits,
    bits_per_byte,
    lesson="Arithmetic coding makes a compressor of a model, whose file is within two bits of the model's own loss: to "
    "predict is to compress. A loss a token may also fall because the tokenizer was changed.",
)

# ---- questions and predictions -----------------------------------------------------------------------------------

STEPS = Exercise(
    "03.steps",
    "How many steps?",
    "Llama 2 saw 2.0 trillion tokens in batches of 4 million. How many optimiser steps are that?",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("Divide.",),
    Number(
        500_000,
        (
            (500, "2 trillion is 2,000,000 millions, not 2,000."),
            (8e18, "Divide, do not multiply."),
            (2000, "2,000 steps are the warm-up."),
        ),
        relative=0.02,
    ),
    lesson="A batch so large lets thousands of GPUs work on one step. Beyond the size at which the gradient is nearly "
    "exact, a still larger one saves no steps and only costs tokens.",
)

NO_WARMUP = Exercise(
    "03.no_warmup",
    "Without warm-up",
    "The plot shows the loss with and without warm-up. Why does the second jump up at first?",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("What does Adam know about the gradients in its first steps?",),
    Choice(
        a=("the data are harder at the start", "Both runs read the same batches in the same order."),
        b="Adam's estimates rest on a few gradients, and the steps are full size",
        c=("the weights are still zero", "The weights are random, not zero; with zeros nothing would move at all."),
    ),
    lesson="Adam divides by the gradient's own size, so in its first step every weight moves by a full rate, however "
    "small its gradient: in a direction that one batch has guessed.",
)

FIRST_LOSS = Prediction(
    "03.first_loss",
    "The loss before any training",
    "The model has learnt nothing yet. Predict its loss in nats from the number of tokens that the tokenizer knows.",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("How likely is each token to a model that knows nothing?",),
    Guess(
        0.0,
        30.0,
        "An ignorant model spreads its belief over all tokens: the loss is the logarithm of their number.",
        "Worse than ignorance takes certainty: a belief spread evenly has the logarithm of the number of tokens.",
        absolute=0.3,
    ),
    lesson="The natural logarithm of the number of tokens; a little more, for an untrained model is sure of something.",
)

WINDOW = Prediction(
    "03.window",
    "What does a chat lose with half the context?",
    "Somebody is named, two to four turns on other "
    'matters follow, then comes a question with "her" or "his" in it. The chat model sees the last 6 turns, or the '
    "last 3. Predict the difference of their shares of right answers.",
    Level(difficulty=2, minutes=3, points=1),
    "2.2, A.2.1",
    ("Which of the two windows still holds the name?", "How well does a small model look back over some turns?"),
    Guess(
        -1.0,
        1.0,
        "The longer window is worth more than you thought: without the name there is only guessing.",
        "The longer window is worth less than you thought: to have the name is not yet to use it.",
        absolute=0.15,
    ),
    lesson="In the report (A.2.1) NarrativeQA all but failed with 2k tokens and not with 4k: 0.21 and 17.26.",
)

EXERCISES = (FIRST_LOSS, STEPS, SCHEDULE, TRAINING_STEP, NO_WARMUP, BITS_PER_BYTE, WINDOW)
