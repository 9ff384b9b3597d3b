"""Answers to the exercises of notebooks 07 to 11: right ones in other styles, and wrong ones with words of their
message."""

import statistics

import numpy as np
import torch
from scipy import stats

from llama2lab.lessons.n07_rejection.exercises import BEST_OF_CURVE, BEST_OF_K
from llama2lab.lessons.n08_ppo.exercises import CLIPPED, GAE, KL, SAMPLING_GAP, TOKEN_REWARDS
from llama2lab.lessons.n09_gatt.exercises import GATT_MASK
from llama2lab.lessons.n11_evaluation.exercises import WIN_RATE


def best_numpy(answers, scores, k):
    rows = np.array(scores).reshape(-1, k).argmax(1)
    return np.array(answers).reshape(-1, k)[np.arange(len(rows)), rows].tolist()


def best_loop(answers, scores, k):
    best: dict = {}
    for i, (answer, score) in enumerate(zip(answers, scores)):
        if i // k not in best or score > best[i // k][0]:
            best[i // k] = (score, answer)
    return tuple(answer for _, answer in best.values())


def best_mixed(answers, scores, k):
    n = len(answers) // k
    return [max(zip(scores[i::n], answers[i::n]))[1] for i in range(n)]


def curve_numpy(scores, k):
    first = np.array(scores)[:, :k]
    return first.max(axis=1).mean(), np.median(first, axis=1).mean()


def curve_loop(scores, k):
    return [statistics.mean(max(s[:k]) for s in scores), statistics.mean(statistics.median(s[:k]) for s in scores)]


def kl_exact(p, q):
    log = p.double() - q.double()
    return log, log.square() / 2, torch.exp(-log) - (1 - log)


def kl_numpy(p, q):
    r = np.exp(q.numpy() - p.numpy())
    return {"k1": -np.log(r), "k2": np.log(r) ** 2 / 2, "k3": r - 1 - np.log(r)}


def kl(k1=lambda x: x, k2=lambda x: x * x / 2, k3=lambda x: torch.exp(-x) - 1 + x):
    return lambda p, q: {"k1": k1(p - q), "k2": k2(p - q), "k3": k3(p - q)}


def gae_sums(rewards, values, mask, gamma, lam):
    """By its definition: a decaying sum of all later deltas."""
    advantages = torch.zeros_like(rewards).double()
    for b in range(len(rewards)):
        at = mask[b].nonzero()[:, 0].tolist()
        r, v = rewards[b, at].tolist(), [*values[b, at].tolist(), 0.0]
        deltas = [x + gamma * v[i + 1] - v[i] for i, x in enumerate(r)]
        for i, t in enumerate(at):
            advantages[b, t] = sum((gamma * lam) ** j * d for j, d in enumerate(deltas[i:]))
    return advantages, torch.where(mask, advantages + values, 0.0)


def gae_matrix(rewards, values, mask, gamma, lam):
    on = mask.float()
    following = torch.cat([(values * on)[:, 1:], torch.zeros(len(values), 1)], 1)
    deltas = (rewards + gamma * following - values) * on
    steps = rewards.shape[1]
    power = torch.arange(steps)[:, None] - torch.arange(steps)
    advantages = deltas @ torch.where(power >= 0, (gamma * lam) ** power.clamp(min=0).float(), 0.0) * on
    return [advantages, (advantages + values) * on]


def gae_with(rewards=lambda r: r, gamma=None, lam=None, mask=None, values=None, returns=None):
    def answer(r, v, m, g, l):
        a, _ = gae_sums(
            rewards(r),
            v,
            torch.ones_like(m) if mask == "no" else m,
            g if gamma is None else gamma,
            l if lam is None else lam,
        )
        return a * m, a * m if returns == "no" else (a + v) * m

    return answer


def gae_unbootstrapped(rewards, values, mask, gamma, lam):
    out, running = torch.zeros_like(rewards), torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        running = (rewards[:, t] - values[:, t] + gamma * lam * running) * mask[:, t]
        out[:, t] = running
    return out, (out + values) * mask


def clipped_loop(new, old, advantages, mask, clip):
    total = [
        min(r * a, min(max(r, 1 - clip), 1 + clip) * a)
        for r, a in zip((new - old).exp()[mask].tolist(), advantages[mask].tolist())
    ]
    return -sum(total) / len(total)


def clipped(new, old, advantages, mask, clip, choose=torch.maximum, sign=1.0, padding=False):
    ratio = torch.exp(new - old)
    loss = choose(-ratio * advantages, -torch.clip(ratio, 1 - clip, 1 + clip) * advantages)
    on = torch.ones_like(mask) if padding else mask
    return sign * (loss * on).sum() / on.sum()


def rewards_loop(scores, policy, reference, mask, beta):
    out = np.zeros(policy.shape)
    for b in range(len(scores)):
        at = mask[b].nonzero()[:, 0].tolist()
        for t in at:
            out[b, t] = -beta * float(policy[b, t] - reference[b, t])
        out[b, at[-1]] += float(scores[b])
    return out


def rewards(scores, policy, reference, mask, beta, sign=-1.0, where="last", masked=True):
    count = mask.long().cumsum(1)
    place = {
        "last": mask & (count == count[:, -1:]),
        "all": mask,
        "none": torch.zeros_like(mask),
        "end": torch.arange(mask.shape[1]).expand(mask.shape) == mask.shape[1] - 1,
    }[where]
    penalty = sign * beta * (policy - reference)
    return (penalty * mask if masked else penalty) + scores[:, None] * place


def gatt(ids, eos=True, inst=False):
    start = max(i for i, token in enumerate(ids) if token == 5) + (0 if inst else 1)
    return [int(i >= start and (eos or i < len(ids) - 1)) for i in range(len(ids))]


def gatt_backwards(ids):
    mask = torch.zeros(len(ids))
    i = len(ids) - 1
    while ids[i] != 5:
        mask[i] = 1
        i -= 1
    return mask


def gatt_all(ids):
    mask, on = [], False
    for token in ids:
        mask.append(int(on))
        on = token == 5 or (on and token != 2)
    return mask


def gatt_first(ids):
    start, end = ids.index(5) + 1, ids.index(2) + 1
    return [int(start <= i < end) for i in range(len(ids))]


def points(outcomes):
    return [{"win": 1, "tie": 0.5, "loss": 0}[o] for o in outcomes]


def wilson_roots(outcomes):
    """The ends are where the true rate lies z standard errors away."""
    p, n, z = sum(points(outcomes)) / len(outcomes), len(outcomes), 1.96
    low, high = sorted(np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p]).real)
    return p, low, high


def wilson(outcomes, z=None, tie=0.5):
    z = stats.norm.ppf(0.975) if z is None else z
    n = len(outcomes)
    p = (outcomes.count("win") + tie * outcomes.count("tie")) / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return np.array([p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]).tolist()


def plain_interval(outcomes, cut=False):
    p, n = sum(points(outcomes)) / len(outcomes), len(outcomes)
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    return (p, max(0.0, p - half), min(1.0, p + half)) if cut else (p, p - half, p + half)


def played(outcomes):
    return [o for o in outcomes if o != "tie"]


RIGHT = [
    (BEST_OF_K, best_numpy),
    (BEST_OF_K, best_loop),
    (BEST_OF_CURVE, curve_numpy),
    (BEST_OF_CURVE, curve_loop),
    (KL, kl_exact),
    (KL, kl_numpy),
    (KL, kl()),
    (GAE, gae_sums),
    (GAE, gae_matrix),
    (CLIPPED, clipped_loop),
    (CLIPPED, clipped),
    (TOKEN_REWARDS, rewards_loop),
    (TOKEN_REWARDS, rewards),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored).abs()[mask].mean()),
    (SAMPLING_GAP, lambda said, scored, mask: float((abs(scored - said) * mask).sum() / mask.sum())),
    (GATT_MASK, gatt),
    (GATT_MASK, gatt_backwards),
    (WIN_RATE, wilson_roots),
    (WIN_RATE, wilson),
]

WRONG = [
    (BEST_OF_K, lambda a, s, k: best_loop(a, [-x for x in s], k), "worst"),
    (BEST_OF_K, best_mixed, "mixed over prompts"),
    (BEST_OF_K, lambda a, s, k: [a[i] for i in np.argsort(s)[::-1][: len(a) // k]], "all prompts together"),
    (BEST_OF_K, lambda a, s, k: [a[int(np.argmax(s))]], "one answer for all"),
    (BEST_OF_K, lambda a, s, k: np.array(s).reshape(-1, k).argmax(1).tolist(), "answer (text)"),
    (BEST_OF_CURVE, lambda s, k: (np.array(s)[:, :k].max(), curve_numpy(s, k)[1]), "largest of all prompts"),
    (BEST_OF_CURVE, lambda s, k: (curve_numpy(s, k)[0], np.array(s)[:, :k].mean()), "not the mean"),
    (BEST_OF_CURVE, lambda s, k: curve_numpy(s, 8), "only the first k"),
    (BEST_OF_CURVE, lambda s, k: (curve_numpy(s, k)[0], torch.tensor(s)[:, :k].median(1).values.mean()), "lower one"),
    (BEST_OF_CURVE, lambda s, k: curve_numpy(s, k)[::-1], "swapped"),
    (KL, kl(k1=lambda x: -x), "wrong sign"),
    (KL, kl(k2=lambda x: x * x), "one half"),
    (KL, kl(k3=lambda x: torch.exp(x) - 1 - x), "upside down"),
    (KL, kl(k3=lambda x: torch.exp(-x) - 1 - x), "sign of the logarithm"),
    (KL, lambda p, q: p - q, "dictionary"),
    (GAE, gae_with(mask="no"), "mask is not used"),
    (GAE, gae_with(lam=1.0), "lambda is not used"),
    (GAE, gae_with(gamma=1.0), "gamma is not used"),
    (GAE, gae_with(lam=0.0), "delta alone"),
    (GAE, gae_unbootstrapped, "value of the next step is missing"),
    (GAE, gae_with(returns="no"), "returns equal the advantages"),
    (GAE, lambda *a: gae_sums(*a)[0], "Two tensors"),
    (CLIPPED, lambda *a: clipped(*a, sign=-1.0), "sign is wrong"),
    (CLIPPED, lambda *a: clipped(*a, choose=torch.minimum), "larger of the two"),
    (CLIPPED, lambda *a: clipped(*a, choose=lambda x, y: x), "Nothing is clipped"),
    (CLIPPED, lambda *a: clipped(*a, choose=lambda x, y: y), "Only the clipped term"),
    (CLIPPED, lambda *a: clipped(*a, padding=True), "padding"),
    (CLIPPED, lambda new, old, *a: clipped(old, new, *a), "upside down"),
    (CLIPPED, lambda new, old, a, m, clip: clipped(new, old, a, m, 0.2), "clip of 0.05"),
    (TOKEN_REWARDS, lambda *a: rewards(*a, sign=1.0), "wrong sign"),
    (TOKEN_REWARDS, lambda *a: rewards(*a, where="all"), "every token"),
    (TOKEN_REWARDS, lambda *a: rewards(*a, where="end"), "end of the row"),
    (TOKEN_REWARDS, lambda *a: rewards(*a, where="none"), "scores are missing"),
    (TOKEN_REWARDS, lambda *a: rewards(*a, masked=False), "outside of the mask"),
    (SAMPLING_GAP, lambda said, scored, mask: (scored - scored).abs()[mask].mean(), "You find no gap"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored)[mask].mean(), "cancel"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored).abs().mean(), "padding"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored).abs()[mask].max(), "largest"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored).abs()[mask].sum(), "the sum"),
    (SAMPLING_GAP, lambda said, scored, mask: (said.exp() - scored.exp()).abs()[mask].mean(), "compare probabilities"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored).exp()[mask].mean(), "a ratio"),
    (SAMPLING_GAP, lambda said, scored, mask: (said - scored)[mask].square().mean(), "squared"),
    (GATT_MASK, gatt_all, "All answers are learnt"),
    (GATT_MASK, gatt_first, "first answer"),
    (GATT_MASK, lambda ids: gatt(ids, eos=False), "closing </s>"),
    (GATT_MASK, lambda ids: gatt(ids, inst=True), "[/INST] belongs"),
    (WIN_RATE, lambda o: wilson(o, tie=0), "count as losses"),
    (WIN_RATE, lambda o: wilson(o, tie=1), "count as wins"),
    (WIN_RATE, lambda o: wilson(played(o)), "left out"),
    (WIN_RATE, plain_interval, "plain interval"),
    (WIN_RATE, lambda o: plain_interval(o, cut=True), "plain interval"),
    (WIN_RATE, lambda o: wilson(o, z=1.0), "you use 1"),
    (WIN_RATE, lambda o: (wilson(o)[0], *wilson(o)[:0:-1]), "lower end comes first"),
    (WIN_RATE, lambda o: wilson(o)[0], "Three numbers"),
]
