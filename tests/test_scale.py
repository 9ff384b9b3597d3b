"""What Llama 2's sizes take: computed by hand here, and as the page says it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from llama2lab.engine.errors import LabError
from llama2lab.evidence import scale
from llama2lab.model.network import SIZES, ModelConfig

ROOT = Path(__file__).parent.parent
TINY = ModelConfig(64, 16, 3, 4, 2, 24, max_seq_len=512)


def test_the_page_says_what_is_computed() -> None:
    """A figure that is changed by hand in docs/scale.md fails here. Cure: llama2lab scale --write."""
    text = (ROOT / scale.PAGE).read_text(encoding="utf-8")
    for name, block in scale.blocks().items():
        assert f"<!-- evidence: {name} -->\n{block}\n<!-- /evidence -->" in text, name


def test_a_figure_changed_by_hand_is_written_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scale, "blocks", lambda: {"memory": "| a |", "time": "| b |"})
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("[!s]*.md"))
    assert scale.write_page(tmp_path) == [tmp_path / scale.PAGE] and scale.write_page(tmp_path) == []
    assert "<!-- evidence: time -->\n| b |\n<!-- /evidence -->" in (tmp_path / scale.PAGE).read_text(encoding="utf-8")
    (tmp_path / scale.PAGE).write_text("nothing")
    with pytest.raises(LabError, match="wants each of these blocks once: memory, time"):
        scale.write_page(tmp_path)


def test_parameters_are_those_of_the_released_models() -> None:
    counts = {name: scale.count_parameters(SIZES[name]) for name in ("7b", "13b", "70b")}
    assert counts == {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}


def test_what_a_row_keeps_grows_by_the_layer_and_is_counted_by_hand() -> None:
    seq, c = 256, TINY
    assert scale.activation_bytes(c, seq) == scale._kept(c, seq)  # of all three layers at once
    by_layer = scale.activation_bytes(dataclasses.replace(c, n_layers=4), seq) - scale.activation_bytes(c, seq)
    size, heads, kv = c.head_size, c.n_heads, c.n_kv_heads
    a_token = (
        2 * (c.dim + 1)  # RMSNorm: the normalised row and its scale, of both norms
        + 2 * c.dim  # what the norms give, which the products read
        + (heads + kv) * size + kv * size  # queries and keys as turned, values
        + heads * seq  # attention's weights: one block of 256 queries
        + heads * size  # what attention gives, which its product reads
        + 3 * c.ffn_dim  # gate, up, silu(gate)
        + c.ffn_dim  # their product
    )  # fmt: skip
    gains = 2 * c.dim  # of the norms, cast
    assert by_layer == pytest.approx(2 * (a_token * seq + gains), rel=0.02)


def test_cache_and_hours_by_hand() -> None:
    assert scale.cache_bytes_of(SIZES["7b"], 4096) == 2 * 32 * 4096 * 2 * 4096  # keys and values, 2 bytes each
    assert scale.cache_bytes_of(SIZES["70b"], 1) == 2 * 80 * 8 * 128 * 2
    assert scale.gpu_hours(SIZES["7b"], 2e12, "A100") == pytest.approx(6 * 6_738_415_616 * 2e12 / (0.4 * 312e12) / 3600)
    assert scale.implied_share("70b") == pytest.approx(0.428, abs=1e-3)


def test_the_fewest_gpus_hold_state_and_row(monkeypatch) -> None:
    monkeypatch.setattr(scale, "activation_bytes", lambda config, seq_len: int(12e9))
    assert scale.gpus(SIZES["7b"], 4096) == 2  # 108 GB over GPUs with 60 left each
    monkeypatch.setattr(scale, "activation_bytes", lambda config, seq_len: int(73e9))
    assert scale.gpus(SIZES["7b"], 4096) is None
