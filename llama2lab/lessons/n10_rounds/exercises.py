"""Exercises of notebook 10: five rounds of RLHF (Llama 2, sections 3.2.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, randn, read
from llama2lab.lab.predictions import Choice, Prediction, Ranking
from llama2lab.lab.seeds import less
from llama2lab.lessons.n10_rounds import experiments
from llama2lab.lessons.n10_rounds.own_output import draw_against
from llama2lab.stages import rejection
from llama2lab.stages.evaluate import TIE, win_tie_loss
from llama2lab.town.items import Prompt, Verdict

FRESH = Exercise(
    "10.fresh",
    "Why fresh preferences?",
    "Later pairs may be harder for every reward model. Why does the report expect an old one to fall behind a new one "
    "on them?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.1",
    ("On which answers was each of them trained?",),
    Choice(
        a=("its weights decay", "Its weights are the same as before; the answers are not."),
        b="later policies write answers unlike those it was trained on",
        c=("people changed their minds", "The annotators judge as before; what they judge has changed."),
    ),
    lesson="Whoever climbs a reward model moves to where it was never checked. Fresh pairs move the judge along: what "
    "is learnt is not what people like, but what they like of the answers at hand.",
)

FORGOTTEN = Exercise(
    "10.forgotten",
    "What V3 lost",
    "In the report V3 learnt only from the last round's best answers. What happened, and what was the cure?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.3",
    ("It concerned poems.",),
    Choice(
        a=("it grew unsafe; more safety data", "Safety is not what was lost there."),
        b="it lost abilities such as rhyming; best answers of all rounds were kept",
        c=(
            "nothing; V3 was best at everything",
            "It scored higher on average, and was worse at some things: means hide that.",
        ),
    ),
    lesson="Fine-tuning has no memory but its rows: what they do not ask for fades. Keeping old rows is the cheapest "
    "cure; replayed pretraining text, which this lab adds, is another.",
)

SHARED_SCALE = Exercise(
    "10.shared_scale",
    "Judged by one's own reward",
    "The report's figure 11 judges versions by Meta's reward models and by GPT-4. Why by both?",
    Level(difficulty=2, minutes=3, points=1),
    "3.4.1, figure 11",
    ("Which of the two was trained on?",),
    Choice(
        a=("GPT-4 is cheaper", "Cost is not the reason; the reward models were at hand."),
        b="a policy that climbs a reward model may please it more than people; a second judge shows it",
        c=("reward models cannot judge safety", "One of the two reward models judges nothing else."),
    ),
    lesson="A second judge helps only where it errs in other ways: GPT-4 never saw Meta's pairs, yet models that judge "
    "are known to favour long answers, as people do.",
)

VERSIONS = Prediction(
    "10.versions",
    "The versions in order",
    "Order the versions by true helpfulness, smallest first.",
    Level(difficulty=1, minutes=2, points=1),
    "3.4.1, figure 11",
    ("Each round starts from better preferences.",),
    Ranking(
        {"sft": "SFT", "v1": "RLHF-V1", "v3": "RLHF-V3", "v5": "RLHF-V5 with PPO"},
        {
            ("sft", "v5"): "Five rounds did help: the demonstrations are not the ceiling.",
            ("v3", "v5"): "PPO adds to what rejection sampling has reached.",
        },
    ),
    lesson="An order of means is not an order of every skill, and neighbours may change places by chance: read "
    "intervals, and the gaps prompt by prompt, before you call a version better.",
)


ROUNDS = [[f"round {r}, answer {i}" for i in range(n)] for r, n in ((1, 5), (2, 4), (3, 6))]
EXAMPLES = [f"example {i}" for i in range(200)]


def check_rows(f: Callable) -> None:
    def asked(n: int, seed: int, chat: list[str] = EXAMPLES) -> tuple[list[str], list[str]]:
        """(best answers, SFT examples) of what is given back."""
        rows = f(ROUNDS, chat, n, seed)
        if not isinstance(rows, list | tuple):
            raise Mistake("A list of rows is expected.")
        if any(isinstance(row, list | tuple) for row in rows):
            raise Mistake("A row of your list is a list: the rounds are put in whole. Their rows make one flat list.")
        known = {*EXAMPLES, *(row for one in ROUNDS for row in one)}
        if odd := [row for row in rows if row not in known]:
            raise Mistake(f"{str(odd[0])[:60]!r} is none of the rows that were given.")
        return [row for row in rows if row not in EXAMPLES], [row for row in rows if row in EXAMPLES]

    best, chat = asked(20, 0)
    every = [row for one in ROUNDS for row in one]
    for value, name in (
        (ROUNDS[-1], "The best answers of the last round only: so the report's V3 lost abilities. Keep those of all."),
        (ROUNDS[0], "The best answers of the first round only; keep those of all rounds."),
        (every[: -len(ROUNDS[-1])], "The last round's best answers are missing: the newest are of the best model."),
        ([], "The best answers are missing."),
        ([one[0] for one in ROUNDS], "That is one answer a round; all of them are kept."),
    ):
        if sorted(best) == sorted(value):
            raise Mistake(name)
    if len(set(best)) < len(best):
        raise Mistake("Some best answers stand twice in the list.")
    if len(best) != len(every):
        raise Mistake(f"{len(best)} best answers; the {len(ROUNDS)} rounds have {len(every)}.")
    if len(set(chat)) < len(chat):
        raise Mistake("An SFT example stands twice: draw without replacement (random.sample, not choices).")
    for n, name in (
        (0, "The SFT examples are missing: n_chat of them are mixed in."),
        (len(EXAMPLES), "All SFT examples are in; n_chat of them are wanted."),
        (20 * len(ROUNDS), "n_chat examples for each round; it is n_chat in all."),
    ):
        if len(chat) == n:
            raise Mistake(name)
    if len(chat) != 20:
        raise Mistake(f"{len(chat)} SFT examples, where n_chat is 20.")
    if sorted(chat) in (sorted(EXAMPLES[:20]), sorted(EXAMPLES[-20:])):
        raise Mistake("Those examples stand side by side in the file, and the others are never seen: draw them.")
    if asked(20, 0)[1] != chat:
        raise Mistake("The same seed gives other examples: a run could not be made again. random.Random(seed) draws.")
    if sorted(asked(20, 1)[1]) == sorted(chat):
        raise Mistake("Another seed gives the same examples; it is not used.")
    if len(asked(20, 0, EXAMPLES[:3])[1]) != 3:
        raise Mistake("Where there are fewer examples than n_chat, all of them are mixed in.")


FINETUNING_ROWS = Exercise(
    "10.finetuning_rows",
    "What the next version learns from",
    "Write finetuning_rows(best_rows, chat_rows, n_chat, seed) -> a list of rows: best_rows holds a list of best "
    "answers for each round so far; keep them all, and mix in n_chat of the SFT examples chat_rows (all, where there "
    "are fewer), drawn without replacement, the same ones for the same seed.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.3",
    (
        "[row for one_round in best_rows for row in one_round] is flat.",
        "random.Random(seed).sample(rows, n) draws n different ones; n may not exceed len(rows).",
    ),
    check_rows,
    rejection.finetuning_rows,
    lesson="Rows of all rounds are no weighted mean of models: an old answer is kept only where it was the best of its "
    "K. The SFT examples hold what no reward asks for.",
)


def against(new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
    """The library's win rate, and the mean gain."""
    prompts = [Prompt(f"exercise/{i}/0", (), "facts", "helpful", "", "test") for i in range(len(new))]
    rest: dict[str, Any] = dict.fromkeys(("complete", "fluent", "brief", "safety"), 1.0)
    rest |= dict.fromkeys(("refuses", "alternative", "reason", "violation", "false_refusal", "falsehood"), False)

    def verdicts(scores: Sequence[float]) -> list[Verdict]:
        return [Verdict(correct=True, safe=True, helpfulness=score, **rest) for score in scores]

    found = win_tie_loss(prompts, verdicts(new), verdicts(old))
    return found["win_rate_vs_sft"]["mean"], sum(new) / len(new) - sum(old) / len(old)


def check_against(f: Callable) -> None:
    for old, new in (
        ([1.0, 0.5, -2.0, 2.0, 2.5, 1.5, 0.0, 1.0], [1.02, 1.0, -1.0, 2.0, -2.5, 1.8, 0.2, 0.7]),
        ([0.0, 1.0, 2.0], [0.5, 0.99, 2.5]),
    ):
        gaps = [a - b for a, b in zip(new, old, strict=True)]
        n, wins, losses = len(gaps), sum(g > TIE for g in gaps), sum(g < -TIE for g in gaps)
        ties = n - wins - losses
        result = f(new, old)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise Mistake("Two numbers are expected: the win rate and the mean gain.")
        rate, gain = (read(x, (), what) for x, what in zip(result, ("the win rate", "the gain"), strict=True))
        right, mean = against(new, old)
        judge(
            rate,
            right,
            (wins / n, "A tie is half a point; here it counts as a loss."),
            ((wins + ties) / n, "A tie is half a point; here it counts as a win."),
            (wins / max(1, wins + losses), "A tie is half a point; here ties are left out."),
            (
                sum(1.0 if g > 0 else 0.5 if g == 0 else 0.0 for g in gaps) / n,
                f"Scores that differ by no more than {TIE} are a tie; you call every difference a win or a loss.",
            ),
            ((losses + ties / 2) / n, "That is the old version's win rate."),
            (100 * right, "Give a share between 0 and 1, not percent."),
            ((wins - losses) / n, "That is wins less losses; a win is a point, a tie half a point, a loss none."),
            what="the win rate",
        )
        judge(
            gain,
            mean,
            (-mean, "The gain has the wrong sign: it is new less old."),
            (sum(gaps), "That is the sum of the gains; give their mean."),
            (
                sum(g for g in gaps if abs(g) > TIE) / max(1, wins + losses),
                "Ties are left out of the gain; it is a mean over all prompts.",
            ),
            (sum(abs(g) for g in gaps) / n, "Losses count too: without absolute values."),
            what="the gain",
        )


AGAINST = Exercise(
    "10.against",
    "How often, and by how much",
    f"Write against(new, old) -> (win rate, gain) for two versions' scores on the same prompts. Scores that differ by "
    f"no more than {TIE} are a tie; a win is a point, a tie half a point, and the rate is points a prompt. The gain is "
    "the mean of new less old.",
    Level(difficulty=2, minutes=8, points=2),
    "3.4.1, figure 11",
    ("zip(new, old) pairs the scores of a prompt.", "Compare the gap with the tie first, then with 0."),
    check_against,
    against,
    lesson="Many narrow wins can outweigh a few wrong answers in the one and not in the other. And a rate has a "
    "ceiling: against a weak opponent a better version hardly shows any more.",
    picture=draw_against,
)


def by_skill(before: Sequence[float], after: Sequence[float], skills: Sequence[str]) -> dict[str, float]:
    """The library's means by skill, of what changed prompt by prompt."""
    prompts = [Prompt(f"{skill}/{i}/0", (), skill, "helpful", "", "test") for i, skill in enumerate(skills)]
    found = experiments.by_skill(less([after], [before]), prompts)
    return {skill: figure["mean"] for skill, figure in found.items()}


def check_by_skill(f: Callable) -> None:
    skills = ["facts"] * 5 + ["stories"] * 2 + ["facts", "listing", "listing", "stories"]
    before, after = (randn(len(skills), seed=seed).double().tolist() for seed in (0, 1))
    after = [x - 2 * (skill == "stories") + 1 for x, skill in zip(after, skills, strict=True)]
    right = by_skill(before, after, skills)
    result = f(before, after, skills)
    if not isinstance(result, Mapping):
        raise Mistake("A dictionary is expected: a number for each skill, and one for 'all'.")
    if set(result) == set(right) - {"all"}:
        raise Mistake("'all' is missing: the mean change over all prompts.")
    if set(result) != set(right):
        raise Mistake(f"The keys are {', '.join(sorted(map(str, result)))[:80]}; {', '.join(right)} are expected.")
    names = [name for name in right if name != "all"]
    at = {name: [i for i, skill in enumerate(skills) if skill == name] for name in names}

    def means(scores: Sequence[float]) -> Tensor:
        return torch.tensor([sum(scores[i] for i in at[name]) / len(at[name]) for name in names])

    gaps = [a - b for a, b in zip(after, before, strict=True)]
    expected = torch.tensor([right[name] for name in names])
    judge(
        torch.stack([read(result[name], (), name).double() for name in names]),
        expected,
        (-expected, "The change has the wrong sign: it is after less before, so that what is lost is negative."),
        (
            torch.tensor([sum(gaps[i] for i in at[name]) for name in names]),
            "Those are sums; give the mean of each skill.",
        ),
        (means(after), "Those are the means after; the change is asked for."),
        (
            torch.tensor([sum(gaps[i] for i in at[name]) / len(gaps) for name in names]),
            "You divide by the number of all prompts; each skill has its own number.",
        ),
        what=f"the change of {', '.join(names)}",
    )
    judge(
        read(result["all"], (), "'all'"),
        right["all"],
        (
            float(expected.mean()),
            "'all' is the mean over prompts; the mean of the skills' means gives a rare skill's prompts more weight.",
        ),
        (-right["all"], "'all' has the wrong sign: it is after less before."),
        (sum(gaps), "'all' is a sum; give the mean."),
        what="'all'",
    )


BY_SKILL = Exercise(
    "10.by_skill",
    "What the mean hides",
    "Write by_skill(before, after, skills) -> a dictionary: for each skill the mean of after less before over its "
    "prompts, and for 'all' that over all prompts. The three lists have an entry for each prompt.",
    Level(difficulty=2, minutes=8, points=2),
    "3.2.3",
    ("Collect the gaps of each skill in a dictionary of lists.", "setdefault(skill, []).append(gap) does."),
    check_by_skill,
    by_skill,
    lesson="Twelve skills are twelve chances that one falls by luck: look at the intervals. And a test shows only the "
    "skills that it asks for; rhyming was noticed in the poems, not in a score.",
)

EXERCISES = (AGAINST, BY_SKILL, FINETUNING_ROWS, FRESH, FORGOTTEN, SHARED_SCALE, VERSIONS)
