"""The report page and the tables: pooled figures, marks, missing stages, untrusted text."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest

from llama2lab.engine import stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES
from llama2lab.report import plots, promises, summary
from llama2lab.report.page import report

SKILLS = ("facts", "counting", "stories")
FIGURES = [
    plots.pretraining_loss,
    plots.finetuning_loss,
    plots.clean_against_noisy,
    plots.accuracy_by_grade,
    plots.accuracy_by_round,
    plots.calibration,
    plots.best_of_k,
    plots.ppo_curves,
    plots.versions_plane,
    plots.gatt_by_turn,
    plots.violations_and_refusals,
    plots.skills,
]
NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def make_run(folder: Path, seed: int = 0, preset: str = "mini", keep: tuple[str, ...] | None = None) -> Path:
    """The folder of a made-up run, with what the stages of a real one leave behind."""
    rng = random.Random(seed)
    stages: dict[str, dict] = {}

    def rate(p: float, n: int = 60) -> dict:
        return stats.rate([rng.random() < p for _ in range(n)])

    def mean(m: float, n: int = 60) -> dict:
        return stats.mean([rng.gauss(m, 0.3) for _ in range(n)])

    def add(name: str, **metrics: object) -> None:
        stages[name] = {"seconds": 10.0, "peak_memory_mb": 900, "metrics": metrics}

    def chat(name: str, h: float, **more: object) -> None:
        add(
            name,
            examples=100,
            helpfulness=mean(h),
            correct=rate(h),
            violation_rate=rate(0.1),
            safety=mean(0.8),
            false_refusal_rate=rate(0.02),
            borderline_refusal_rate=rate(0.05),
            win_rate_vs_sft=mean(h),
            correct_by_skill={s: rate(h) for s in SKILLS},
            loss=[{"step": i, "loss": 1 / i} for i in range(1, 5)],
            **more,
        )
        (folder / name).mkdir(parents=True)
        kinds = [(s, "helpful") for s in SKILLS] * 3 + [(k, k) for k in ("unsafe", "borderline")] * 3
        rows = [
            {
                "prompt_id": f"{skill}/{i}",
                "skill": skill,
                "kind": kind,
                "answer": f"{name} {NASTY}",
                "score": round(h + rng.gauss(0, 0.1), 3),
                "messages": [{"role": "user", "content": "Who? " + NASTY}],
            }
            for i, (skill, kind) in enumerate(kinds)
        ]
        (folder / name / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dialogue = {"instruction": NASTY, "questions": ["q"] * 20, "answers": ["Ahoy!"] * 20}
        (folder / name / "dialogues.jsonl").write_text(json.dumps(dialogue) + "\n")

    def reward(name: str, head: str, **more: object) -> None:
        add(
            name,
            head=head,
            accuracy=rate(0.7),
            accuracy_on_other=rate(0.5),
            accuracy_on_other_by_grade={},
            accuracy_by_grade={g: rate(0.9 - 0.12 * i, 600) for i, g in enumerate(GRADES)},
            calibration=[{"predicted": 0.6, "real": 0.55, "n": 10}],
            **more,
        )

    def turns(*shares: float) -> dict:
        return {t: rate(p, 96) for t, p in zip(plots.TURNS, shares, strict=True)}

    add("tokenizer", vocab_size=1024, bytes_per_token=3.0)
    add(
        "base",
        known_facts=rate(1.0),
        bits_per_byte=mean(1.0),
        tokens=1000,
        parameters=10,
        tokens_per_second=5,
        share_of_ceiling=0.3,
        loss=[{"step": i, "loss": 5 / i} for i in range(1, 9)],
        samples=[{"step": 5, "text": NASTY}],
    )
    chat("sft", 0.5)
    chat("sft-noisy", 0.1)
    for v in range(1, 6):
        reward(f"reward-helpfulness-v{v}", "likelihood", truth=rate(0.99, 200))
        reward(f"reward-safety-v{v}", "linear")
        if v < 5:
            add(f"samples-v{v}", curve=[{"k": k, "max": math.log2(k), "median": 0.1} for k in (1, 2, 4)])
            chat(f"rlhf-v{v}", 0.5 + 0.08 * v, **({"retention": turns(0.7, 0.2, 0, 0, 0, 0)} if v == 3 else {}))
        if v == 3:
            chat("gatt", 0.74, retention=turns(1, 1, 1, 1, 1, 1))
    log = [{"score": 0.1 * i, "kl": 0.1, "clipfrac": 0.0, "entropy": 1.0, "length": 12.0} for i in range(3)]
    chat(
        "rlhf-v5",
        0.95,
        retention=turns(1, 1, 1, 1, 1, 1),
        log=log,
        true_score_by_iteration=[{"helpfulness": mean(0.5), "safety": mean(0.5)} for _ in range(3)],
    )
    reward("reward-helpfulness-v5-linear", "linear", truth=rate(0.5))
    truth = [{"k": k, "pick": mean(0.5), "correct": rate(0.5), "ceiling": mean(0.9)} for k in (1, 2, 4)]
    add(
        "best-of-k",
        likelihood={"stage": "a", "reward": [], "truth": truth},
        linear={"stage": "b", "reward": [], "truth": truth},
    )
    if keep is not None:
        stages = {name: stage for name, stage in stages.items() if name in keep}
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"preset": preset, "seed": seed}))
    (folder / "results.json").write_text(
        json.dumps(
            {"preset": preset, "seed": seed, "stages": stages, "machine": {"cpu": "abacus " + NASTY, "cores": 2}}
        )
    )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"r{seed}", seed) for seed in range(3)]


def page_of(runs: list[Path], out: Path) -> str:
    """The page without plotly's own source."""
    text = report(runs, out).read_text(encoding="utf-8")
    return text.replace(plots_source(), "")


def plots_source() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


# ---- the page ----------------------------------------------------------------------------------------------------


def test_page_is_one_file_that_opens_offline(runs: list[Path], tmp_path: Path) -> None:
    whole = report(runs, tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert whole.count(plots_source()) == 1
    page = whole.replace(plots_source(), "")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page) and "<link" not in page
    assert "@import" not in page and "url(" not in page
    assert page.count("Plotly.newPlot(") == len(FIGURES)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_copies_of_a_run_and_other_prompts_are_not_pooled(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(LabError, match="a copy of it, is given twice"):
        report([runs[0], runs[1], tmp_path / "copy"], tmp_path / "page.html")
    for run, split in ((make_run(tmp_path / "dev", 4), "dev"), (make_run(tmp_path / "test", 5), "test")):
        path = run / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "split": split}))
    with pytest.raises(LabError, match=r"different prompts \(dev, test\)"):
        report([tmp_path / "dev", tmp_path / "test"], tmp_path / "page.html")
    report([tmp_path / "test", runs[0]], tmp_path / "page.html")  # older runs do not say


def test_texts_of_models_stay_text(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs, tmp_path / "page.html")
    assert NASTY not in page and "<img" not in page and "&lt;script&gt;alert" in page


def test_same_prompt_is_answered_by_every_stage(runs: list[Path], tmp_path: Path) -> None:
    page = page_of(runs[:1], tmp_path / "page.html")
    assert page.count('class="card"') == len(SKILLS) + 2 + 2
    for words in ("Promised figures", "Table 8", "Table 30", "Limits", "seed 0", "rlhf-v1 ", "rlhf-v5 "):
        assert words in page


def test_runs_are_pooled_with_their_points(runs: list[Path], tmp_path: Path) -> None:
    pooled = summary.pool([summary.load_run(run) for run in runs])
    assert len(pooled["stages"]["rlhf-v5"]["metrics"]["helpfulness"]["each"]) == 3
    assert pooled["stages"]["rlhf-v5"]["metrics"]["helpfulness"]["n"] == 180
    assert "seeds 0, 1, 2" in page_of(runs, tmp_path / "page.html")


@pytest.mark.parametrize(
    "keep",
    [
        ("base",),
        ("sft",),
        ("tokenizer", "base", "sft", "reward-helpfulness-v1"),
        ("rlhf-v5",),
        ("best-of-k",),
        ("gatt",),
        ("tokenizer",),
    ],
)
def test_missing_stages_do_not_break_the_page(tmp_path: Path, keep: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", keep=keep)
    page = page_of([run], tmp_path / "page.html")
    assert "Limits" in page and "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.S).lower().split()
    assert "not measured" in promises.promised_table([run])


def test_unfinished_run_shows_what_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "results.json").unlink()
    with pytest.raises(LabError, match="no finished stage"):
        report([run], tmp_path / "page.html")
    record = {"seconds": 3.0, "peak_memory_mb": 10, "metrics": {"known_facts": stats.rate([True] * 9)}}
    (run / "base").mkdir()
    (run / "base" / "stage.json").write_text(json.dumps(record))
    (run / "base" / "notes.json").write_text(json.dumps({"x": {"metrics": {"more": stats.rate([True])}, "seconds": 1}}))
    page = page_of([run], tmp_path / "page.html")
    assert "is not finished" in page and "known_facts" in page and "more" in page


def test_real_data_runs_say_that_nobody_knows_the_truth(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"preset": "real", "seed": 0}')
    stages = {
        "base": {"seconds": 1, "peak_memory_mb": 5, "metrics": {"bits_per_byte": stats.mean([1.0, 1.1])}},
        "reward-safety": {"seconds": 1, "peak_memory_mb": 5, "metrics": {"accuracy": stats.rate([True, False])}},
    }
    (run / "results.json").write_text(json.dumps({"preset": "real", "seed": 0, "machine": {}, "stages": stages}))
    page = page_of([run], tmp_path / "page.html")
    assert "no oracle" in page and "Promised figures" not in page and "reward-safety" in page
    assert "bits_per_byte" in promises.promised_table([run])


def test_smoke_says_that_its_figures_mean_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", preset="smoke")
    assert "None of these figures means anything" in page_of([run], tmp_path / "page.html")
    assert "mean nothing" in promises.promised_table([run])


def test_errors_name_the_file_and_the_cure(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(LabError, match="twice"):
        report([runs[0], runs[0]], out)
    with pytest.raises(LabError, match="different kinds"):
        report([runs[0], make_run(tmp_path / "smoke", preset="smoke")], out)
    broken = make_run(tmp_path / "broken")
    (broken / "results.json").write_text('{"stages": ')
    with pytest.raises(LabError, match=r"results\.json:1"):
        report([broken], out)
    (broken / "results.json").write_text("[]")
    with pytest.raises(LabError, match="no stages"):
        report([broken], out)
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="cannot write"):
        report(runs[:1], tmp_path / "file" / "page.html")


# ---- figures and marks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_stands_alone(figure, runs: list[Path]) -> None:
    """A notebook calls each with one run's results, or with several pooled."""
    one = summary.load_run(runs[0])
    for results in (one, summary.pool([summary.load_run(run) for run in runs])):
        drawn = figure(results)
        assert drawn is not None and len(drawn.data) > 0
    assert figure({"stages": {}}) is None


def test_marks_are_judged_on_the_mean_and_doubt_is_said() -> None:
    sure, unsure = ({"mean": 0.8, "low": low, "high": 0.9, "n": 9} for low in (0.76, 0.7))
    assert promises.Promise("x", sure, promises.mark(">=", 0.75)).verdict == "met"
    assert promises.Promise("x", unsure, promises.mark(">=", 0.75)).verdict == "met, unsure"
    assert promises.Promise("x", sure, promises.mark("<=", 0.05)).verdict == "MISSED"
    assert promises.Promise("x", sure).verdict == "" and promises.Promise("x", sure).met is None
    assert promises.Promise("x", None, promises.mark(">=", 0.75)).verdict == "not measured"


def test_promised_table_has_every_mark(runs: list[Path]) -> None:
    text = promises.promised_table(runs)
    for mark in (
        ">= 0.95",
        ">= 0.8",
        "0.60 to 0.80",
        ">= 0.75",
        "<= 0.05",
        "<= 0.1",
        ">= 0.03",
        ">= 0.9",
        "< 0.2",
        "<= 10",
        "< 2500",
        ">= 0.78",
        "in each >= 0.8",
        "interval above 0",
        "interval reaches 0",
    ):
        assert mark in text, mark
    assert re.search(r"\d+ of 22 marks met; seeds 0, 1, 2", text)
    assert re.search(r"V5: wins against SFT \(a tie is half\) +0\.\d+ \[0\.\d+, 1?0?\.\d+\] +180 +>= 0\.75", text)


def promise(runs: list[Path], words: str) -> promises.Promise:
    found = promises.promises(runs, [summary.load_run(run) for run in runs])
    return next(p for p in found if words in p.what and p.mark)


def test_what_older_runs_did_not_measure_is_no_miss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    broken = promise([run], "broken sentences")
    assert broken.verdict == "not measured" and broken.met is None
    path = run / "results.json"
    results = json.loads(path.read_text())
    results["stages"]["rlhf-v5"]["metrics"]["broken_rate"] = stats.rate([True] * 3 + [False] * 97)
    path.write_text(json.dumps(results))
    assert promise([run], "broken sentences").met is False
    assert re.search(r"\d+ of 23 marks met", promises.promised_table([run]))


def test_ghost_attention_has_to_hold_in_every_run() -> None:
    held = {"mean": 0.9, "low": 0.7, "high": 1.0, "n": 100}
    mark = promises.in_each(0.8)
    assert promises.Promise("x", held | {"each": [1.0, 0.8]}, mark).verdict == "met, unsure"
    assert promises.Promise("x", held | {"each": [1.0, 1.0, 0.79]}, mark).met is False
    assert promises.Promise("x", held, mark).met and not promises.Promise("x", held | {"mean": 0.7}, mark).met


def test_only_the_time_of_runs_that_were_made_alone_counts(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"mini-{seed}", seed) for seed in range(2)]
    path = runs[1] / "results.json"
    results = json.loads(path.read_text())
    for stage in results["stages"].values():
        stage["seconds"] = 600.0
    path.write_text(json.dumps(results))
    slow, quick = (sum(s["seconds"] for s in summary.load_run(r)["stages"].values()) / 60 for r in reversed(runs))
    assert promise(runs, "minutes").figure["mean"] == slow
    for text, minutes in (
        ('{"runs": {"0": {"alone": true}, "1": {"alone": false}}}', quick),
        ('{"runs": {"0": {"alone": true}}}', quick),
        ('{"runs": {}}', None),
    ):
        (tmp_path / "evidence.json").write_text(text)
        found = promise(runs, "minutes").figure
        assert (found and found["mean"]) == minutes
    (tmp_path / "evidence.json").write_text('{"runs": 5}')
    with pytest.raises(LabError, match=r"evidence\.json.*; remove it"):
        promise(runs, "minutes")


def test_gap_is_paired_prompt_by_prompt(tmp_path: Path) -> None:
    """The same prompts answered a little better each: a sure gap, though both spread widely."""
    run = tmp_path / "run"
    for name, more in (("a", 0.1), ("b", 0.0)):
        (run / name).mkdir(parents=True)
        rows = [{"kind": "helpful", "score": (i % 7) + more + 0.01 * (i % 2)} for i in range(70)]
        (run / name / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gap = summary.paired_gap([run], "a", "b", {"stages": {}})
    assert gap is not None and gap["mean"] == pytest.approx(0.1) and gap["low"] > 0.09 and gap["n"] == 70


def test_difference_adds_the_doubts() -> None:
    a, b = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 10}, {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    gap = summary.difference(a, b)
    assert gap is not None and gap["mean"] == pytest.approx(0.2) and gap["n"] == 10
    assert gap["high"] - gap["mean"] == pytest.approx(0.1 * 2**0.5)
    assert summary.difference(a, None) is None


def test_pool_of_curves_ends_with_the_shortest() -> None:
    one = {"stages": {"s": {"seconds": 1, "metrics": {"loss": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}}}}
    two = {"stages": {"s": {"seconds": 3, "metrics": {"loss": [{"step": 1, "loss": 4.0}]}}, "t": {"seconds": 1}}}
    pooled = summary.pool([one, two])
    assert pooled["stages"]["s"] == {"seconds": 2, "metrics": {"loss": [{"step": 1, "loss": 3.0}]}}
    assert "t" in pooled["stages"] and summary.pool([one]) is one
