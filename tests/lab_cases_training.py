"""Answers to the exercises of notebooks 03 to 06: right ones in other styles, and wrong ones with words of their
message."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from llama2lab.lessons.n03_pretraining.exercises import SCHEDULE
from llama2lab.lessons.n04_sft.exercises import SFT_LOSS, SFT_MASK
from llama2lab.lessons.n05_preferences.exercises import AC1, PERCENT
from llama2lab.lessons.n06_rewards.exercises import GATE, RANKING_LOSS, WHITEN


def rate(step, steps, peak, warmup, final, up=True, start=False, low=None, line=False):
    if step < warmup:
        return peak * ((step + 1) / warmup if up else 1)
    progress = step / (steps - 1) if start else (step - warmup) / (steps - 1 - warmup)
    wave = 1 - progress if line else math.cos(math.pi * progress / 2) ** 2
    low = final if low is None else low
    return peak * (low + (1 - low) * wave)


def rate_interpolated(step, steps, peak, warmup, final):
    climb = np.linspace(peak / warmup, peak, warmup)
    fall = peak * (final + (1 - final) * 0.5 * (1 + np.cos(np.linspace(0, np.pi, steps - warmup))))
    return np.concatenate([climb, fall])[step]


def rate_tensor(*args):
    return torch.tensor(rate(*args))


def mask_walk(ids, inst=False, eos=True, prompt=0):
    mask, answer = [], False
    for i in ids:
        mask.append(int(answer and (eos or i != 2)) or prompt)
        if i == 5:
            answer = True
            mask[-1] = int(inst) or prompt
        elif i == 2:
            answer = False
    return mask


def mask_numpy(ids):
    ids = np.array(ids)
    starts, ends = np.cumsum(ids == 5), np.cumsum(ids == 2)
    return ((starts - (ends - (ids == 2)) > 0) & (ids != 5)).astype(float)


def mask_last(ids):
    start = len(ids) - ids[::-1].index(5)
    return [0] * start + [1] * (len(ids) - start)


def loss_torch(logits, tokens, mask):
    targets = torch.where(mask.bool(), tokens, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1))


def loss_loop(logits, tokens, mask):
    found = [
        -float(logits[b, t - 1].log_softmax(-1)[tokens[b, t]])
        for b in range(len(tokens))
        for t in range(1, tokens.shape[1])
        if mask[b, t]
    ]
    return sum(found) / len(found)


def each(logits, tokens):
    return -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def shifted(logits, tokens):
    return each(logits[:, :-1], tokens[:, 1:])


def percent_loop(table):
    shares = []
    for row in table.tolist():
        judgements = [c for c, n in enumerate(row) for _ in range(n)]
        pairs = [(a, b) for i, a in enumerate(judgements) for b in judgements[i + 1 :]]
        if pairs:
            shares.append(sum(a == b for a, b in pairs) / len(pairs))
    return sum(shares) / len(shares)


def percent_numpy(table, alone=False, itself=False):
    n = table.sum(1)
    keep = n > (0 if alone else 1)
    agree = (table**2).sum(1) / n**2 if itself else (table * (table - 1)).sum(1) / np.maximum(1, n * (n - 1))
    return np.mean(agree[keep])


def ac1_numpy(table, squares=False, divide=True, pooled=False):
    share = table.sum(0) / table.sum() if pooled else (table / table.sum(1, keepdims=True)).mean(0)
    chance = (share**2).sum() if squares else (share * (1 - share)).sum() / ((len(share) - 1) if divide else 1)
    return (percent_loop(table) - chance) / (1 - chance)


def ac1_loop(table):
    rows, q = table.tolist(), table.shape[1]
    p = [sum(row[c] / sum(row) for row in rows) / len(rows) for c in range(q)]
    chance = (1 - sum(x * x for x in p)) / (q - 1)
    return torch.tensor(1 - (1 - percent_loop(table)) / (1 - chance))


def gate_loop(helpfulness, safety, tag, threshold):
    def probability(x):
        return 1 / (1 + math.exp(-x))

    return [
        probability(s) if t or probability(s) < threshold else probability(h)
        for h, s, t in zip(helpfulness.tolist(), safety.tolist(), tag.tolist())
    ]


def gate_blend(helpfulness, safety, tag, threshold):
    closed = torch.logical_or(tag, safety < math.log(threshold / (1 - threshold))).double()
    return closed * safety.sigmoid() + (1 - closed) * helpfulness.sigmoid()


def gate(h, s, tag, threshold, condition):
    return torch.where(condition(tag, s, threshold), s.sigmoid(), h.sigmoid())


def whiten_numpy(r):
    r = np.clip(r.numpy().astype(float), 1e-6, 1 - 1e-6)
    x = np.log(r) - np.log1p(-r)
    return (x - x.mean()) / x.std()


def finite(x):
    return x[x.isfinite()]


def whiten_sample(r):
    x = torch.logit(r.double(), eps=1e-7)
    return (x - x.mean()) / x.std()


RIGHT = [
    (SCHEDULE, rate),
    (SCHEDULE, rate_interpolated),
    (SCHEDULE, rate_tensor),
    (SFT_MASK, mask_walk),
    (SFT_MASK, mask_numpy),
    (SFT_MASK, lambda ids: torch.tensor(mask_walk(ids)).bool()),
    (SFT_LOSS, loss_torch),
    (SFT_LOSS, loss_loop),
    (SFT_LOSS, lambda x, t, m: (shifted(x, t) * m[:, 1:]).sum() / m[:, 1:].sum()),
    (PERCENT, percent_loop),
    (PERCENT, percent_numpy),
    (AC1, ac1_numpy),
    (AC1, ac1_loop),
    (RANKING_LOSS, lambda c, r, m: F.softplus(m - (c - r)[:, 0]).mean()),
    (RANKING_LOSS, lambda c, r, m: torch.log1p((m[:, None] + r.double() - c).exp()).mean()),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid(c.flatten() - r.flatten() - m).sum() / len(m)),
    (GATE, gate_loop),
    (GATE, gate_blend),
    (WHITEN, whiten_numpy),
    (WHITEN, whiten_sample),
]

WRONG = [
    (SCHEDULE, lambda s, n, p, w, f: rate(s, n, p, w, f, up=False), "no warm-up"),
    (SCHEDULE, lambda s, n, p, w, f: rate(s, n, p, w, f, low=0.0), "ends at 0"),
    (SCHEDULE, lambda s, n, p, w, f: rate(s, n, p, w, f, start=True), "jumps after the warm-up"),
    (SCHEDULE, lambda s, n, p, w, f: rate(s, n, p, w, f, line=True), "a line down"),
    (SCHEDULE, lambda s, n, p, w, f: p * s / w if s < w else rate(s, n, p, w, f), "first step has a rate of 0"),
    (SFT_MASK, lambda ids: mask_walk(ids, eos=False), "never learns to stop"),
    (SFT_MASK, lambda ids: mask_walk(ids, inst=True), "[/INST] belongs to the prompt"),
    (SFT_MASK, lambda ids: [1 - m for m in mask_walk(ids)], "inverted"),
    (SFT_MASK, mask_last, "Only the last answer"),
    (SFT_MASK, lambda ids: mask_walk(ids, prompt=1), "prompts' tokens are learnt too"),
    (SFT_MASK, lambda ids: mask_walk(ids)[1:], "shape"),
    (SFT_MASK, lambda ids: mask_walk(ids)[1:] + [0], "shifted by one"),
    (SFT_LOSS, lambda x, t, m: each(x, t)[m.bool()].mean(), "predict the next one"),
    (SFT_LOSS, lambda x, t, m: shifted(x, t).mean(), "mask is not used"),
    (SFT_LOSS, lambda x, t, m: shifted(x, t)[m[:, :-1].bool()].mean(), "mask is not shifted"),
    (SFT_LOSS, lambda x, t, m: shifted(x, t)[m[:, 1:].bool()].sum(), "That is the sum"),
    (SFT_LOSS, lambda x, t, m: (shifted(x, t) * m[:, 1:]).mean(), "divide by all tokens"),
    (SFT_LOSS, lambda x, t, m: -shifted(x, t)[m[:, 1:].bool()].mean(), "sign is wrong"),
    (PERCENT, lambda t: percent_numpy(t, alone=True), "one person alone"),
    (PERCENT, lambda t: percent_numpy(t, itself=True), "with itself too"),
    (PERCENT, lambda t: 100 * percent_numpy(t), "not percent"),
    (PERCENT, lambda t: np.mean([max(r) / sum(r) for r in t.tolist() if sum(r) > 1]), "share of the majority"),
    (AC1, percent_loop, "plain agreement"),
    (AC1, lambda t: ac1_numpy(t, squares=True), "Fleiss"),
    (AC1, lambda t: 2 * percent_loop(t) - 1, "not one half"),
    (AC1, lambda t: ac1_numpy(t, pooled=True), "pool all judgements"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid(c - r - m).mean(), "broadcasts to (batch, batch)"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid((c - r)[:, 0] + m).mean(), "wrong sign"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid((r - c)[:, 0] - m).mean(), "swapped"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid((c - r)[:, 0]).mean(), "margin is not used"),
    (RANKING_LOSS, lambda c, r, m: F.logsigmoid((c - r)[:, 0] - m).mean(), "push chosen answers down"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid((c - r)[:, 0] - m).sum(), "That is the sum"),
    (RANKING_LOSS, lambda c, r, m: -F.logsigmoid((c - r)[:, 0] - m), "shape"),
    (RANKING_LOSS, lambda c, r, m: -torch.sigmoid((c - r)[:, 0] - m).log().mean(), "F.logsigmoid"),
    (GATE, lambda h, s, tag, x: gate(h, s, tag, x, lambda t, s, x: t | (s < x)), "raw score"),
    (GATE, lambda h, s, tag, x: torch.where(tag | (s.sigmoid() < x), s, h), "take the sigmoid"),
    (GATE, lambda h, s, tag, x: gate(h, s, tag, x, lambda t, s, x: t), "must be gated too"),
    (GATE, lambda h, s, tag, x: gate(h, s, tag, x, lambda t, s, x: s.sigmoid() < x), "tag is not used"),
    (GATE, lambda h, s, tag, x: gate(h, s, tag, x, lambda t, s, x: t & (s.sigmoid() < x)), "OR"),
    (GATE, lambda h, s, tag, x: gate(s, h, tag, x, lambda t, _, x: t | (s.sigmoid() < x)), "swapped"),
    (WHITEN, lambda r: (r - r.mean()) / r.std(unbiased=False), "logit is missing"),
    (WHITEN, torch.logit, "not yet whitened"),
    (WHITEN, lambda r: torch.logit(r) - torch.logit(r).mean(), "not yet 1"),
    (WHITEN, lambda r: whiten_numpy(r) + torch.logit(r).mean().item(), "adds the mean back"),
    (WHITEN, lambda r: -whiten_numpy(r), "wrong sign"),
    (WHITEN, lambda r: (torch.logit(r) - finite(torch.logit(r)).mean()) / finite(torch.logit(r)).std(), "infinite"),
    (WHITEN, lambda r: (torch.logit(r) - torch.logit(r).mean()) / torch.logit(r).std(), "infinite"),
]
