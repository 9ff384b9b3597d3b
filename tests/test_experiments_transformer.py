"""What notebook 02 measures, in a tiny size: the parts together are the model, figures are what they say."""

import pytest
import torch

from llama2lab.lab import shown
from llama2lab.lab.checking import solution
from llama2lab.lab.finished import live_folder
from llama2lab.lessons.n02_transformer import experiments as t
from llama2lab.lessons.n02_transformer import figures
from llama2lab.lessons.n02_transformer.exercises import GROUPED_ATTENTION, RMS_NORM, ROPE, SWIGLU
from llama2lab.lessons.n02_transformer.sizes import parameters

TINY = {"dim": 32, "ffn_dim": 96, "n_layers": 1, "max_seq_len": 256}
IDS = [1, 4, 300, 301, 302, 5]


def test_undivided_scores_make_the_softmax_sharp():
    found = t.softmax_spread(sizes=(8, 128), draws=100)
    largest = {name: [by_rank[0]["mean"] for by_rank in of.values()] for name, of in found.items()}
    assert largest["not divided"][1] > 0.85 > largest["not divided"][0] + 0.1
    assert largest["divided"][0] == pytest.approx(largest["divided"][1], abs=0.05)
    assert sum(f["mean"] for f in found["divided"][8]) == pytest.approx(1)
    assert figures.spread_figure(draws=20).data


def test_the_parts_put_together_are_the_model(lab):
    with torch.no_grad():
        right = lab.model("rlhf-v5")(torch.tensor([IDS]))[0]
    pieces = {e.key.partition(".")[2]: solution(e) for e in (RMS_NORM, ROPE, GROUPED_ATTENTION, SWIGLU)}
    logits, whose = t.assembled(lab, IDS, **pieces)
    assert torch.allclose(logits, right, atol=1e-4) and set(whose.values()) == {"yours"}
    logits, whose = t.assembled(lab, IDS, **pieces | {"rope": lambda x, theta: x})  # wrong, so not used
    assert torch.allclose(logits, right, atol=1e-4) and whose["rope"] == "the library's"
    unturned = t.logits_with(lab.model("rlhf-v5"), IDS, *(pieces | {"rope": lambda x, theta: x}).values())
    assert not torch.allclose(unturned, right, atol=0.1)


def test_transformers_opens_the_same_model(lab):
    with torch.no_grad():
        ours = lab.model("rlhf-v5")(torch.tensor([IDS]))[0]
    assert torch.allclose(t.transformers_logits(lab, "rlhf-v5", IDS), ours, atol=1e-3)


def test_grouped_variants(lab):
    result = t.gqa_variants(lab, seeds=(0, 1), words=1500, documents=4, **TINY)
    assert [row["n_kv_heads"] for row in result["rows"]] == [4, 2, 1]
    sizes = [row["parameters"] for row in result["rows"]]
    assert max(sizes) - min(sizes) < 0.01 * max(sizes) and sizes[0] == parameters(t.shapes(lab, **TINY)["MHA"])
    assert [row["cache"] for row in result["rows"]] == [2 * kv * 8 * 2 for kv in (4, 2, 1)]
    own, shared = result["rows"][0]["loss"], result["rows"][2]["loss"]
    assert result["gaps"]["MQA"]["mean"] == pytest.approx(shared["mean"] - own["mean"], abs=1e-6)
    assert result["gaps"]["MQA"]["n"] == 8 and len(result["gaps"]["MQA"]["each"]) == 2
    assert not list(live_folder().glob("gqa*"))  # what was kept to go on with is gone at the end
    assert figures.gap_figure(result).data and figures.loss_curves(result, smooth=1).data
    assert [row[3] for row in figures.quality_table(result).rows] == [2, 2]
    assert [row[6] for row in figures.gqa_rows(result)] == ["44.15", "44.28", "43.76"]


def test_words_about_a_gap():
    gap = {"mean": 0.01, "low": -0.02, "high": 0.04, "n": 9, "each": [0.0, 0.02]}
    assert "one seed" in figures.quality_kept(gap | {"each": [0.01]})
    assert "equal" in figures.quality_kept(gap) and "equal" not in figures.quality_kept(gap, margin=0.03)
    assert "worse" in figures.quality_kept(gap | {"mean": 0.1, "low": 0.02, "high": 0.2})
    assert "cannot be told" in figures.quality_kept(gap | {"low": -0.2, "high": 0.2})
    assert "better" in figures.quality_kept(gap | {"mean": -0.1, "low": -0.2, "high": -0.02})


def test_decode_speed(lab):
    shape = {name: TINY[name] for name in ("dim", "ffn_dim", "n_layers")}
    rows = t.decode_speed(lab, batches=(1, 2), contexts=(8, 16), repeats=1, **shape)
    assert len(rows) == 12 and all(row["tokens_per_second"]["mean"] > 0 for row in rows)
    assert {row["gain"]["mean"] for row in rows if row["kind"] == "MHA"} == {1.0}
    cache = {row["kind"]: row["cache"] for row in rows if (row["context"], row["batch"]) == (16, 2)}
    assert cache["MHA"] == 2 * cache["GQA"] == 4 * cache["MQA"] == 2 * 4 * 8 * 17 * 2 * 4
    assert [row[:2] for row in figures.speed_rows(rows)] == [("8", "1"), ("8", "2"), ("16", "1"), ("16", "2")]
    assert len(figures.speed_figure(rows).data) == 6 and [row[0] for row in figures.speed_verdict(rows).rows] == [
        "GQA",
        "MQA",
    ]


def test_words_about_speed_follow_the_figures():
    def rows(small, large, ms=(1.0, 1.0)):
        figure = {"mean": 1.0, "low": ms[0], "high": ms[1], "n": 15}
        return [
            {
                "kind": kind,
                "context": 8,
                "batch": batch,
                "cache": batch,
                "ms": figure,
                "gain": {"mean": sum(gain) / 2, "low": gain[0], "high": gain[1]},
            }
            for batch, gain in ((1, small), (64, large))
            for kind in ("MHA", "GQA", "MQA")
        ]

    def told(*gains):
        gqa, mqa = (row[3:] for row in figures.speed_verdict(rows(*gains)).rows)
        assert gqa == mqa
        return gqa

    assert told((0.9, 1.1), (1.4, 1.6)) == ["faster", "more, as the account says"]
    assert told((1.4, 1.6), (0.9, 1.1))[1] == "less, against the account"
    assert told((0.9, 1.1), (0.2, 9.0))[0] == "cannot be told"
    assert told((0.9, 1.3), (1.2, 1.4)) == ["faster", "cannot be told: the intervals overlap"]
    assert "busy" in figures.busy_words(rows((1, 1), (2, 2), (1.0, 8.0)))
    assert figures.busy_words(rows((1, 1), (2, 2))) == ""


def test_the_median_has_the_interval_of_the_sign_test():
    figure = t.middle([*range(1, 15), 1e6])
    assert (figure["mean"], figure["low"], figure["high"], figure["n"]) == (8, 4, 12, 15)  # ranks 4 and 12: 96.5 %
    assert t.middle([3.0]) == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 1}


def test_context_length(lab):
    result = t.context_length(lab, full=128, documents=6)
    assert result["documents"] == 6
    half, full = (list(series.values()) for series in result["by_place"].values())
    assert len(half) == 16 and [f["mean"] for f in half[:8]] == pytest.approx([f["mean"] for f in full[:8]], abs=0.02)
    (gap,) = result["claims"].values()
    assert gap["mean"] > 0 and half[8]["mean"] > full[8]["mean"]
    assert shown.show(result["by_place"], "place", "loss").data and shown.verdicts(result["claims"]).rows


def test_a_window_is_felt_only_when_the_name_has_left_it(lab):
    result = t.facts_after_talk(lab, turns=(0, 1, 3), windows=(2, 5), prompts=6)
    short, long, everything = (by for by in result["by_turns"].values())
    assert short["0"] == long["0"] == everything["0"] and long["3"] == everything["3"]
    (gap,) = result["claims"].values()
    both = [(by["1"]["mean"] + by["3"]["mean"]) / 2 for by in (long, short)]
    assert gap["mean"] == pytest.approx(both[0] - both[1])
    assert [m["role"] for m in result["example"]] == ["user", "assistant"] * 3 + ["user"]
