"""Batched sampling with a KV cache: the hot loop of rejection sampling and PPO."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2lab.engine import distributed, sharded
from llama2lab.engine.device import device_memory_gb, on_device, pick_precision
from llama2lab.engine.errors import LabError
from llama2lab.engine.parallel import batches_of, in_parallel, is_large, sharing_products, workers
from llama2lab.engine.validation import shown
from llama2lab.model.attention import KVCache, left_padding_mask, product
from llama2lab.model.network import Llama, no_row

DROP_AT = 0.25  # share of finished rows at which copying the cache, with others in their places, pays
CHUNK = 32  # tokens by which the cache grows
PAIRS = 2**23  # the most that rows * longest**2 may be while a batch of prompts is read: its mask and scores grow so
CACHE = 2**29  # bytes that the keys and values of a batch may take; on a GPU both are larger, see `larger`
LOOK_EVERY = 16  # tokens after which a GPU is asked which rows are done: it has to end what it does to say so
DEALT = 32  # rows that go to one worker together
TURNS_AT_ONCE = 64  # rows that read turn by turn: their mask and scores span all they have read
BF16_FROM = 32  # rows in a batch: below, the products are too small for bfloat16 to gain anything
COLDEST = 1e-4  # the lowest temperature but 0: far below, logits / temperature overflow float32


@dataclass
class Generation:
    """A sampled answer. `tokens` end with eos if `finished`; `logprobs` (in nats, one for each token) are those of the
    distribution that the token was drawn from: at that temperature and after top-k and top-p; 0 for greedy answers."""

    tokens: list[int]
    finished: bool
    logprobs: list[float]


@dataclass
class Reading:
    """What some rows of a dialogue have read, to go on from there: keys and values, which of their columns each row
    may look at (rows, columns), the tokens that these are, and which prompts the rows are."""

    cache: KVCache
    seen: Tensor
    tokens: list[list[int]]
    rows: list[int]


def generate(
    model: Llama,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    eos_id: int = 2,
    pad_id: int = 3,
    seed: int = 0,
    batch_size: int = 256,
    precision: str = "auto",
    progress: Callable[[int], object] | None = None,
    readings: list[Reading] | None = None,
) -> list[Generation]:
    """Continue each prompt by up to `max_new_tokens` tokens, or to eos_id. Results are in the order of the prompts.

    temperature 0 is greedy; precision "auto" is bf16 where the machine is fast at it and the batch not small. A
    row's random numbers come from (seed, its index) alone: other rows, batch_size and finished neighbours change
    nothing but the rounding of sums. `progress` is told of every few finished rows. `readings`, an empty list at first,
    is filled with what was read: given again with as many prompts, each begins with what it shares with the last one
    of its row, turn by turn of a dialogue, and reads the rest alone. Where several processes run, each continues its
    share of the prompts, and all get every result.
    Raises LabError for an empty prompt, a token that the model does not have, impossible settings, prompt and answer
    that exceed the context, and a model whose probabilities are no numbers.
    """
    check_sampling(temperature, top_p, top_k)
    model = undivided(model)
    for name, n in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if not isinstance(n, Integral) or n < 1:
            raise LabError(f"generate: {name} {shown(n)}; it is a whole number from 1")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise LabError(f"generate: prompt {i} is empty; begin with <s>")
        if not 0 <= min(prompt) <= max(prompt) < len(model.embed.weight):
            odd = min(prompt) if min(prompt) < 0 else max(prompt)
            raise LabError(f"generate: prompt {i}: {no_row(odd, len(model.embed.weight))}")
        if len(prompt) + max_new_tokens > model.config.context:
            raise LabError(
                f"generate: prompt {i} has {len(prompt)} tokens, with {max_new_tokens} new ones more than "
                f"the context of {model.config.context}; shorten it or lower max_new_tokens"
            )
    device = model.embed.weight.device
    head = model.lm_head.weight.detach().float()  # scores stay float32: bf16 would round log-probabilities to 1 %
    if precision_for(min(batch_size, len(prompts)), device, precision) == "bf16":
        model = in_bf16(model)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
    results: dict[int, Generation] = {}

    def write(at: tuple[Sequence[int], Reading | None]) -> None:
        rows, reading = at
        with torch.inference_mode():
            texts = [prompts[i] for i in rows]
            written = _write(
                model,
                head,
                texts,
                on_device(_uniforms(rows, seed, max_new_tokens), device),
                lambda longest: _most_rows(model, longest + max_new_tokens, longest, batch_size),
                lambda logits, uniform: sample(logits, uniform, temperature, top_p, top_k),
                eos_id,
                pad_id,
                progress,
                None if reading is None else _read_on(model, reading, texts, pad_id),
            )
        for i, generation in zip(rows, written, strict=True):
            results[i] = generation

    together = is_large(model.parameters())
    if readings is None:
        mine = distributed.shared(order)
        dealt = [mine] if together and mine else _hands(mine, device)
        hands: list[tuple[Sequence[int], Reading | None]] = [(hand, None) for hand in dealt]
    else:
        if not readings:
            turns = batches_of(distributed.shared(order), min(batch_size, TURNS_AT_ONCE), device)
            readings += [_nothing_read(model, rows) for rows in turns]
        hands = [(reading.rows, reading) for reading in readings]
        read = [i for rows in distributed.gathered([i for rows, _ in hands for i in rows]) for i in rows]
        if sorted(read) != list(range(len(prompts))):
            raise LabError(
                f"generate: {len(prompts)} prompts do not go on from readings of "
                f"{len(read)}; give as many in the same order, or an empty list"
            )
    if together:
        with sharing_products(device):
            for hand in hands:
                write(hand)
    else:
        in_parallel(write, hands, device)
    results = distributed.merged(results)
    generations = [results[i] for i in range(len(prompts))]
    for i, generation in enumerate(generations):
        if not all(map(math.isfinite, generation.logprobs)):
            raise LabError(
                f"generate: the probabilities of answer {i} are no numbers; the model's weights are "
                "damaged: train or load it again"
            )
    return generations


def _hands(order: Sequence[int], device: torch.device) -> list[list[int]]:
    """The rows dealt out to the workers, DEALT at a time: of alike lengths, and answers to one prompt together."""
    n = min(workers(device), len(order))
    size = min(DEALT, math.ceil(len(order) / max(1, n)))
    return [[i for at in range(w * size, len(order), n * size) for i in order[at : at + size]] for w in range(n)]


def _most_rows(model: Llama, longest: int, prompt: int, batch_size: int) -> int:
    """How many rows a machine holds at once, whose prompts have `prompt` tokens and which grow to `longest`."""
    more = larger(model.embed.weight.device)
    return max(1, min(batch_size, more * PAIRS // prompt**2, more * CACHE // (cache_bytes(model) * longest)))


def larger(device: torch.device) -> int:
    """How many times CACHE and PAIRS there is room for: a sixteenth of a GPU's memory for each. Of all of it, not of
    what is free: the same machine then always computes the same batches."""
    return max(1, int(device_memory_gb(device) * 1e9 / 16 / CACHE))


def look_every(device: torch.device) -> int:
    """After how many tokens to look which rows are done."""
    return 1 if device.type == "cpu" else LOOK_EVERY


def precision_for(rows: int, device: torch.device, precision: str = "auto") -> str:
    """What `generate` computes a batch of so many rows in: fp32 or bf16. LabError for an unknown name."""
    return "fp32" if precision == "auto" and rows < BF16_FROM else pick_precision(device, precision)


def check_sampling(temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
    """LabError for a temperature that is not 0 or from `COLDEST`, top_p outside of (0, 1], top_k that is no whole
    number from 0."""
    whole = isinstance(top_k, Integral) and top_k >= 0
    if not ((temperature == 0 or COLDEST <= temperature < math.inf) and 0 < top_p <= 1 and whole):
        raise LabError(
            f"generate: temperature {shown(temperature)}, top_p {shown(top_p)}, top_k {shown(top_k)}; "
            f"allowed are 0 (greedy) or at least {COLDEST:g}, (0, 1], a whole number from 0 (off)"
        )


def cache_bytes(model: Llama) -> int:
    """What the keys and values of one token take."""
    c = model.config
    return 2 * c.n_layers * c.n_kv_heads * c.head_size * model.embed.weight.element_size()


def in_bf16(model: Llama) -> Llama:
    """A copy in bfloat16, without one in float32 on the way."""
    return _copied(model, lambda weight: weight.to(torch.bfloat16))


def undivided(model: Llama) -> Llama:
    """Of a model that is divided over the ranks a copy that each has all of, to sample and score with between the steps
    of its training; they make it together (sharded.py). Any other as it is."""
    return _copied(model, sharded.whole) if sharded.is_divided(model.embed.weight) else model


def _copied(model: Llama, change: Callable[[Tensor], Tensor]) -> Llama:
    with torch.device("meta"):
        copied = Llama(model.config)
    copied.load_state_dict({name: change(weight) for name, weight in model.state_dict().items()}, assign=True)
    if model.config.tie_embeddings:
        copied.lm_head.weight = copied.embed.weight
    return copied.train(model.training).requires_grad_(False)


def _uniforms(rows: Sequence[int], seed: int, n: int) -> Tensor:
    """n uniform numbers for each row, (rows, n), from (seed, row) alone."""
    generator = torch.Generator()
    draws = [torch.rand(n, generator=generator.manual_seed((seed * 1_000_003 + row) % 2**63)) for row in rows]
    return torch.stack(draws)


@dataclass
class _Read:
    """Prompts that were read: the state after the last token of each, (rows, dim); their keys and values; which columns
    of these a row may look at, (rows, columns); and the position of the next token, (rows,)."""

    hidden: Tensor
    cache: KVCache
    seen: Tensor
    position: Tensor


def _read(model: Llama, prompts: list[list[int]], pad_id: int) -> _Read:
    """Read prompts from their beginning; equal ones once, so that K answers read their prompt together."""
    device = model.embed.weight.device
    read = {p: i for i, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
    whose = torch.tensor([read[tuple(p)] for p in prompts], device=device)  # (rows,)
    tokens, real, mask = _padded(list(read), pad_id, device)  # (read, longest)
    cache = model.new_cache(len(read), tokens.shape[1])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    hidden, position = model.hidden(tokens, positions, mask, cache)[:, -1], real.sum(1)
    if len(read) < len(prompts):
        cache.keep_rows(whose)
        hidden, real, position = hidden[whose], real[whose], position[whose]
    return _Read(hidden, cache, real, position)


def _read_on(model: Llama, reading: Reading, prompts: list[list[int]], pad_id: int) -> _Read:
    """Read what the prompts do not share with what was read before, and keep all of it in `reading`. Tokens that a row
    no longer shares keep their columns, unseen."""
    device = model.embed.weight.device
    shared = [_shared(old, new[:-1]) for old, new in zip(reading.tokens, prompts, strict=True)]
    tokens, real, mask = _padded([p[n:] for p, n in zip(prompts, shared, strict=True)], pad_id, device)
    known = torch.tensor(shared, device=device)  # (rows,)
    before = reading.seen & (reading.seen.cumsum(1) <= known[:, None])
    positions = (known[:, None] + real.cumsum(1) - 1).clamp(min=0)
    longest = tokens.shape[1]
    mask = torch.cat([before[:, None, None, :].expand(-1, -1, longest, -1), mask], -1)  # (rows, 1, longest, columns)
    cache = reading.cache
    cache.grow(longest)
    hidden = model.hidden(tokens, positions, mask, cache)[:, -1]
    reading.seen, reading.tokens = torch.cat([before, real], 1), [list(p) for p in prompts]
    return _Read(hidden, copy.copy(cache), reading.seen, known + real.sum(1))


def _nothing_read(model: Llama, rows: Sequence[int]) -> Reading:
    empty = torch.zeros(len(rows), 0, dtype=torch.bool, device=model.embed.weight.device)
    return Reading(model.new_cache(len(rows), 0), empty, [[] for _ in rows], list(rows))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Padded on the left: tokens, which are real, both (rows, longest), and their mask (rows, 1, longest, longest)."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    padding = torch.tensor([longest - len(row) for row in rows], device=device)
    real = torch.arange(longest, device=device) >= padding[:, None]
    return tokens, real, left_padding_mask(padding, longest, longest)


@dataclass
class _Batch:
    """Rows that write together: their keys and values; which columns of these each may look at, (rows, columns); and of
    each row, (rows,), the position of its next token, the prompt it goes on from, how many tokens it has written, the
    last of them, and whether it is done."""

    cache: KVCache
    seen: Tensor
    position: Tensor
    prompt: Tensor
    step: Tensor
    token: Tensor
    done: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows. rows (n,) are indices."""
        self.cache.keep_rows(rows)
        for name in ("seen", "position", "prompt", "step", "token", "done"):
            setattr(self, name, getattr(self, name)[rows])

    def grow(self, n: int) -> None:
        """Room for n more columns, which nobody may look at yet."""
        self.cache.grow(n)
        self.seen = F.pad(self.seen, (0, n))

    def join(self, other: _Batch) -> None:
        """Take in the rows of another batch. Both end at the same column; columns at the beginning that no row looks at
        any more are left out."""
        first = int(self.seen.any(0).int().argmax())
        widths = self.cache.length - first, other.cache.length
        length = max(widths)
        pairs = ((self.cache, self.seen, first, widths[0]), (other.cache, other.seen, 0, widths[1]))
        keys, values, seen = (
            torch.cat([F.pad(t, pad) for t, pad in parts], dim)
            for dim, parts in (
                (1, [(c.keys[:, :, :, f : c.length], (0, 0, length - w, 0)) for c, _, f, w in pairs]),
                (1, [(c.values[:, :, :, f : c.length], (0, 0, length - w, 0)) for c, _, f, w in pairs]),
                (0, [(s[:, f : c.length], (length - w, 0)) for c, s, f, w in pairs]),
            )
        )
        self.cache.keys, self.cache.values, self.cache.length, self.seen = keys, values, length, seen
        for name in ("position", "prompt", "step", "token", "done"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def _room(prompts: Sequence[list[int]], rows: int, most_rows: Callable[[int], int]) -> int:
    """How many of the next prompts have room beside so many rows."""
    n = min(len(prompts), most_rows(len(prompts[0])) - rows) if prompts else 0
    while n > 0 and rows + n > most_rows(len(prompts[n - 1])):
        n -= 1
    return max(0, n)


def _write(
    model: Llama,
    head: Tensor,
    prompts: list[list[int]],
    uniforms: Tensor,
    most_rows: Callable[[int], int],
    draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    eos_id: int,
    pad_id: int,
    progress: Callable[[int], object] | None,
    read: _Read | None = None,
) -> list[Generation]:
    """Answers to prompts, of which each is no longer than the next: as many at once as `most_rows` allows for their
    length, and where a quarter of them is done the next ones take their places. `read`: they were all read already."""
    n, longest_answer = uniforms.shape
    chosen, logprobs = torch.full((n, longest_answer), pad_id, device=head.device), torch.zeros_like(uniforms)

    def write_down(batch: _Batch, hidden: Tensor) -> None:
        """Draw and keep the next token of each row that is not done. hidden (rows, dim)."""
        step = batch.step.clamp(max=longest_answer - 1)
        batch.token, logprob = draw(product(hidden.float(), head), uniforms[batch.prompt, step])
        at = (batch.prompt, step)
        chosen[at] = torch.where(batch.done, chosen[at], batch.token)
        logprobs[at] = torch.where(batch.done, logprobs[at], logprob)
        batch.step = batch.step + 1
        batch.done = batch.done | (batch.token == eos_id) | (batch.step >= longest_answer)

    def begun(read: _Read, first: int) -> _Batch:
        rows = torch.arange(first, first + len(read.hidden), device=head.device)
        nothing = torch.zeros_like(rows)
        batch = _Batch(read.cache, read.seen, read.position, rows, nothing, nothing, nothing.bool())
        write_down(batch, read.hidden)
        return batch

    batch = None if read is None else begun(read, 0)
    after = 0 if read is None else n  # the first prompt that was not read yet
    left, unseen = longest_answer - 1, 1  # tokens until all rows are done at the latest, and since they were looked at
    while batch is not None or after < n:
        if batch is not None and (unseen >= look_every(head.device) or left <= 0):
            unseen = 0
            n_done, rows = int(batch.done.sum()), len(batch.done)
            if n_done == rows or n_done >= DROP_AT * rows:
                if progress:
                    progress(n_done)
                if n_done == rows:
                    batch = None
                else:
                    batch.keep((~batch.done).nonzero()[:, 0])
        rows = 0 if batch is None else len(batch.done)
        room = _room(prompts[after:], rows, most_rows)
        if room and (batch is None or room >= DROP_AT * rows or room == n - after):
            fresh = begun(_read(model, prompts[after : after + room], pad_id), after)
            after += room
            left, unseen = longest_answer - 1, unseen + 1
            if batch is None:
                batch = fresh
            else:
                batch.join(fresh)
            continue
        if batch is None:
            break
        if batch.cache.length == batch.cache.max_len:
            # The whole cache is looked at, with what is still empty masked: a slice of it would be copied at each
            # product, which costs more than the few needless columns.
            batch.grow(min(CHUNK, longest_answer))
        batch.seen[:, batch.cache.length] = True
        mask = batch.seen[:, None, None, :]  # (rows, 1, 1, columns)
        hidden = model.hidden(batch.token[:, None], batch.position[:, None], mask, batch.cache)[:, -1]  # (rows, dim)
        batch.position = batch.position + ~batch.done  # else a row that is done might leave the context
        write_down(batch, hidden)
        left, unseen = left - 1, unseen + 1
    generations = []
    for written, logprob_row in zip(chosen.tolist(), logprobs.tolist(), strict=True):
        finished = eos_id in written
        length = written.index(eos_id) + 1 if finished else longest_answer
        generations.append(Generation(written[:length], finished, logprob_row[:length]))
    return generations


def sample(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """One token for each row, and its log-probability under the distribution it was drawn from: (rows,), (rows,).

    logits (rows, vocab), uniform (rows,) in [0, 1). The token is where the cumulated probabilities pass the uniform
    number: one random number a row, where a race of all tokens would need vocab. top_k keeps the k likeliest
    tokens, top_p (arXiv 1904.09751) the smallest set of likeliest tokens that holds so much probability. Temperature 0
    takes the likeliest token, whose log-probability then is 0. LabError as `check_sampling`.
    """
    check_sampling(temperature, top_p, top_k)
    if temperature == 0:
        token = logits.argmax(-1)
        return token, 0.0 * logits.gather(1, token[:, None])[:, 0]  # NaN where the logits are
    scaled = logits / temperature if temperature != 1 else logits
    scaled = scaled - scaled.amax(-1, keepdim=True)  # the likeliest token at 0, so that exp() cannot overflow
    weights, ids = cut(scaled.exp(), top_p, top_k)
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]  # softmax divides by it; here it is enough to multiply the random number
    # Never the full sum: rounding must not reach past the last token.
    target = uniform.clamp(max=1 - 1e-6)[:, None] * total
    index = torch.searchsorted(cumulated, target, right=True).clamp(max=weights.shape[1] - 1)  # (rows, 1)
    token = index if ids is None else ids.gather(1, index)
    return token[:, 0], (scaled.gather(1, token) - total.log())[:, 0]


def cut(probs: Tensor, top_p: float = 1.0, top_k: int = 0) -> tuple[Tensor, Tensor | None]:
    """What top-k and then top-p leave of probabilities (rows, vocab), whatever their sum: (rows, kept), 0 where cut and
    not scaled to that sum again; and the token ids of its columns, None where they are as they were."""
    if not top_k and top_p >= 1:
        return probs, None
    k = min(top_k or probs.shape[1], probs.shape[1])
    probs, ids = probs.topk(k) if k < probs.shape[1] else probs.sort(descending=True)
    before = probs.cumsum(-1) - probs  # what the likelier tokens hold of those kept by top_k
    return probs * (before < top_p * probs.sum(-1, keepdim=True)), ids
