"""The cache calculator: its sizes are those of real models and real caches."""

import pytest
import torch

from llama2lab.lessons.n02_transformer.sizes import (
    GIB,
    cache_bytes,
    largest_batch,
    out_of_memory,
    parameter_rows,
    parameters,
    size_in_words,
    variants,
    with_kv_heads,
)
from llama2lab.lessons.n02_transformer.widget_calculator import CacheCalculator
from llama2lab.model.attention import KVCache
from llama2lab.model.network import SIZES, Llama


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_model(size):
    with torch.device("meta"):
        real = sum(p.numel() for p in Llama(SIZES[size]).parameters())
    assert parameters(SIZES[size]) == real == sum(row[3] for row in parameter_rows(SIZES[size]))


def test_published_sizes():
    assert [parameters(SIZES[s]) for s in ("7b", "13b", "70b")] == [6738415616, 13015864320, 68976648192]


def test_the_cache_is_as_large_as_the_librarys():
    for kind in variants(SIZES["mini"], 2).values():
        cache = KVCache(kind.n_layers, kind.n_kv_heads, kind.head_size, 3, 50, torch.bfloat16)
        assert cache_bytes(kind, 50, 3) == cache.keys.nbytes + cache.values.nbytes


def test_matched_parameters():
    for size in ("mini", "34b", "70b"):
        own = with_kv_heads(SIZES[size], SIZES[size].n_heads)
        for config in variants(SIZES[size], 2).values():
            assert parameters(config) == pytest.approx(parameters(own), rel=0.005)
    assert with_kv_heads(SIZES["mini"], 1, matched=False).ffn_dim == SIZES["mini"].ffn_dim
    own = with_kv_heads(SIZES["34b"], 64)  # the report widened by 1.3 for GQA and 1.33 for MQA
    assert with_kv_heads(own, 8).ffn_dim / own.ffn_dim == pytest.approx(1.3, abs=0.03)
    assert with_kv_heads(own, 1).ffn_dim / own.ffn_dim == pytest.approx(1.33, abs=0.03)


def test_the_largest_batch_is_the_largest():
    config = SIZES["70b"]
    assert largest_batch(config, 4096) == 0  # in 16 bit the weights alone are more than 80 GiB
    n = largest_batch(config, 4096, gpus=8)
    weights = 2 * parameters(config)
    assert (
        weights + cache_bytes(config, 4096, n, gpus=8) <= 640 * GIB < weights + cache_bytes(config, 4096, n + 1, gpus=8)
    )


def test_on_eight_gpus_one_kv_head_is_copied():
    both = variants(SIZES["34b"], 8)
    assert cache_bytes(both["MQA"], 10, gpus=8) == cache_bytes(both["GQA"], 10, gpus=8)
    assert cache_bytes(both["MQA"], 10) * 8 == cache_bytes(both["GQA"], 10)
    first = [row for row in out_of_memory() if row["context"] == 256]
    assert [row["share"] > 0.99 for row in first] == [True, False, False]  # MHA leaves nothing for activations


def test_words_of_sizes():
    assert size_in_words(512) == "512 bytes" and size_in_words(1536) == "1.5 KiB" and "GiB" in size_in_words(3e12)


def test_the_picture_follows_the_controls():
    widget = CacheCalculator()
    seen = {widget.static()}
    assert widget.static().count("<rect") == 4
    for control, value in (
        (widget.context, 256),
        (widget.batch, 1024),
        (widget.bytes, 1),
        (widget.gpus, 1),
        (widget.memory, 24.0),
        (widget.matched, False),
        (widget.kv, 16),
        (widget.size, "7b"),
    ):
        control.value = value
        assert widget.static() not in seen, control.description
        seen.add(widget.static())
    assert widget.kv.value == 32 and max(widget.kv.options) == 32  # the 7B has no groups
    widget.size.value = "mini"
    assert widget.kv.value == 2 and "Error" not in widget.static()
    widget.gpus.value, widget.context.value, widget.batch.value = 1, 65536, 4096
    assert "out of memory" in widget.static()
