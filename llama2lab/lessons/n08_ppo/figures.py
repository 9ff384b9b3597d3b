"""Figures and tables of notebook 08, from what its experiments give."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import add_line, columns
from llama2lab.lessons.n08_ppo.experiments import changes, value
from llama2lab.report.look import BLUE, GREY, MARKS, errors, plain, style
from llama2lab.report.series import one_legend
from llama2lab.report.summary import figure_text, short_name

Rows = Sequence[Mapping[str, Any]]


def kl_figure(results: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """The three estimators against the number of tokens, one panel for each pair of models; the bars are one standard
    deviation of the estimate over many draws, the dotted line is the exact KL."""
    heads = [f"{plain(name, 60)}<br>exact: {result['exact']:.3f}" for name, result in results.items()]
    fig = make_subplots(1, len(results), subplot_titles=heads, horizontal_spacing=0.2)
    for column, result in enumerate(results.values(), 1):
        rows = result["by_n"]
        for shift, (name, (color, symbol)) in enumerate(zip(("k1", "k2", "k3"), MARKS, strict=False)):
            x, y = [row["n"] * 1.12 ** (shift - 1) for row in rows], [row[name]["mean"] for row in rows]
            bars = {"type": "data", "array": [row[name]["std"] for row in rows], "thickness": 1.5, "width": 4}
            add_line(fig, name, x, y, color, symbol, error_y=bars, row=1, col=column)
        fig.add_hline(y=result["exact"], line={"color": GREY, "dash": "dot"}, row=1, col=column)
        fig.update_xaxes(type="log", tickvals=[row["n"] for row in rows], row=1, col=column)
        # far apart, k3 has values a hundred times the KL: its bars leave the picture
        fig.update_yaxes(range=[-2 * result["exact"], 5 * result["exact"]], row=1, col=column)
    one_legend(fig)
    return style(fig, "tokens in the estimate", "KL, nats a token", height=350)


def gae_figure(answer: Mapping[str, Any]) -> go.Figure | None:
    """One answer token by token: its rewards, its values, and its advantages for each lambda."""
    names = [f"{i} {plain(t, 12)}" for i, t in enumerate(answer["tokens"], 1)]
    places = list(range(1, len(names) + 1))
    fig = make_subplots(
        3,
        1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        subplot_titles=("reward of the token", "value before the token", "advantage of the token"),
    )
    fig.add_trace(go.Bar(x=places, y=answer["rewards"], name="reward", marker={"color": GREY}), row=1, col=1)
    fig.add_trace(
        go.Scatter(x=places, y=answer["values"], name="value", mode="lines+markers", line={"color": BLUE}), row=2, col=1
    )
    for (lam, values), (color, symbol) in zip(answer["advantages"].items(), MARKS[1:], strict=False):
        add_line(fig, f"lambda {lam}", places, values, color, symbol, size=7, row=3, col=1)
    fig.update_xaxes(tickvals=places, ticktext=names, tickangle=-60)
    fig.update_xaxes(title="token of the answer", row=3)
    fig.update_yaxes(title="score")
    return style(fig, height=600, below=90)


def runs_figure(runs: Mapping[str, Rows], keys: Mapping[str, str]) -> go.Figure | None:
    """Short runs together: below each other one panel for each of `keys` {key of a row: words}, with an interval where
    the row has a figure."""
    fig = make_subplots(len(keys), 1, shared_xaxes=True, vertical_spacing=0.06)
    for (name, rows), (color, symbol) in zip(runs.items(), MARKS, strict=False):
        for panel, key in enumerate(keys, 1):
            bars = errors([row[key] for row in rows]) if rows and isinstance(rows[0][key], dict) else None
            x, y = [row["iteration"] + 1 for row in rows], [value(row, key) for row in rows]
            add_line(fig, name, x, y, color, symbol, size=7, error_y=bars, row=panel, col=1)
    one_legend(fig)
    for panel, words in enumerate(keys.values(), 1):
        fig.update_yaxes(title=words.replace(", ", ",<br>"), row=panel, col=1)
    fig.update_xaxes(title="iteration", row=len(keys))
    return style(fig, height=80 + 190 * len(keys))


def three_tokens_figure(plays: Mapping[str, Rows], names: Sequence[str]) -> go.Figure | None:
    """What `three_tokens.play` gives: the probability of each of the named tokens after every step, one panel for each
    play; dotted lines stand where a new batch is drawn."""
    fig = make_subplots(1, len(plays), subplot_titles=list(plays), shared_yaxes=True, horizontal_spacing=0.05)
    for column, rows in enumerate(plays.values(), 1):
        for token, (name, (color, symbol)) in enumerate(zip(names, MARKS, strict=False)):
            x, y = [row["step"] for row in rows], [row["probabilities"][token] for row in rows]
            add_line(fig, name, x, y, color, symbol, size=6, row=1, col=column)
        for before, row in itertools.pairwise(rows):
            if row["batch"] != before["batch"]:
                fig.add_vline(x=before["step"], line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=column)
    one_legend(fig)
    fig.update_yaxes(range=[-0.02, 1.02])
    fig.update_yaxes(title="probability", row=1, col=1)
    return style(fig, "gradient step")


def over_optimisation_figure(result: Mapping[str, Any]) -> go.Figure | None:
    """Reward and truth against the distance from the start, both as changes: a column for each reward model, a row for
    each beta."""
    judges = list(dict.fromkeys(run["reward"] for run in result["runs"]))
    accuracy = {run["reward"]: run["accuracy"] for run in result["runs"]}
    betas = sorted({run["beta"] for run in result["runs"]})
    heads = [f"beta {b:g}: {plain(j)}<br>(accuracy {accuracy[j]['mean']:.2f})" for b in betas for j in judges]
    fig = make_subplots(
        len(betas),
        len(judges),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.17,
        subplot_titles=heads,
    )
    looks = (("proxy", "reward", MARKS[1], "dash"), ("truth", "true helpfulness", MARKS[0], "solid"))
    for run in result["runs"]:
        rows, row, column = run["rows"], betas.index(run["beta"]) + 1, judges.index(run["reward"]) + 1
        x, hover = [one["kl"] for one in rows], "%{x:.1f} nats: %{text}<extra></extra>"
        text = [f"truth {figure_text(one['truth'])}, reward {figure_text(one['proxy'])}" for one in rows]
        for key, name, (color, symbol), dash in looks:
            more = {"text": text, "hovertemplate": hover}
            add_line(fig, name, x, changes(rows, key), color, symbol, 6, dash, row, column, **more)
    one_legend(fig)
    fig.update_yaxes(title="change,<br>standard errors", col=1)
    return style(fig, "KL to the start, nats an answer", height=90 + 230 * len(betas))


def last(rows: Rows, key: str, n: int = 3) -> float:
    """Mean over the last iterations: one iteration of a short run is noisy."""
    values = [value(row, key) for row in rows[-n:]]
    return sum(values) / len(values)


def summary_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Each run of `over_optimisation` in a line: how far it went, and what its end is truly worth against its best."""
    runs = [
        {
            **run,
            "start": run["rows"][0],
            "end": run["rows"][-1],
            "best": max(run["rows"], key=lambda r: r["truth"]["mean"]),
        }
        for run in result["runs"]
    ]
    cells: dict[str, Callable[[Any], object]] = {
        "reward model": lambda run: run["reward"],
        "its accuracy": lambda run: figure_text(run["accuracy"]),
        "beta": lambda run: f"{run['beta']:g}",
        "KL at the end, nats": lambda run: f"{run['end']['kl']:.1f}",
        "reward gained": lambda run: f"{run['end']['proxy']['mean'] - run['start']['proxy']['mean']:+.2f}",
        "truth at the start": lambda run: figure_text(run["start"]["truth"]),
        "best truth, at KL": lambda run: f"{figure_text(run['best']['truth'])} at {run['best']['kl']:.1f}",
        "truth at the end": lambda run: figure_text(run["end"]["truth"]),
    }
    return columns(runs, cells)


def sampler_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[object]]]:
    """(header, rows) of `samplers`."""
    cells: dict[str, Callable[[Any], object]] = {
        "answers sampled from": lambda row: row["sampler"],
        "first ratio": lambda row: f"{row['first_ratio']:.6f}",
        "sampling gap, nats a token": lambda row: f"{row['sampling_gap']:.2g}",
        "the largest": lambda row: f"{row['sampling_gap_max']:.2g}",
        "KL of sampling from scoring": lambda row: f"{row['sampling_kl']:.2g}",
        "PPO": lambda row: "stops" if row["stops"] else "goes on",
    }
    return columns(result["rows"], cells)


def habits(
    lab: Finished,
    stages: Sequence[str] = ("sft", "rlhf-v4", "rlhf-v5"),
    words: int = 4,
) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the words that most answers to helpful held-out prompts end with, and how many do."""
    body = []
    for stage in stages:
        answers = [row["answer"].split() for row in lab.rows(stage, "answers.jsonl") if row["kind"] == "helpful"]
        ends = [" ".join(answer[-words:]) for answer in answers]
        most = Counter(ends).most_common(1)[0][0]
        share, mean = stats.rate([end == most for end in ends]), sum(map(len, answers)) / len(answers)
        body.append([short_name(stage), f"{mean:.1f}", f"... {most}", figure_text(share)])
    return ["version", "words an answer", "commonest end", "answers that end so"], body
