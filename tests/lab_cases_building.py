"""Answers to the exercises that build a piece of RLHF, notebooks 06 to 11: right ones in other styles, and wrong ones
with words of their message."""

import itertools
import math
import random
import statistics
from collections import defaultdict

import numpy as np
import torch

from llama2lab.lessons.n06_rewards.exercises import LAST_TOKEN
from llama2lab.lessons.n07_rejection.exercises import EXPECTED_BEST
from llama2lab.lessons.n08_ppo.exercises import PPO_STEP, VALUE_LOSS
from llama2lab.lessons.n09_gatt.exercises import DIALOGUE_MESSAGES, GATT_ROW
from llama2lab.lessons.n10_rounds.exercises import AGAINST, BY_SKILL, FINETUNING_ROWS
from llama2lab.lessons.n11_evaluation.exercises import EFFECTIVE_N

# ---- 06 ----------------------------------------------------------------------------------------------------------


def last_loop(hidden, lengths, weight):
    return [float(row[n - 1] @ weight) for row, n in zip(hidden, lengths.tolist())]


def last_gather(hidden, lengths, weight):
    scores = (hidden * weight).sum(-1)
    return torch.gather(scores, 1, lengths[:, None] - 1).squeeze(1)


def every_score(pick):
    return lambda hidden, lengths, weight: pick(hidden @ weight, torch.arange(hidden.shape[1]) < lengths[:, None])


# ---- 07 ----------------------------------------------------------------------------------------------------------


def best_counted(scores, k):
    down = sorted(scores, reverse=True)
    n, total, left = len(scores), 0.0, 1.0
    for i, x in enumerate(down):  # the chance that x is in and all above it are out
        here = left * k / (n - i)
        total += here * x
        left -= here
        if i == n - k:
            break
    return total


def best_simulated(scores, k):
    rng = random.Random(0)
    return statistics.mean(max(rng.sample(scores, k)) for _ in range(3000))


def best_replaced(scores, k):
    n = len(scores)
    return sum(x * (((i + 1) / n) ** k - (i / n) ** k) for i, x in enumerate(sorted(scores)))


def best_weighted(order=sorted, taken=1):
    def answer(scores, k):
        n = len(scores)
        return sum(x * math.comb(i, k - taken) for i, x in enumerate(order(scores))) / math.comb(n, k)

    return answer


# ---- 08 ----------------------------------------------------------------------------------------------------------


def value_loop(new, old, returns, mask, clip):
    errors = []
    for n, o, r in zip(new[mask].tolist(), old[mask].tolist(), returns[mask].tolist()):
        held = min(max(n, o - clip), o + clip)
        errors.append(max((n - r) ** 2, (held - r) ** 2))
    return sum(errors) / len(errors) / 2


def value(choose=torch.maximum, half=0.5, masked=True, whole=False, ratio=False):
    def answer(new, old, returns, mask, clip):
        held = torch.minimum(torch.maximum(new, old - clip), old + clip)
        if whole:
            held = new.clamp(-clip, clip)
        if ratio:
            held = old * (new / old).clamp(1 - clip, 1 + clip)
        loss = choose((new - returns).square(), (held - returns).square())
        return half * (loss[mask] if masked else loss).mean()

    return answer


def step_by_hand(logits, tokens, old, advantages, clip, lr):
    """The gradient of log softmax by hand: one-hot less the probabilities."""
    p = np.exp(logits.numpy().astype(float))
    p /= p.sum()
    gradient = np.zeros(3)
    for token, before, a in zip(tokens.tolist(), old.tolist(), advantages.tolist()):
        ratio = p[token] / np.exp(before)
        if (a > 0 and ratio > 1 + clip) or (a < 0 and ratio < 1 - clip):
            continue
        gradient += ratio * a * (np.eye(3)[token] - p)
    return logits.numpy() + lr * gradient / len(tokens)


def step_by_autograd(
    logits, tokens, old, advantages, clip, lr, sign=-1.0, mean=torch.mean, clipped=True, unclipped=True, anew=False
):
    x = torch.nn.Parameter(logits.clone())
    new = torch.log_softmax(x, 0).gather(0, tokens)
    ratio = torch.exp(new - (new if anew else old))
    one, two = ratio * advantages, torch.clip(ratio, 1 - clip, 1 + clip) * advantages
    objective = torch.min(one, two) if clipped and unclipped else two if clipped else one
    (sign * mean(objective)).backward()
    with torch.no_grad():
        x -= lr * x.grad
    return x


def step_of_logits(logits, tokens, old, advantages, clip, lr):
    x = logits.clone().requires_grad_()
    ratio = (x[tokens] - old).exp()
    torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean().backward()
    return x.detach() + lr * x.grad


def step_reinforce(logits, tokens, old, advantages, clip, lr):
    x = logits.clone().requires_grad_()
    (x.log_softmax(-1)[tokens] * advantages).mean().backward()
    return x.detach() + lr * x.grad


# ---- 09 ----------------------------------------------------------------------------------------------------------


def message(role, content):
    return {"role": role, "content": content}


def talk(instruction, questions, answers, everywhere):
    pairs = itertools.zip_longest(questions, answers)
    made = [m for q, a in pairs for m in (message("user", q), message("assistant", a))]
    made = [m for m in made if m["content"] is not None]
    for m in made[::2] if everywhere else made[:1]:
        m["content"] = f"{instruction} {m['content']}"
    return made


def talk_loop(told=lambda t, n, everywhere: everywhere or t == 0, form="{i} {q}", swapped=False, reply="", last=True):
    def answer(instruction, questions, answers, everywhere):
        made = []
        user, assistant = ("assistant", "user") if swapped else ("user", "assistant")
        for t, q in enumerate(questions):
            text = form.format(i=instruction, q=q) if told(t, len(answers), everywhere) else q
            if t < len(answers) or last:
                made.append(message(user, text))
            if t < len(answers):
                made.append(message(assistant, reply.format(i=instruction) + answers[t]))
        return tuple(made)

    return answer


def row(everywhere=False, cut=slice, learnt=lambda n: [int(i == n - 1) for i in range(n)], keep=None):
    def answer(instruction, questions, answers, turns):
        at = cut(turns)
        made = talk(instruction, questions[at], answers[at], everywhere)[:keep]
        return made, learnt(2 * turns)

    return answer


def row_stripped(instruction, questions, answers, turns):
    """The other way: with the instruction everywhere, then dropped."""
    sampled = talk(instruction, questions, answers, True)[: 2 * turns]
    for m in sampled[2::2]:
        m["content"] = m["content"].removeprefix(instruction).strip()
    return [sampled, torch.tensor([False] * (len(sampled) - 1) + [True])]


def row_replaced(instruction, questions, answers, turns):
    sampled = talk(instruction, questions, answers, True)[: 2 * turns]
    for m in sampled[2::2]:
        m["content"] = m["content"].replace(instruction, "").strip()
    return sampled, [0] * (2 * turns - 1) + [1]


# ---- 10 ----------------------------------------------------------------------------------------------------------


def rows_shuffled(best, chat, n, seed):
    rng = random.Random(seed)
    some = list(chat)
    rng.shuffle(some)
    rows = some[:n]
    for one in best:
        rows.extend(one)
    rng.shuffle(rows)
    return rows


def rows_numpy(best, chat, n, seed):
    picked = np.random.default_rng(seed).permutation(len(chat))[:n]
    return (*itertools.chain(*best), *(chat[i] for i in picked))


def rows(
    best=lambda rounds: [r for one in rounds for r in one],
    chat=lambda some, n, rng: rng.sample(some, min(n, len(some))),
):
    return lambda rounds, examples, n, seed: best(rounds) + chat(examples, n, random.Random(seed))


def gaps(new, old):
    return [a - b for a, b in zip(new, old)]


def against_numpy(new, old):
    gap = np.array(new) - np.array(old)
    return [(1 + np.where(np.abs(gap) > 0.05, np.sign(gap), 0).mean()) / 2, gap.mean()]


def against(tie=0.05, worth=0.5, gain=statistics.mean):
    def answer(new, old):
        each = gaps(new, old)
        points = [worth if abs(g) <= tie else float(g > 0) for g in each]
        points = [p for p in points if p is not None]
        return statistics.mean(points), gain(each)

    return answer


def skill_means(before, after, skills):
    found = defaultdict(list)
    for a, b, skill in zip(after, before, skills):
        found[skill].append(a - b)
        found["all"].append(a - b)
    return {skill: statistics.mean(values) for skill, values in found.items()}


def skill_numpy(before, after, skills):
    change, names = np.array(after) - np.array(before), np.array(skills)
    return {"all": change.mean()} | {s: change[names == s].mean() for s in np.unique(names).tolist()}


def changed(whole=None, each=lambda m, before, after, skills: m):
    def answer(before, after, skills):
        found = skill_means(before, after, skills)
        every = found.pop("all")
        found = {s: each(m, before, after, skills) for s, m in found.items()}
        return found if whole == "none" else found | {"all": whole(list(found.values())) if whole else every}

    return answer


def skill_sums(before, after, skills):
    found = skill_means(before, after, skills)
    return {s: m * skills.count(s) if s != "all" else m for s, m in found.items()}


# ---- 11 ----------------------------------------------------------------------------------------------------------


def effective_loop(values, groups):
    n, mean = len(values), statistics.mean(values)
    sums = defaultdict(float)
    for value_, group in zip(values, groups):
        sums[group] += value_ - mean
    if len(set(values)) == 1:
        return len(sums)
    g = len(sums)
    return n / max(1, g / (g - 1) * sum(s * s for s in sums.values()) / (n * statistics.variance(values)))


def effective_numpy(values, groups, least=1.0, ddof=1, factor=True, out=lambda n, d: n / d):
    x, (names, at) = np.array(values), np.unique(groups, return_inverse=True)
    if x.std() == 0:
        return len(names)
    sums = np.bincount(at, x - x.mean())
    d = (sums @ sums) / (len(x) * x.var(ddof=ddof)) * (len(names) / (len(names) - 1) if factor else 1)
    return out(len(x), max(least, d))


def effective_of_means(values, groups):
    means = [statistics.mean(v for v, g in zip(values, groups) if g == name) for name in set(groups)]
    return statistics.variance(values) / (statistics.variance(means) / len(means))


RIGHT = [
    (LAST_TOKEN, last_loop),
    (LAST_TOKEN, last_gather),
    (EXPECTED_BEST, lambda scores, k: statistics.mean(map(max, itertools.combinations(scores, k)))),
    (EXPECTED_BEST, best_counted),
    (EXPECTED_BEST, best_weighted()),
    (VALUE_LOSS, value_loop),
    (VALUE_LOSS, value()),
    (PPO_STEP, step_by_hand),
    (PPO_STEP, step_by_autograd),
    (PPO_STEP, lambda *a: step_by_autograd(*a).log_softmax(-1)),
    (DIALOGUE_MESSAGES, talk),
    (DIALOGUE_MESSAGES, talk_loop()),
    (GATT_ROW, row()),
    (GATT_ROW, row_stripped),
    (FINETUNING_ROWS, rows_shuffled),
    (FINETUNING_ROWS, rows_numpy),
    (FINETUNING_ROWS, rows()),
    (AGAINST, against_numpy),
    (AGAINST, against()),
    (BY_SKILL, skill_means),
    (BY_SKILL, skill_numpy),
    (EFFECTIVE_N, effective_loop),
    (EFFECTIVE_N, effective_numpy),
]

WRONG = [
    (LAST_TOKEN, every_score(lambda s, inside: s[:, -1]), "end of the padded row"),
    (LAST_TOKEN, lambda h, n, w: last_loop(h, n.clamp(max=5) + 1, w), "one place behind"),
    (LAST_TOKEN, every_score(lambda s, inside: s[:, 0]), "first token"),
    (LAST_TOKEN, every_score(lambda s, inside: (s * inside).sum(1) / inside.sum(1)), "mean over the row's tokens"),
    (LAST_TOKEN, every_score(lambda s, inside: s.mean(1)), "padding included"),
    (LAST_TOKEN, every_score(lambda s, inside: (s * inside).sum(1)), "sum over the row's"),
    (LAST_TOKEN, lambda h, n, w: last_gather(h, n, w).sigmoid(), "a probability"),
    (LAST_TOKEN, lambda h, n, w: h[:, n - 1] @ w, "Number the rows too"),
    (LAST_TOKEN, lambda h, n, w: h[torch.arange(len(h)), n - 1], "has shape"),
    (EXPECTED_BEST, lambda s, k: max(s[:k]), "one choice of k"),
    (EXPECTED_BEST, lambda s, k: max(s), "best of all n"),
    (EXPECTED_BEST, lambda s, k: statistics.mean(s), "mean of the scores"),
    (EXPECTED_BEST, best_replaced, "with replacement"),
    (EXPECTED_BEST, lambda s, k: statistics.mean(max(s[i : i + k]) for i in range(0, len(s), k)), "pieces of k"),
    (EXPECTED_BEST, best_weighted(list), "sort first"),
    (EXPECTED_BEST, best_weighted(lambda s: sorted(s)[::-1]), "expected worst"),
    (EXPECTED_BEST, best_weighted(taken=0), "Off by one"),
    (EXPECTED_BEST, best_simulated, "not exact"),
    (VALUE_LOSS, value(choose=lambda x, y: x), "Nothing is clipped"),
    (VALUE_LOSS, value(choose=lambda x, y: y), "Only the clipped value"),
    (VALUE_LOSS, value(choose=torch.minimum), "smaller error"),
    (VALUE_LOSS, value(half=1.0), "half is missing"),
    (VALUE_LOSS, value(masked=False), "padding"),
    (VALUE_LOSS, lambda *a: value()(*a) * a[3].sum(), "the sum"),
    (VALUE_LOSS, value(whole=True), "clip the value itself"),
    (VALUE_LOSS, value(ratio=True), "no probabilities"),
    (VALUE_LOSS, value(choose=lambda x, y: torch.maximum(x, y).sqrt()), "absolute errors"),
    (PPO_STEP, lambda *a: step_by_autograd(*a, anew=True), "Nothing has moved"),
    (PPO_STEP, lambda logits, *a: logits.clone(), "Nothing has moved"),
    (PPO_STEP, lambda *a: step_by_autograd(*a, sign=1.0), "wrong way"),
    (PPO_STEP, lambda *a: step_by_autograd(*a, mean=torch.sum), "take their mean"),
    (PPO_STEP, lambda *a: step_by_autograd(*a[:5], 1.0), "lr is not used"),
    (PPO_STEP, lambda *a: step_by_autograd(*a, clipped=False), "Nothing is clipped"),
    (PPO_STEP, lambda *a: step_by_autograd(*a, unclipped=False), "Only the clipped term"),
    (PPO_STEP, step_reinforce, "`old` is not used"),
    (PPO_STEP, step_of_logits, "no log-probabilities"),
    (PPO_STEP, lambda *a: step_by_autograd(*a).softmax(-1), "probabilities. Give the logits"),
    (DIALOGUE_MESSAGES, talk_loop(lambda t, n, everywhere: True), "although `everywhere` is False"),
    (DIALOGUE_MESSAGES, talk_loop(lambda t, n, everywhere: t == 0), "although `everywhere` is True"),
    (DIALOGUE_MESSAGES, talk_loop(lambda t, n, everywhere: False), "instruction is missing"),
    (DIALOGUE_MESSAGES, talk_loop(lambda t, n, everywhere: everywhere or t == n), "before the last question"),
    (DIALOGUE_MESSAGES, talk_loop(form="{q} {i}"), "question stands first"),
    (DIALOGUE_MESSAGES, talk_loop(form="{i}{q}"), "a space"),
    (DIALOGUE_MESSAGES, lambda i, q, a, e: [message("system", i), *talk_loop(form="{q}")(i, q, a, e)], "no system"),
    (DIALOGUE_MESSAGES, talk_loop(last=False), "last question is missing"),
    (DIALOGUE_MESSAGES, talk_loop(swapped=True), "roles are swapped"),
    (DIALOGUE_MESSAGES, talk_loop(reply="{i} "), "in the answers too"),
    (DIALOGUE_MESSAGES, lambda *a: sorted(talk(*a), key=lambda m: m["role"], reverse=True), "take turns"),
    (DIALOGUE_MESSAGES, lambda i, q, a, e: f"{i} {q}", "list of messages"),
    (GATT_ROW, row(everywhere=True), "still stands before every question"),
    (GATT_ROW, row(cut=lambda turns: slice(None)), "not cut"),
    (GATT_ROW, row(cut=lambda turns: slice(-turns, None)), "last turns"),
    (GATT_ROW, row(keep=-1), "last answer is missing"),
    (GATT_ROW, lambda i, *a: row()("", *a), "Message 1"),
    (GATT_ROW, row_replaced, "has lost them"),
    (GATT_ROW, row(learnt=lambda n: [0, 1] * (n // 2)), "All answers are learnt"),
    (GATT_ROW, row(learnt=lambda n: [1] * (n - 1) + [0]), "inverted"),
    (GATT_ROW, row(learnt=lambda n: [0, 1] + [0] * (n - 2)), "first answer"),
    (GATT_ROW, row(learnt=lambda n: [0] * (n - 2) + [1, 1]), "last question is the user's"),
    (GATT_ROW, row(learnt=lambda n: [1] * n), "Everything is learnt"),
    (GATT_ROW, lambda *a: row()(*a)[0], "Two lists"),
    (FINETUNING_ROWS, rows(best=lambda rounds: rounds[-1]), "last round only"),
    (FINETUNING_ROWS, rows(best=lambda rounds: rounds[0]), "first round only"),
    (FINETUNING_ROWS, rows(best=lambda rounds: rounds[0] + rounds[1]), "last round's best answers are missing"),
    (FINETUNING_ROWS, rows(best=lambda rounds: []), "best answers are missing"),
    (FINETUNING_ROWS, rows(best=lambda rounds: [r[0] for r in rounds]), "one answer a round"),
    (FINETUNING_ROWS, rows(best=list), "one flat list"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: []), "SFT examples are missing"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: list(some)), "All SFT examples"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: rng.choices(some, k=400)), "without replacement"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: rng.sample(some, min(3 * n, len(some)))), "n_chat in all"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: some[:n]), "side by side"),
    (FINETUNING_ROWS, rows(chat=lambda some, n, rng: some[3 : 10 * n : 9][:n]), "it is not used"),
    (FINETUNING_ROWS, lambda b, c, n, s: rows()(b, c, n, random.SystemRandom().random()), "could not be made again"),
    (AGAINST, against(worth=0.0), "counts as a loss"),
    (AGAINST, against(worth=1.0), "counts as a win"),
    (AGAINST, against(worth=None), "left out"),
    (AGAINST, against(tie=0.0), "a tie; you call"),
    (AGAINST, lambda new, old: (against()(old, new)[0], against()(new, old)[1]), "old version's win rate"),
    (AGAINST, lambda new, old: (against()(new, old)[0] * 100, 0.0), "not percent"),
    (AGAINST, lambda new, old: (2 * against()(new, old)[0] - 1, 0.0), "wins less losses"),
    (AGAINST, against(gain=lambda each: -statistics.mean(each)), "new less old"),
    (AGAINST, against(gain=sum), "sum of the gains"),
    (AGAINST, against(gain=lambda each: statistics.mean(g for g in each if abs(g) > 0.05)), "left out of the gain"),
    (AGAINST, against(gain=lambda each: statistics.mean(map(abs, each))), "without absolute"),
    (AGAINST, lambda new, old: against()(new, old)[0], "Two numbers"),
    (BY_SKILL, lambda before, after, skills: skill_means(after, before, skills), "after less before"),
    (BY_SKILL, lambda before, after, skills: skill_means([0] * len(after), after, skills), "means after"),
    (BY_SKILL, skill_sums, "Those are sums"),
    (BY_SKILL, changed(whole=statistics.mean), "more weight"),
    (BY_SKILL, changed(whole="none"), "'all' is missing"),
    (BY_SKILL, lambda before, after, skills: {"all": 0.0}, "are expected"),
    (BY_SKILL, lambda before, after, skills: 0.0, "A dictionary"),
    (EFFECTIVE_N, lambda values, groups: len(values), "Groups are not used"),
    (EFFECTIVE_N, lambda values, groups: len(set(groups)), "number of groups"),
    (EFFECTIVE_N, lambda *a: effective_numpy(*a, out=lambda n, d: d), "design effect; n is divided"),
    (EFFECTIVE_N, lambda *a: effective_numpy(*a, out=lambda n, d: n * d), "not multiplied"),
    (EFFECTIVE_N, lambda *a: effective_numpy(*a, factor=False), "G - 1) is missing"),
    (EFFECTIVE_N, lambda *a: effective_numpy(*a, ddof=0), "n - 1 in its denominator"),
    (EFFECTIVE_N, lambda *a: effective_numpy(*a, least=0.0), "never more than n"),
    (EFFECTIVE_N, effective_of_means, "groups' means"),
]
