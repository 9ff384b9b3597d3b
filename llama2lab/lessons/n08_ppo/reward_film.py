"""The reward film: one prompt over PPO's iterations, what the reward model gives to the answers and what they are
truly worth, the sentence that became a habit, and the point where reward and truth part."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import lines, table
from llama2lab.lessons.n08_ppo.experiments import changes

Row = Mapping[str, Any]
PARTING = (
    "They part at the first iteration from which on the reward stays above the 95 % interval of its start and the "
    "truth below that of its own."
)


def parting(rows: Sequence[Row]) -> int | None:
    """The index of the row that `PARTING` names; None where they do not part."""
    if not rows:
        return None
    above, below = rows[0]["proxy"]["high"], rows[0]["truth"]["low"]
    found = None
    for i in reversed(range(len(rows))):
        if rows[i]["proxy"]["mean"] <= above or rows[i]["truth"]["mean"] >= below:
            break
        found = i
    return found


def habit(rows: Sequence[Row]) -> str:
    """The sentence that most answers have come to hold since the start: the reward model's pet. Empty where none is
    held by more answers than at the start."""
    if not rows or not rows[-1]["said"]:
        return ""
    before, now = rows[0]["said"], rows[-1]["said"]
    most = max(now, key=lambda one: now[one] - before.get(one, 0))
    return most if now[most] > before.get(most, 0) else ""


def first_prompt(rows: Sequence[Row]) -> int:
    """The prompt to begin with: the one whose last answer gained most reward and lost most truth."""

    def apart(i: int) -> float:
        start, end = rows[0]["answers"][i], rows[-1]["answers"][i]
        return (end["reward"] - start["reward"]) - (end["truth"] - start["truth"])

    return max(range(len(rows[0]["answers"])), key=apart)


def film(rows: Sequence[Row]) -> dict[str, Any]:
    """What the picture shows of a short run (`experiments.run`). Curves are changes since the start in standard errors
    of that, so that both fit one axis."""
    pet = habit(rows)
    reward, truth = changes(rows, "proxy"), changes(rows, "truth")
    steps = [
        {
            "iteration": row["iteration"] + 1,
            "kl": row["kl"],
            "reward": row["proxy"]["mean"],
            "truth": row["truth"]["mean"],
            "reward change": reward[i],
            "truth change": truth[i],
            "held": row["said"].get(pet, 0),
            "answers": [dict(a) for a in row["answers"]],
        }
        for i, row in enumerate(rows)
    ]
    return {
        "steps": steps,
        "pet": pet,
        "of": rows[0]["truth"]["n"],
        "parting": parting(rows),
        "rule": PARTING,
        "prompt": first_prompt(rows),
    }


class RewardFilm(Picture):
    """`runs`: rows of short runs by name (experiments.hacking, or `{"name": experiments.kept_run(...)}`)."""

    def __init__(self, runs: Mapping[str, Sequence[Row]]):
        super().__init__(data={"runs": {name: film(rows) for name, rows in runs.items() if rows}})

    def static(self) -> str:
        parts = ["<p><strong>The reward film</strong></p>"]
        for name, d in self.data["runs"].items():
            curves = [
                (words, [(s["iteration"], s[key]) for s in d["steps"]])
                for words, key in (("reward", "reward change"), ("truth", "truth change"))
            ]
            words = f"Reward and truth by iteration, reward model: {name}"
            parts.append(f"<p>Reward model: {html.escape(name)}</p>")
            parts.append(lines(curves, words, "iteration", "change, standard errors of the start"))
            first, last = d["steps"][0], d["steps"][-1]
            body = [
                (f"iteration {s['iteration']}", a["answer"], f"{a['reward']:+.2f}", f"{a['truth']:+.2f}", s["held"])
                for s in (first, last)
                for a in [s["answers"][d["prompt"]]]
            ]
            header = ("", "answer", "reward", "truth", f"of {d['of']} answers hold: {d['pet']}")
            parts.append(f"<p>{html.escape(first['answers'][d['prompt']]['question'])}</p>{table(header, body)}")
            told = "They do not part in this run." if d["parting"] is None else f"Here: {self._at(d)}."
            parts.append(f"<p>{html.escape(PARTING)} {told}</p>")
        return "".join(parts)

    @staticmethod
    def _at(d: Mapping[str, Any]) -> str:
        return f"iteration {d['steps'][d['parting']]['iteration']}"
