"""What a run from a checkpoint will take of the machine's memory, by the library's own counts, said before it is taken.

Of a model that is trained there are weights, gradients and Adam's two moments, all in float32; of one that is only
asked, weights. A large model's batch is worked on a few rows a worker at a time (engine/parallel.py), each with
gradients of its own; on a GPU it is one part. The numbers that a token leaves behind for its gradient are counted from
the functions of fused.py and attention.py.
"""

from __future__ import annotations

import math
from typing import Any

from llama2lab.engine.device import Machine, memory_bytes
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import TRAINED_BYTES
from llama2lab.engine.parallel import LARGE, LARGE_ROWS, workers
from llama2lab.model.checkpoint import count_parameters
from llama2lab.model.generate import CACHE
from llama2lab.model.lower import KEPT_BYTES
from llama2lab.model.network import ModelConfig

FLOAT = 4  # bytes


def kept_numbers(config: ModelConfig, seq: int) -> int:
    """Numbers that a token of a row of `seq` leaves behind until its gradient is computed."""
    c = config
    norms, heads = 4 * c.dim, (c.n_heads + 2 * c.n_kv_heads) * c.head_size
    attention = heads + c.n_heads * seq + c.n_heads * c.head_size  # q, k, v; weights; the mix
    return c.n_layers * (norms + attention + 4 * c.ffn_dim) + 2 * c.dim + c.vocab_size


def stage_bytes(
    config: ModelConfig,
    machine: Machine,
    trained: int,
    frozen: int,
    seq: int,
    rows: int,
    trained_share: float = 1.0,
    texts: int = 1,
) -> int:
    """The most that a stage takes with so many trained and frozen models of this shape, `rows` rows in a batch, each of
    `texts` texts of `seq` tokens (a pair is two). `trained_share`: the part of a model's parameters that is trained."""
    parameters = count_parameters(config)
    parts = workers(machine.device)
    at_once = min(rows, parts * LARGE_ROWS) if parameters >= LARGE and machine.device.type == "cpu" else rows
    each = 1 + (TRAINED_BYTES // FLOAT - 1) * trained_share  # in units of its weights
    models = trained * each + frozen + (trained_share * parts if parts > 1 else 0)
    number = FLOAT // 2 if machine.precision == "bf16" else FLOAT
    return round(models * parameters * FLOAT) + at_once * texts * seq * kept_numbers(config, seq) * number


def planned(recipe: Any, config: ModelConfig, machine: Machine, trained_share: float = 1.0) -> dict[str, int]:
    """Bytes of each training stage of a recipe on real text that starts from a model of this shape. The likelihood head
    has a second, frozen model."""
    data, sft, ppo = recipe.data, recipe.sft, recipe.ppo
    longest = min(config.context, max(data.helpful.max_tokens, data.harmless.max_tokens))
    second = 1 if recipe.helpfulness.head == "likelihood" else 0
    answered = min(config.context, recipe.prompt_tokens + ppo.max_new_tokens)

    kept = KEPT_BYTES if trained_share < 1 else 0  # what the lower layers made of texts

    def stage(trained: int, frozen: int, seq: int, rows: int, texts: int = 1) -> int:
        return kept + stage_bytes(config, machine, trained, frozen, seq, rows, trained_share, texts)

    return {
        "sft": stage(1, 0, min(sft.seq_len, config.context), math.ceil(sft.batch_tokens / sft.seq_len)),
        "reward models": stage(1, second, longest, recipe.helpfulness.batch_pairs, texts=2),
        # Policy and critic; the policy's beginning and two reward models, with what they share; the cache of answers.
        "ppo": stage(2, 3 + second, answered, ppo.minibatch) + CACHE,
    }


def check_fits(recipe: Any, config: ModelConfig, machine: Machine, trained_share: float = 1.0) -> str:
    """One line that says what the run's largest stage will take. LabError where the device has less."""
    sizes = planned(recipe, config, machine, trained_share)
    stage = max(sizes, key=sizes.__getitem__)
    there = memory_bytes(machine.device)
    takes = f"{stage} will take about {sizes[stage] / 1e9:.1f} GB"
    if there and sizes[stage] > there:
        raise LabError(
            f"{takes}, {machine.device} has {there / 1e9:.1f}; start from a smaller checkpoint, or lower "
            + {
                "sft": "sft.seq_len",
                "reward models": "the max_tokens of helpful and harmless",
                "ppo": "prompt_tokens and ppo.minibatch",
            }[stage]
        )
    return f"{takes} of {there / 1e9:.1f}" if there else takes
