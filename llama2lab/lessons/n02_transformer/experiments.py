"""A transformer's parts, grouped attention and the length of the context in miniature (Llama 2, sections 2.2 and
A.2.1): what notebook 02 shows, and measures."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from llama2lab.engine import stats
from llama2lab.engine.identity import alone
from llama2lab.engine.optim import Optim
from llama2lab.lab.checking import pieces_of
from llama2lab.lab.finished import Finished
from llama2lab.lab.live import packed_texts
from llama2lab.lessons.n02_transformer.attention import blocks
from llama2lab.lessons.n02_transformer.exercises import GROUPED_ATTENTION, RMS_NORM, ROPE, SWIGLU
from llama2lab.lessons.n02_transformer.sizes import cache_bytes, parameters, variants, with_kv_heads
from llama2lab.model.logprobs import pad_right, token_logprobs
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.stages.pretrain import encode_documents, fit_packed
from llama2lab.town.corpus import heldout_documents, pretraining_corpus
from llama2lab.town.items import Prompt
from llama2lab.town.prompts import every_prompt, make_prompts
from llama2lab.town.truth import truth_of

BATCH = 1024  # tokens a step
OPTIM = Optim(2e-3, warmup=0.2)


# ---- parts of the model ----------------------------------------------------------------------------------------------


def softmax_spread(
    sizes: Sequence[int] = (8, 32, 128), keys: int = 16, draws: int = 400, seed: int = 0
) -> dict[str, dict[int, list[stats.Figure]]]:
    """Attention weights of random queries on random keys, sorted, the largest first: {"divided" | "not divided":
    {head_dim: weight by rank}}."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, dict[int, list[stats.Figure]]] = {"divided": {}, "not divided": {}}
    for size in sizes:
        q = torch.randn(draws, 1, size, generator=generator)
        k = torch.randn(draws, keys, size, generator=generator)
        scores = (q @ k.transpose(1, 2))[:, 0]  # (draws, keys)
        for name, scale in (("divided", size**-0.5), ("not divided", 1.0)):
            ranked = (scores * scale).softmax(-1).sort(-1, descending=True).values
            found[name][size] = [stats.mean(column.tolist()) for column in ranked.T]
    return found


@torch.no_grad()
def logits_with(
    model: Llama,
    ids: Sequence[int],
    rms_norm: Callable[[Tensor, Tensor, float], Tensor],
    rotate_positions: Callable[[Tensor, float], Tensor],
    grouped_attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    swiglu: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Logits (seq, vocab) of a model whose parts are the given functions (those of the exercises): the way through a
    Llama in twenty lines."""
    c = model.config
    seq = len(ids)

    def heads(flat: Tensor) -> Tensor:  # (1, seq, heads * head_dim) -> (1, heads, seq, head_dim)
        return flat.view(1, seq, -1, c.head_size).transpose(1, 2)

    x = model.embed(torch.tensor([list(ids)], device=model.embed.weight.device))  # (1, seq, dim)
    for layer in blocks(model):
        qkv = heads(layer.attention.qkv(rms_norm(x, layer.attention_norm.weight, c.norm_eps)))
        q, k, v = qkv.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], 1)
        mixed = grouped_attention(rotate_positions(q, c.rope_theta), rotate_positions(k, c.rope_theta), v)
        x = x + layer.attention.out(mixed.to(x.dtype).transpose(1, 2).reshape(1, seq, -1))
        normed, ffn = rms_norm(x, layer.ffn_norm.weight, c.norm_eps), layer.ffn
        x = x + swiglu(normed, ffn.gate.weight, ffn.up.weight, ffn.down.weight).to(x.dtype)
    return model.lm_head(rms_norm(x, model.norm.weight, c.norm_eps).to(x.dtype))[0]


def assembled(
    lab: Finished, ids: Sequence[int], stage: str = "rlhf-v5", **pieces: Any
) -> tuple[Tensor, dict[str, str]]:
    """Logits (seq, vocab) of a stage's model with the student's `rms_norm`, `rope`, `grouped_attention` and `swiglu` in
    it; the library's stand in for what is not solved yet. Also says which is whose."""
    parts, owner = pieces_of((RMS_NORM, ROPE, GROUPED_ATTENTION, SWIGLU), pieces)
    return logits_with(lab.model(stage), ids, *parts.values()), owner


@torch.no_grad()
def transformers_logits(lab: Finished, stage: str, ids: Sequence[int]) -> Tensor:
    """Logits (seq, vocab) of transformers' own model, opened from the same checkpoint."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs = AutoModelForCausalLM.from_pretrained(
        lab.stage(stage), dtype=torch.float32, trust_remote_code=False, local_files_only=True
    ).eval()
    return theirs(torch.tensor([list(ids)])).logits[0].to(lab.machine.device)


# ---- claim 1: grouped queries ----------------------------------------------------------------------------------------


def shapes(lab: Finished, **shape: Any) -> dict[str, ModelConfig]:
    """MHA, GQA and MQA of the shape of the run's base model, with parameters as equal as multiples of 8 allow."""
    base = replace(lab.model("base").config, **shape)
    return variants(with_kv_heads(base, base.n_heads, matched=False), max(1, base.n_heads // 2))


def token_losses(lab: Finished, model: Llama, encoded: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Nats of each token of each text from the second token on: every one is predicted from all before it."""
    result = []
    for start in range(0, len(encoded), 16):
        tokens, lengths = pad_right(encoded[start : start + 16], lab.tokenizer.pad_token_id)
        tokens = tokens.to(lab.machine.device)
        with torch.inference_mode(), lab.machine.autocast():
            found = -token_logprobs(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
        result += [row[1:n].float().cpu().numpy() for row, n in zip(found, lengths.tolist(), strict=True)]
    return result


def gaps(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, Any]:
    """a - b, item by item, of trainings with several seeds: the mean with its interval, and each seed's own mean."""
    by_seed = [stats.mean([x - y for x, y in zip(one, other, strict=True)]) for one, other in zip(a, b, strict=True)]
    return {**stats.pool(by_seed), "each": [f["mean"] for f in by_seed]}


def gqa_variants(
    lab: Finished, seeds: Sequence[int] = (0, 1, 2), words: int = 110_000, documents: int = 120, **shape: Any
) -> dict[str, Any]:
    """Claim 1: grouped-query attention keeps the quality.

    Three models that differ only in their KV heads (each head its own, one for two heads, one for all), the
    feed-forward widened so that they are equally large, as in the report (A.2.1); the same text in the same order. Loss
    on held-out documents, and its differences document by document. The settings were changed after a result was seen:
    see docs/trials.md. About 110 seconds on two cores; a stopped training goes on from where it was."""
    data = packed_texts(lab, pretraining_corpus(lab.town, words, 31), 256)
    unseen = [ids[:256] for ids, _ in encode_documents(lab.tokenizer, heldout_documents(lab.town, 31, documents))]
    losses: dict[str, list[list[float]]] = {}
    rows, folders = [], []
    for kind, config in shapes(lab, **shape).items():
        losses[kind], curves = [], []
        begin = time.perf_counter()
        for seed in seeds:
            model = Llama(config, seed).to(lab.machine.device)
            folders.append(lab.work_folder("gqa_variants", gqa_variants, (asdict(config), asdict(OPTIM), words, seed)))
            with alone(folders[-1], wait=False):
                log = fit_packed(model, data, 1.0, BATCH, OPTIM, seed, lab.machine, folders[-1], f"{kind}, seed {seed}")
            losses[kind].append([float(x.mean()) for x in token_losses(lab, model, unseen)])
            curves.append([row["loss"] for row in log])
        by_seed = [stats.mean(one) for one in losses[kind]]
        rows.append(
            {
                "kind": kind,
                "n_kv_heads": config.n_kv_heads,
                "ffn_dim": config.ffn_dim,
                "parameters": parameters(config),
                "cache": cache_bytes(config, 1),
                "loss": {**stats.pool(by_seed), "each": [f["mean"] for f in by_seed]},
                "curve": np.mean(curves, 0).round(4).tolist(),
                "tokens": int(sum(r["tokens"] for r in log)),
                "seconds": (time.perf_counter() - begin) / len(seeds),
            }
        )
    for folder in folders:  # all are done: nothing is left to go on with
        shutil.rmtree(folder, ignore_errors=True)
    apart = {kind: gaps(losses[kind], losses["MHA"]) for kind in ("GQA", "MQA")}
    return {"rows": rows, "seeds": list(seeds), "batch": BATCH, "gaps": apart}


@torch.inference_mode()
def decode_speed(
    lab: Finished,
    batches: Sequence[int] = (1, 16, 64),
    contexts: Sequence[int] = (128, 1024),
    repeats: int = 15,
    **shape: Any,
) -> list[dict[str, Any]]:
    """Milliseconds to write one more token of each sequence, with a full cache of `context` tokens before it, in
    float32; new tokens a second; and how many times as many as MHA. The variants take turns, and each is held against
    the MHA of its own turn, so that other work on the machine meets them alike. On one core: two that wait for each
    other would measure the other work. About 5 seconds; the weights are random, which the time does not know."""
    models = {
        kind: Llama(config).to(lab.machine.device).eval()
        for kind, config in shapes(lab, max_seq_len=max(contexts) + 1, **shape).items()
    }
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for context, batch in itertools.product(contexts, batches):
            times = turns(models, context, batch, repeats)
            for kind, ms in times.items():
                speed = {
                    "ms": middle(ms),
                    "tokens_per_second": middle([1000 * batch / one for one in ms]),
                    "gain": middle([own / one for own, one in zip(times["MHA"], ms, strict=True)]),
                    "cache": cache_bytes(models[kind].config, context + 1, batch, 4),
                }
                rows.append({"kind": kind, "context": context, "batch": batch, **speed})
    finally:
        torch.set_num_threads(threads)
    return rows


def turns(models: Mapping[str, Llama], context: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of one new token for each of `batch` sequences, turn by turn, after one turn to warm up."""
    device = next(iter(models.values())).embed.weight.device
    caches = {kind: model.new_cache(batch, context + 1) for kind, model in models.items()}
    for cache in caches.values():  # memory that was never written is not really there
        cache.keys.fill_(0.1)
        cache.values.fill_(0.1)
    token = torch.ones((batch, 1), dtype=torch.long, device=device)
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(repeats + 1):
        for kind, model in models.items():
            caches[kind].length = context
            begin = time.perf_counter()
            model(token, cache=caches[kind])[0, 0, 0].item()
            times[kind].append(1000 * (time.perf_counter() - begin))
    return {kind: ms[1:] for kind, ms in times.items()}


def middle(values: Sequence[float]) -> stats.Figure:
    """The median, with the interval of the sign test: it asks nothing of how the values spread, so that the few that
    other work made slow count for little."""
    x = np.sort(np.asarray(values, dtype=float))
    at = max(0, int(binom.ppf(0.025, len(x), 0.5)) - 1)
    return {"mean": float(np.median(x)), "low": float(x[at]), "high": float(x[len(x) - 1 - at]), "n": len(x)}


# ---- claim 2: the context --------------------------------------------------------------------------------------------


def context_length(lab: Finished, full: int = 256, documents: int = 80, seed: int = 41) -> dict[str, Any]:
    """Claim 2, its first half: twice the context helps with long texts.

    The base model reads held-out documents whole, or as a model with half the context must: in two pieces, the second
    without the first. Loss by the place of the token. One model, its context cut: two that were trained at two lengths
    would differ by more than the context. About 5 seconds on two cores."""
    model, tokenizer = lab.model("base"), lab.tokenizer
    texts = [text for text in heldout_documents(lab.town, seed, 40 * documents) if text.count(" ") >= full // 2]
    long = [ids[:full] for ids, _ in encode_documents(tokenizer, texts) if len(ids) >= full][:documents]
    whole = token_losses(lab, model, long)
    first, second = (
        token_losses(lab, model, [ids[part] for ids in long]) for part in (slice(full // 2), slice(full // 2, full))
    )
    # The first token of a piece is predicted from nothing: no loss is counted there, whole or not.
    kinds = {
        f"context of {full // 2} tokens": [
            np.concatenate([a, [np.nan], b]) for a, b in zip(first, second, strict=True)
        ],
        f"context of {full} tokens": [np.concatenate([x[: full // 2 - 1], [np.nan], x[full // 2 :]]) for x in whole],
    }
    by_place: dict[str, dict[str, stats.Figure]] = {name: {} for name in kinds}
    for name, losses in kinds.items():
        for a in range(0, full, full // 16):
            part = [float(np.nanmean(x[a : a + full // 16])) for x in losses]
            by_place[name][str(a + full // 32)] = stats.mean(part)
    half, all_of_it = ([float(np.nanmean(x[full // 2 :])) for x in losses] for losses in kinds.values())
    claims = {f"loss from token {full // 2} on, half the context less all of it": gaps([half], [all_of_it])}
    return {"by_place": by_place, "documents": len(long), "full": full, "claims": claims}


def facts_after_talk(
    lab: Finished,
    stage: str = "rlhf-v5",
    windows: Sequence[int] = (3, 6),
    turns: Sequence[int] = (0, 1, 2, 3, 4, 6, 8),
    prompts: int = 80,
) -> dict[str, Any]:
    """Claim 2, its second half: in a long chat a longer context keeps what was said.

    Somebody is named in the first turn, some turns on other matters follow, then "And where does she live?". The
    finished chat model sees the last 3 turns, the last 6, or all of them; the share of right answers by the number of
    turns between. The window is cut when answering: no model was trained for half the context. The claim is about those
    numbers at which only the longer window still holds the name. Greedy; about 6 seconds on two cores."""
    town, rng = lab.town, random.Random("facts after talk")
    asked = make_prompts(town, "test", prompts, 41, skills=("follow_up",))
    others = every_prompt(town, "test", ("opposites", "arithmetic", "small_talk"))

    def answered(p: Prompt) -> list[dict[str, str]]:
        return [*p.messages, {"role": "assistant", "content": truth_of(town, p.content).answers[0]}]

    talk = [[m for p in rng.sample(others, max(turns)) for m in answered(p)] for _ in asked]
    names = {f"last {n} turns": n for n in windows} | {"all turns": max(turns) + 2}
    right: dict[tuple[int, int], list[bool]] = {}  # by turns between and turns seen
    series: dict[str, dict[str, stats.Figure]] = {name: {} for name in names}
    for between in turns:
        for name, window in names.items():
            seen = min(window, between + 2)  # turns there are: the one with the name, those between, the question
            if (between, seen) not in right:
                chats = [
                    [*p.messages[:-1], *some[: 2 * between], p.messages[-1]][-(2 * seen - 1) :]
                    for p, some in zip(asked, talk, strict=True)
                ]
                what = f"{between} turns between, {seen} seen"
                answers = lab.sample_answers(stage, chats, temperature=0.0, what=what)
                right[between, seen] = [lab.oracle.judge(p, a[0]).correct for p, a in zip(asked, answers, strict=True)]
            series[name][str(between)] = stats.rate(right[between, seen])
    short, long = min(windows), max(windows)
    apart = [b for b in turns if short < b + 2 <= long]
    more, fewer = (
        [float(np.mean(x)) for x in zip(*(right[b, min(n, b + 2)] for b in apart), strict=True)] for n in (long, short)
    )
    words = f"right answers after {min(apart)} to {max(apart)} turns, {long} turns seen less {short}"
    example = [*asked[0].messages[:-1], *talk[0][:4], asked[0].messages[-1]]
    return {"by_turns": series, "example": example, "claims": {words: gaps([more], [fewer])}}


EXPERIMENTS = (gqa_variants, context_length, facts_after_talk)
