"""Pictures of a student's own output in notebook 03: the schedule, and steps of training."""

from __future__ import annotations

import torch

from llama2lab.lab.own_output import Answer, numbers, own_curves

STEPS = 24


def draw_schedule(f: Answer) -> str:
    """The learning rate over 40 steps of two schedules, at the report's peak for the 7B."""
    peak, many = 3e-4, 40
    series = [
        (f"warm-up {warmup}", [(float(s), numbers(f(s, many, peak, warmup, final))) for s in range(many)])
        for warmup, final in ((4, 0.1), (16, 0.5))
    ]
    note = f"Both reach {peak:g}; the first ends at a tenth of it, as in the report, the second at half."
    return own_curves("Your learning rate", series, "step", "learning rate", note)


def draw_training(f: Answer) -> str:
    """The losses of the student's steps, on one batch again and again, at three rates."""
    generator = torch.Generator().manual_seed(1)
    segments = torch.ones(2, 12, dtype=torch.long)
    batch = (torch.randint(24, (2, 12), generator=generator), segments, segments > 0)
    series = []
    for rate in (0.001, 0.01, 0.1):
        losses = numbers(f([batch] * STEPS, [rate] * STEPS)["losses"], STEPS)
        series.append((f"rate {rate:g}", list(enumerate(losses, 1))))
    return own_curves("Your steps, on one batch again and again", series, "step", "loss, nats a token")
