"""Answers to the exercises of notebooks 01, 03, 04 and 05 that build the pieces around a model: right ones in other
styles, and wrong ones with words of their message."""

import math
import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import torch

from llama2lab.engine.scale import GRADES
from llama2lab.lessons.n01_tokenizer.exercises import MERGE, MOST_FREQUENT_PAIR, PACK
from llama2lab.lessons.n03_pretraining.exercises import BITS_PER_BYTE, TRAINING_STEP
from llama2lab.lessons.n04_sft.exercises import CHAT_TEXT
from llama2lab.lessons.n05_preferences.exercises import MAJORITY, PAIRED_BOOTSTRAP
from llama2lab.stages.pretrain import packed_lm_loss

# ---- byte-pair encoding ------------------------------------------------------------------------------------------


def counted(words):
    return Counter(pair for word in words for pair in pairwise(word))


def pair_loop(words):
    counts = defaultdict(int)
    for word in words:
        for i in range(len(word) - 1):
            counts[word[i], word[i + 1]] += 1
    best = None
    for pair, n in counts.items():
        if best is None or n > counts[best] or (n == counts[best] and pair < best):
            best = pair
    return list(best)


def pair_sorted(words):
    counts = counted(words)
    return sorted(sorted(counts), key=counts.__getitem__, reverse=True)[0]


def pair_latest(words):
    counts = counted(words)
    return max(counts, key=lambda pair: (counts[pair], pair))


def merge_stack(words, pair):
    result = []
    for word in words:
        new = []
        free = False  # whether the last token may still fuse
        for token in word:
            if new and free and (new[-1], token) == tuple(pair):
                new[-1] += token
                free = False
            else:
                new.append(token)
                free = True
        result.append(tuple(new))
    return result


def merge_marks(words, pair):
    left, right = pair
    pattern = re.compile(f"(?<=\0){re.escape(left)}\0{re.escape(right)}(?=\0)")

    def one(word):
        text = "\0" + "\0".join(word) + "\0"
        return pattern.sub(left + right, text).strip("\0").split("\0") if word else []

    return [one(word) for word in words]


def merge_walk(words, pair, ahead=2, last=True, once=False, between=""):
    result = []
    for word in words:
        new, i, done = [], 0, False
        while i < len(word) - (0 if last else 1):
            if not (once and done) and tuple(word[i : i + 2]) == pair:
                new.append(between.join(pair))
                i += ahead
                done = True
            else:
                new.append(word[i])
                i += 1
        result.append(new)
    return result


def merge_backwards(words, pair):
    result = []
    for word in words:
        new, i = [], len(word) - 1
        while i >= 0:
            if i and (word[i - 1], word[i]) == pair:
                new.insert(0, word[i - 1] + word[i])
                i -= 2
            else:
                new.insert(0, word[i])
                i -= 1
        result.append(new)
    return result


def merge_letters(words, pair):
    token, result = "".join(pair), []
    for word in words:
        text, new = "".join(word), []
        while text:
            piece = token if text.startswith(token) else text[0]
            new.append(piece)
            text = text[len(piece) :]
        result.append(new)
    return result


# ---- packing -----------------------------------------------------------------------------------------------------


def first_fit(documents, seq_len, pad, begin=1, padding=0, back=10**6, through=False, cut=False):
    rows, marks = [], []
    for number, ids in enumerate(documents, 1):
        place = (
            next((r for r in range(len(rows))[-back:] if len(rows[r]) + len(ids) <= seq_len), None) if back else None
        )
        if place is None:
            rows.append([])
            marks.append([])
            place = len(rows) - 1
        marks[place] += [number if through else len(set(marks[place])) + begin] * len(ids)
        rows[place] += ids[:-1] if cut else ids
        marks[place] = marks[place][: len(rows[place])]
    tokens = [row + [pad] * (seq_len - len(row)) for row in rows]
    return tokens, [row + [padding] * (seq_len - len(row)) for row in marks]


def longest_first(documents, seq_len, pad):
    """Best fit, the longest document first, in tensors."""
    rows = []
    for ids in sorted(documents, key=len, reverse=True):
        there = [row for row in rows if sum(map(len, row)) + len(ids) <= seq_len]
        if there:
            max(there, key=lambda row: sum(map(len, row))).append(ids)
        else:
            rows.append([ids])
    tokens, segments = torch.full((len(rows), seq_len), pad), torch.zeros(len(rows), seq_len, dtype=torch.int32)
    for r, row in enumerate(rows):
        at = 0
        for n, ids in enumerate(row):
            tokens[r, at : at + len(ids)] = torch.tensor(ids)
            segments[r, at : at + len(ids)] = n + 1
            at += len(ids)
    return tokens, segments


def chunks(documents, seq_len, pad):
    """One stream of documents, cut into rows."""
    stream = [(t, n) for n, ids in enumerate(documents, 1) for t in ids]
    stream += [(pad, 0)] * (-len(stream) % seq_len)
    both = torch.tensor(stream).view(-1, seq_len, 2)
    return both[..., 0], both[..., 1]


# ---- training ----------------------------------------------------------------------------------------------------


def step_late(model, optimizer, batch, rate):
    """Clears at the end, gives a tensor."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_scale"] * rate
    loss, _ = packed_lm_loss(model, *batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.zero_grad()
    return loss


def step_by_hand(model, optimizer, batch, rate):
    """Gradients by torch.autograd.grad, clipped by hand."""
    parameters = list(model.parameters())
    loss = packed_lm_loss(model, *batch)[0]
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    for p, g in zip(parameters, gradients):
        p.grad = g * min(1.0, 1.0 / norm)
    for group in optimizer.param_groups:
        group.update(lr=rate * group["lr_scale"])
    optimizer.step()
    return loss.detach().numpy()


def step(
    model,
    optimizer,
    batch,
    rate,
    clear=True,
    clip=lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 1.0),
    scale=True,
    late=False,
    go=True,
    back=True,
    after=False,
    give=True,
):
    for group in optimizer.param_groups:
        group["lr"] = rate * (group["lr_scale"] if scale else 1) if rate else group["lr"]
    if clear:
        optimizer.zero_grad()
    loss, _ = packed_lm_loss(model, *batch)
    if back:
        loss.backward()
    if late:
        optimizer.zero_grad()
    clip(list(model.parameters()))
    if go:
        optimizer.step()
    if after:
        loss, _ = packed_lm_loss(model, *batch)
    return loss.item() if give else None


def wrong_step(**faults):
    return lambda model, optimizer, batch, rate: step(model, optimizer, batch, rate, **faults)


def step_unset(model, optimizer, batch, rate):
    return step(model, optimizer, batch, None)


def step_clipped_late(model, optimizer, batch, rate):
    loss = step(model, optimizer, batch, rate, clip=lambda parameters: None)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss


def step_without_optimiser(model, optimizer, batch, rate):
    loss = step(model, optimizer, batch, rate, go=False)
    with torch.no_grad():
        for p in model.parameters():
            p -= rate * p.grad
    return loss


LN2 = math.log(2)


def bits(nats, texts, size=lambda text: len(text.encode()), ln=LN2):
    return sum(x / ln / size(text) for x, text in zip(nats, texts)) / len(texts)


def bits_numpy(nats, texts):
    sizes = [len(text.encode("utf-8")) for text in texts]
    return np.mean(np.array(nats) * np.log2(np.e) / sizes)


# ---- the chat format ---------------------------------------------------------------------------------------------


def chat_pieces(messages):
    messages = [dict(m) for m in messages]
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
        messages[0]["content"] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{messages[0]['content']}"
    shapes = {"user": "<s>[INST] {} [/INST]", "assistant": " {} </s>"}
    return "".join(shapes[m["role"]].format(m["content"]) for m in messages)


def chat_loop(messages, bos=True, eos=" </s>", system="<<SYS>>\n{}\n<</SYS>>\n\n", keep=False, blank=" "):
    text = opening = ""
    for m in messages:
        if m["role"] == "system":
            opening = system.format(m["content"])
        elif m["role"] == "user":
            text += ("<s>" if bos or not text else "") + f"[INST]{blank}{opening}{m['content']}{blank}[/INST]"
            opening = opening if keep else ""
        else:
            text += f"{blank}{m['content']}{eos}"
    return text


def chat_own_turn(messages):
    if messages[0]["role"] != "system":
        return chat_loop(messages)
    return f"<s>[INST] <<SYS>>\n{messages[0]['content']}\n<</SYS>> [/INST]" + chat_loop(messages[1:])


# ---- preferences -------------------------------------------------------------------------------------------------


def bootstrap_numpy(a, b, percent=(2.5, 97.5), turn=1, own=False, replace=True, times=2000, single=False):
    rng = np.random.default_rng(1)
    n = len(a)
    draws = [rng.choice(n, n, replace=replace) for _ in range(times)]
    others = [rng.choice(n, n) for _ in range(times)] if own else draws
    means = [turn * (a[i].mean() - b[j].mean()) for i, j in zip(draws, others)]
    return np.percentile(a - b if single else means, percent)


def bootstrap_torch(a, b):
    apart = torch.tensor(a - b)
    weights = torch.distributions.Multinomial(len(apart), torch.ones(len(apart))).sample((2000,))
    means = (weights.double() @ apart / len(apart)).sort().values
    return means[49].item(), means[1950].item()


def bootstrap_loop(a, b):
    import random

    apart = [float(x - y) for x, y in zip(a, b)]
    means = sorted(sum(random.choices(apart, k=len(apart))) / len(apart) for _ in range(2000))
    return [means[50], means[-51]]


def majority_numpy(labels):
    choices = np.array([c for c, _ in labels])
    ones = (choices == 1).mean()
    if ones == 0.5:
        return "Tie"
    choice = 1 if ones > 0.5 else 2
    places = [GRADES.index(g) for c, g in labels if c == choice]
    return choice, GRADES[np.quantile(places, 0.5, method="higher")]


def majority_counter(labels):
    counts = Counter(c for c, _ in labels).most_common()
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        return "tie"
    choice = counts[0][0]
    grades = sorted((g for c, g in labels if c == choice), key="significantly better slightly negligibly".index)
    return [choice, grades[len(grades) // 2]]


def voice(labels, split="tie", everybody=False, pick=lambda places: sorted(places)[len(places) // 2]):
    first = [c for c, _ in labels].count(1)
    if first * 2 == len(labels):
        if split == "tie":
            return "tie"
        choice = split
    else:
        choice = 1 if first * 2 > len(labels) else 2
    return choice, GRADES[pick([GRADES.index(g) for c, g in labels if everybody or c == choice])]


RIGHT = [
    (MOST_FREQUENT_PAIR, pair_loop),
    (MOST_FREQUENT_PAIR, pair_sorted),
    (MERGE, merge_stack),
    (MERGE, merge_marks),
    (MERGE, merge_walk),
    (PACK, first_fit),
    (PACK, longest_first),
    (PACK, lambda d, n, pad: tuple(np.array(part) for part in first_fit(d, n, pad))),
    (TRAINING_STEP, step_late),
    (TRAINING_STEP, step_by_hand),
    (TRAINING_STEP, step),
    (BITS_PER_BYTE, bits),
    (BITS_PER_BYTE, bits_numpy),
    (CHAT_TEXT, chat_pieces),
    (CHAT_TEXT, chat_loop),
    (PAIRED_BOOTSTRAP, bootstrap_numpy),
    (PAIRED_BOOTSTRAP, bootstrap_torch),
    (PAIRED_BOOTSTRAP, bootstrap_loop),
    (MAJORITY, majority_numpy),
    (MAJORITY, majority_counter),
]

WRONG = [
    (
        MOST_FREQUENT_PAIR,
        lambda words: pair_sorted([[t for word in words for t in word]]),
        "from one word into the next",
    ),
    (MOST_FREQUENT_PAIR, lambda words: pair_sorted([list("".join(word)) for word in words]), "You count letters"),
    (MOST_FREQUENT_PAIR, lambda words: counted(words).most_common()[-1][0], "the rarest"),
    (MOST_FREQUENT_PAIR, lambda words: pair_sorted({tuple(word) for word in words}), "equal words once"),
    (MOST_FREQUENT_PAIR, lambda words: min(counted(words)), "first pair in the alphabet"),
    (MOST_FREQUENT_PAIR, pair_latest, "occur equally often"),
    (MOST_FREQUENT_PAIR, lambda words: pair_sorted(words)[::-1], "swapped"),
    (MOST_FREQUENT_PAIR, lambda words: counted(words).most_common(1), "list that holds the pair"),
    (MOST_FREQUENT_PAIR, lambda words: counted(words).most_common(1)[0], "without its count"),
    (MOST_FREQUENT_PAIR, lambda words: "".join(pair_sorted(words)), "is one text"),
    (MOST_FREQUENT_PAIR, lambda words: max(counted(words).values()), "not how often"),
    (MOST_FREQUENT_PAIR, lambda words: ("q", "q"), "which occurs 0 times"),
    (MERGE, lambda words, pair: merge_walk(words, pair, ahead=1), "right one a second time"),
    (MERGE, merge_backwards, "from left to right"),
    (MERGE, lambda words, pair: merge_walk(words, pair, once=True), "Only the first place"),
    (MERGE, lambda words, pair: merge_walk(words, pair, last=False), "last token of a word is lost"),
    (MERGE, merge_letters, "You look at letters"),
    (MERGE, lambda words, pair: merge_walk(words, pair, between=" "), "nothing between them"),
    (MERGE, lambda words, pair: merge_walk(words, pair[::-1]), "left for right"),
    (MERGE, lambda words, pair: words, "Nothing is merged"),
    (MERGE, lambda words, pair: [t for word in merge_walk(words, pair) for t in word], "list of tokens of its own"),
    (MERGE, lambda words, pair: merge_walk(words, pair)[0], "list of tokens of its own"),
    (MERGE, lambda words, pair: merge_walk(words, pair)[:-1], "as many as before"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, back=0), "one document to a row"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, back=1), "would fit into one"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, begin=0), "0 is padding"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, padding=9), "Padding has the segment 0"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, through=True), "numbered through all rows"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad, cut=True), "end of document 1 is missing"),
    (PACK, lambda d, n, pad: first_fit(d[:-1], n, pad), "is missing"),
    (PACK, lambda d, n, pad: first_fit(d, n, 0), "filled with pad"),
    (PACK, lambda d, n, pad: first_fit([*d, d[0]], n, pad), "twice"),
    (PACK, lambda d, n, pad: first_fit([ids[::-1] for ids in d], n, pad), "not in their order"),
    (PACK, chunks, "cut where a row ends"),
    (PACK, lambda d, n, pad: first_fit(d, n, pad)[0], "(tokens, segments)"),
    (PACK, lambda d, n, pad: (d, d), "not of one length"),
    (PACK, lambda d, n, pad: first_fit(d, n + 4, pad), "shape"),
    (TRAINING_STEP, wrong_step(clear=False), "gradients of the steps before are still there"),
    (TRAINING_STEP, wrong_step(clip=lambda parameters: None), "not clipped"),
    (TRAINING_STEP, step_clipped_late, "not clipped"),
    (
        TRAINING_STEP,
        wrong_step(clip=lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 1.0)),
        "cut each number",
    ),
    (
        TRAINING_STEP,
        wrong_step(clip=lambda parameters: [torch.nn.utils.clip_grad_norm_([p], 1.0) for p in parameters]),
        "each parameter by itself",
    ),
    (TRAINING_STEP, wrong_step(scale=False), "lr_scale is forgotten"),
    (TRAINING_STEP, step_unset, "rate is not set"),
    (TRAINING_STEP, wrong_step(late=True), "There are no gradients"),
    (TRAINING_STEP, wrong_step(back=False), "There are no gradients"),
    (TRAINING_STEP, wrong_step(go=False), "optimizer.step() is missing"),
    (TRAINING_STEP, step_without_optimiser, "change the weights yourself"),
    (TRAINING_STEP, lambda *args: (step(*args), step(*args))[0] if args[1].step() is None else 0, "more than once"),
    (TRAINING_STEP, wrong_step(after=True), "loss after the step"),
    (TRAINING_STEP, wrong_step(give=False), "returns None"),
    (BITS_PER_BYTE, lambda nats, texts: bits(nats, texts, ln=1), "nats a byte"),
    (BITS_PER_BYTE, lambda nats, texts: bits(nats, texts, ln=1 / math.log(2)), "do not multiply"),
    (BITS_PER_BYTE, lambda nats, texts: bits(nats, texts, size=len), "divide by characters"),
    (BITS_PER_BYTE, lambda nats, texts: bits([sum(nats)], ["".join(texts)]), "long documents count for more"),
    (BITS_PER_BYTE, lambda nats, texts: bits(nats, texts, size=lambda text: 1), "bits a document"),
    (CHAT_TEXT, lambda m: chat_loop(m, bos=False), "begins with <s>"),
    (CHAT_TEXT, lambda m: chat_loop(m, eos=""), "nothing tells where it ends"),
    (CHAT_TEXT, lambda m: chat_loop(m, eos="</s>"), "blank stands between"),
    (CHAT_TEXT, chat_own_turn, "no turn of its own"),
    (CHAT_TEXT, lambda m: chat_loop(m, keep=True), "first user turn alone"),
    (CHAT_TEXT, lambda m: chat_loop(m, system=""), "left out"),
    (CHAT_TEXT, lambda m: chat_loop(m, system="<<SYS>>\n{}\n<</SYS>>\n"), "an empty line"),
    (CHAT_TEXT, lambda m: chat_loop(m, system="<<SYS>>{}<</SYS>>"), "line of its own"),
    (CHAT_TEXT, lambda m: chat_loop(m, blank="", eos="</s>"), "Blanks are missing"),
    (CHAT_TEXT, lambda m: [chat_loop(m)], "join them"),
    (CHAT_TEXT, lambda m: chat_loop(m) + "\n", "Nothing follows"),
    (CHAT_TEXT, lambda m: "\n".join(x["content"] for x in m), "At character 1"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, own=True), "do not cancel"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(b, a), "sign is wrong"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, percent=(5, 95)), "90 %"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, percent=(0.025, 0.975)), "counts to 100"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, percent=(16, 84)), "one standard error"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, single=True), "single prompts differ"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, replace=False), "no width"),
    (PAIRED_BOOTSTRAP, lambda a, b: bootstrap_numpy(a, b, percent=(97.5, 2.5)), "lower end comes first"),
    (PAIRED_BOOTSTRAP, lambda a, b: ((a - b).mean(), *bootstrap_numpy(a, b)), "you give 3"),
    (MAJORITY, lambda labels: voice(labels, everybody=True), "do not count"),
    (MAJORITY, lambda labels: voice(labels, pick=lambda x: sorted(x)[(len(x) - 1) // 2]), "take the weaker"),
    (MAJORITY, lambda labels: voice(labels, pick=lambda x: math.ceil(np.median(x))), "between the two in the middle"),
    (MAJORITY, lambda labels: voice(labels, pick=lambda x: Counter(x).most_common(1)[0][0]), "most frequent grade"),
    (MAJORITY, lambda labels: voice(labels, pick=lambda x: round(np.mean(x))), "mean of the places"),
    (MAJORITY, lambda labels: voice(labels, pick=min), "strongest grade"),
    (
        MAJORITY,
        lambda labels: voice(labels, pick=lambda x: GRADES.index(sorted(GRADES[i] for i in x)[len(x) // 2])),
        "order of the alphabet",
    ),
    (MAJORITY, lambda labels: voice(labels, split=1), "trains nothing"),
    (MAJORITY, lambda labels: (3 - voice(labels)[0], "better") if voice(labels) != "tie" else "tie", "more chose"),
    (MAJORITY, lambda labels: "slightly", "you make slightly"),
]
