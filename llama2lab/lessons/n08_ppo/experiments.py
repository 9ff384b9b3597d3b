"""PPO (Llama 2, section 3.2.3) in short runs that can be watched: what beta does, over-optimisation, and rejection
sampling against PPO.

In every short run the oracle judges, iteration by iteration, the policy's answers to the same held-out prompts. It
only looks on: nothing it says reaches the training.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llama2lab.engine import stats
from llama2lab.engine.files import read_json, write_atomic
from llama2lab.engine.identity import alone
from llama2lab.engine.optim import Optim
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n05_preferences.experiments import reward_on
from llama2lab.model.chat import encode_chats
from llama2lab.model.logprobs import answer_loglikelihoods, only_rounded, pad_right, sampling_gap, token_logprobs
from llama2lab.model.network import Llama
from llama2lab.report.summary import metrics, paired_gap, short_name
from llama2lab.stages import evaluate, gate, ppo, rejection, reward
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.reward import RewardModel
from llama2lab.stages.rounds import Workshop, ppo_policy
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.corpus import pretraining_corpus
from llama2lab.town.items import Prompt
from llama2lab.town.prompts import TownSource

SHOWN = 6  # held-out prompts whose answers are kept at each iteration
FAR = 1e9  # nats: no early stop


@dataclass(frozen=True)
class Play:
    """A short PPO run. `rewarder` is the stage of a reward model, or "weak" for one that learns from so few pairs."""

    start: str = "sft"
    rewarder: str = "reward-helpfulness-v5"
    pairs: int = 120  # of "weak"
    beta: float = 0.02
    iterations: int = 10
    batch: int = 64
    minibatch: int = 32
    unsafe_share: float = 0.15  # 0: no unsafe prompts, no safety model and no gate
    heldout: int = 64  # helpful prompts that the oracle judges
    lr: float = 4e-4
    seed: int = 0

    @property
    def settings(self) -> PPOSettings:
        """As in the full run, but for its length and a larger learning rate."""
        return PPOSettings(
            iterations=self.iterations,
            batch=self.batch,
            minibatch=self.minibatch,
            beta=self.beta,
            unsafe_share=self.unsafe_share,
            replay=0.0,
            critic_warmup=min(1, self.iterations - 1),
            early_stop_kl=FAR,
            optim=Optim(lr=self.lr),
            critic_optim=Optim(lr=2 * self.lr),
        )


def rewarder(lab: Finished, play: Play) -> RewardModel:
    if play.rewarder != "weak":
        return lab.reward(play.rewarder)
    rows = lab.rows("preferences-v1", "helpfulness.train.jsonl")[: play.pairs]
    return reward_on(lab, rows, 0, "linear").eval()  # the report's head, on the first pairs: in seconds


def run(
    lab: Finished,
    play: Play,
    folder: Path | None = None,
    beta_for: Callable[[int], float] | None = None,
    seen: dict[int, dict[str, Any]] | None = None,
    rewards: RewardModel | None = None,
) -> list[dict[str, Any]]:
    """A short PPO run; one row an iteration, see `rows_of`.

    `seen` is filled as it goes, with what the held-out prompts say of the policy that wrote iteration i's answers. With
    a folder the run goes on after an interrupt, and `seen` is read again from there.
    """
    seen = {} if seen is None else seen
    if folder:
        (folder / "seen").mkdir(parents=True, exist_ok=True)
        seen |= {int(path.stem): read_json(path) for path in (folder / "seen").glob("*.json")}
    machine, tokenizer = lab.machine, lab.tokenizer
    policy = copy.deepcopy(lab.model(play.start))
    helpfulness = rewards or rewarder(lab, play)
    safety = lab.reward("reward-safety-v5") if play.unsafe_share else None
    held_out = lab.prompts(helpful=play.heldout, seed=5)

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        if safety is not None:
            return gate.combined_scores(helpfulness, safety, tokenizer, prompts, answers, machine)
        return reward.score_answers(helpfulness, tokenizer, [p.messages for p in prompts], answers, machine)

    def prompts_for(iteration: int) -> list[Prompt]:
        unsafe = round(play.batch * play.unsafe_share)
        borderline = round((play.batch - unsafe) * 0.25)
        seed = 1000 + play.seed * 997 + 10 * iteration
        return lab.prompts(play.batch - unsafe - borderline, unsafe, borderline, seed, "train")

    def look(iteration: int, _: Any) -> None:
        answers = evaluate.answer_prompts(policy, tokenizer, held_out, 1.0, 31 + play.seed, machine.precision)
        verdicts = evaluate.judge_all(lab.oracle, held_out, answers)
        contents, rewards = [p.content for p in held_out], score(held_out, answers)
        rows = list(zip(held_out, answers, verdicts, rewards, strict=True))[:SHOWN]
        seen[iteration] = {
            "truth": stats.mean([v.helpfulness for v in verdicts], contents),
            "proxy": stats.mean(rewards, contents),
            "correct": stats.rate([v.correct for v in verdicts], contents),
            "answers": [
                {"question": p.question, "answer": a, "truth": v.helpfulness, "reward": r} for p, a, v, r in rows
            ],
            "said": sentences(answers),
        }
        if folder:
            write_atomic(folder / "seen" / f"{iteration}.json", json.dumps(seen[iteration]))

    settings, critic = play.settings, ppo.Critic(helpfulness)
    result = ppo.ppo(
        policy, critic, score, tokenizer, prompts_for, settings, play.seed, machine, folder, look, beta_for=beta_for
    )
    return rows_of(result["log"], seen)


def sentences(answers: Sequence[str]) -> dict[str, int]:
    """How many of the answers hold a sentence, of each that several hold: what has become a habit."""
    counted = Counter(one for a in answers for one in {s.strip() for s in re.split(r"(?<=[.!?])\s+", a)} if one)
    return {one: n for one, n in sorted(counted.items()) if n > 1}


def rows_of(log: Sequence[dict[str, float]], seen: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The log of PPO with what the oracle saw: `iteration`, `score` (of the training answers), `kl` (nats an answer, to
    the start), `clipfrac`, `entropy`, `length`, `sampling_gap` ... and, on held-out prompts, `truth`, `proxy`,
    `answers` (to the first few, each with its truth and its reward), `said` (`sentences` of all). Row i is about the
    policy that wrote the answers of iteration i: row 0 is the start."""
    return [{"iteration": i, **row, **seen[i]} for i, row in enumerate(log) if i in seen and "kl" in row]


def value(row: Mapping[str, Any], key: str) -> float:
    """A row's number, or the mean of its figure."""
    return row[key]["mean"] if isinstance(row[key], dict) else row[key]


def changes(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """A figure's change since the first row, in standard errors of that: so that two scales fit one axis."""
    error = max((rows[0][key]["high"] - rows[0][key]["low"]) / 3.92, 1e-9) if rows else 1.0
    return [(row[key]["mean"] - rows[0][key]["mean"]) / error for row in rows]


def kept_run(lab: Finished, play: Play, rewards: RewardModel | None = None) -> list[dict[str, Any]]:
    """`run` that survives the stop button: given again, it goes on. Its folder is cleared at the end. LabError where
    another notebook trains there."""
    folder = lab.work_folder("ppo", run, asdict(play))
    with alone(folder, wait=False):
        rows = run(lab, play, folder, rewards=rewards)
        shutil.rmtree(folder, ignore_errors=True)
    return rows


# ---- live, in notebook 08 ------------------------------------------------------------------------------------------


def kl_estimators(
    lab: Finished,
    policy: str = "rlhf-v5",
    reference: str = "rlhf-v4",
    prompts: int = 24,
    sizes: Sequence[int] = (4, 16, 64, 256),
    trials: int = 200,
) -> dict[str, Any]:
    """k1, k2 and k3 on tokens of the policy, against the KL summed over the whole vocabulary; nats a token. Two
    seconds.

    Every position of the policy's own answers is one distribution. `exact` is the mean over positions of sum p log(p /
    q); an estimate takes n tokens at random positions, drawn from p. `by_n`: mean and standard deviation over trials.
    """
    models = [lab.model(policy), lab.model(reference)]
    asked = lab.prompts(helpful=prompts, seed=8)
    answers = evaluate.answer_prompts(models[0], lab.tokenizer, asked, 1.0, 8, lab.machine.precision)
    encoded = reward.encode_answers(lab.tokenizer, [p.messages for p in asked], answers)
    tokens, _ = pad_right([ids for ids, _ in encoded], lab.tokenizer.pad_token_id)
    wanted = pad_right([mask for _, mask in encoded], 0)[0].bool()[:, 1:]  # (batch, seq - 1)
    with torch.inference_mode():
        p, q = (
            m.lm_head(m.hidden(tokens.to(lab.machine.device))[:, :-1][wanted]).float().log_softmax(-1).cpu()
            for m in models
        )  # (positions, vocab)
        exact = (p.exp() * (p - q)).sum(-1).mean().item()
        generator = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(p.exp(), 64, replacement=True, generator=generator)  # (positions, 64)
        estimates = ppo.kl_estimates(p.gather(1, drawn).flatten(), q.gather(1, drawn).flatten())
        by_n = []
        for n in sizes:
            pick = torch.randint(drawn.numel(), (trials, n), generator=generator)
            means = {name: values[pick].mean(1) for name, values in estimates.items()}  # (trials,)
            by_n.append({"n": n} | {k: {"mean": m.mean().item(), "std": m.std().item()} for k, m in means.items()})
    overall = {name: values.mean().item() for name, values in estimates.items()}
    found = {"positions": len(p), "exact": exact, "by_n": by_n, "overall": overall}
    return {"policy": policy, "reference": reference, **found}


def samplers(lab: Finished, policy: str = "rlhf-v4", other: str = "rlhf-v3", prompts: int = 48) -> dict[str, Any]:
    """PPO's first minibatch with answers that were sampled in several ways, the policy's own first: its ratio before
    the first step, the gap between what sampling said and what scoring says, and whether PPO would stop. Some five
    seconds."""
    model, machine, tokenizer = lab.model(policy), lab.machine, lab.tokenizer
    chats = [p.messages for p in lab.prompts(helpful=prompts, seed=9)]
    asked = [ids for ids, _ in encode_chats(tokenizer, chats, add_generation_prompt=True)]
    ways: dict[str, tuple[Llama, dict[str, Any]]] = {
        "the policy": (model, {}),
        "at temperature 0.2": (model, {"temperature": 0.2}),
        "at temperature 1.3": (model, {"temperature": 1.3}),
        "with top-k 3": (model, {"top_k": 3}),
        "with top-p 0.9": (model, {"top_p": 0.9}),
        f"another policy, {short_name(other)}": (lab.model(other), {}),
    }
    rows = []
    for name, (sampler, settings) in ways.items():
        written = lab.generate(sampler, asked, 48, seed=6, precision=machine.precision, **settings)
        tokens, mask = (t.to(machine.device) for t in ppo.with_answers(asked, written, tokenizer.pad_token_id))
        with torch.no_grad(), machine.autocast():
            old, new = (token_logprobs(model, tokens, mask) for _ in range(2))
        sampled = torch.tensor([x for g in written for x in g.logprobs], device=machine.device)
        ratio = ppo.policy_loss(new, old, torch.zeros_like(old), mask)[1]["ratio"]
        stops = not only_rounded(sampled, old[mask], machine.precision)
        gap = sampling_gap(sampled, old[mask])
        rows.append({"sampler": name, "first_ratio": float(ratio), **gap, "tokens": len(sampled), "stops": stops})
    return {"policy": policy, "precision": machine.precision, "rows": rows}


def one_answer(
    lab: Finished,
    policy: str = "rlhf-v5",
    reference: str = "rlhf-v4",
    number: int = 0,
    beta: float = 0.02,
    lams: Sequence[float] = (0.0, 0.5, 0.95, 1.0),
) -> dict[str, Any]:
    """The rewards of one answer token by token, and its advantages by lambda. `values` stand in for a critic's: what
    the reward model gives to the answer so far."""
    prompt = lab.prompts(helpful=number + 1, seed=14)[number]
    answer = evaluate.answer_prompts(lab.model(policy), lab.tokenizer, [prompt], 1.0, number, lab.machine.precision)[0]
    ((ids, mask),) = reward.encode_answers(lab.tokenizer, [prompt.messages], [answer])
    judge, device = lab.reward("reward-helpfulness-v5-linear"), lab.machine.device
    tokens, on = torch.tensor([ids], device=device), torch.tensor([mask], device=device).bool()
    with torch.inference_mode():
        new, old = (token_logprobs(lab.model(stage), tokens, on) for stage in (policy, reference))
        so_far = judge.score(judge.backbone.hidden(tokens)).squeeze(-1).float() - judge.offset  # (1, seq)
        score, values = so_far[:, -1], torch.where(on, so_far.roll(1, 1), 0.0)  # the value before token t: at t - 1
        rewards = ppo.token_rewards(score, new, old, on, beta)
        advantages = {f"{lam:g}": ppo.gae(rewards, values, on, 1.0, lam)[0][on].tolist() for lam in lams}
    return {
        "question": prompt.question,
        "answer": answer,
        "beta": beta,
        "score": score.item(),
        "tokens": [lab.tokenizer.decode([i]) for i, m in zip(ids, mask, strict=True) if m],
        "log_ratio": (new - old)[on].tolist(),
        "rewards": rewards[on].tolist(),
        "values": values[on].tolist(),
        "advantages": advantages,
    }


# ---- measured with the full run ------------------------------------------------------------------------------------


# Wider apart than in the full run: in ten large steps 0.02 cannot be told from 0.
BETAS = {"zero": 0.0, "small": 0.1, "large": 0.5}


def three_betas(lab: Finished, **changes: Any) -> dict[str, Any]:
    """What beta does: the same short run at three prices of a nat. About 20 s on two cores."""
    return {name: kept_run(lab, Play(beta=beta, **changes)) for name, beta in BETAS.items()}


def hacking(lab: Finished, **changes: Any) -> dict[str, Any]:
    """Claim 20, to be looked at: two runs without a KL term (beta 0), against a reward model of few pairs and against
    the full run's last one, their rows as in `rows_of`. Some 40 s on two cores."""
    settings = {"beta": 0.0, "unsafe_share": 0.0, "iterations": 20, "lr": 6e-4, **changes}
    return {"few pairs": kept_run(lab, Play(rewarder="weak", **settings)), "all pairs": kept_run(lab, Play(**settings))}


def over_optimisation(
    lab: Finished,
    betas: Sequence[float] = (0.0, 0.05, 0.2),
    iterations: int = 20,
    weak: int = 120,
    test_pairs: int = 300,
    **changes: Any,
) -> dict[str, Any]:
    """Claim 20: over-optimisation is real, and the KL term holds it. Varied: beta (the report: 0.01 for its smaller
    models, 0.005 for the larger ones, section 3.2.3), and how good the reward model is. No unsafe prompts, no gate: the
    reward is one model's. `runs`: each with `accuracy` of its reward model on held-out pairs, and rows by iteration
    (`kl`, `proxy`, `truth`). About 100 s on two cores."""
    rows = lab.rows("preferences-v1", "helpfulness.test.jsonl")[:test_pairs]
    runs = []
    keep = ("iteration", "kl", "score", "proxy", "truth", "correct", "length")
    for name, stage in ((f"{weak} pairs", "weak"), ("last round", "reward-helpfulness-v5")):
        play = Play(rewarder=stage, pairs=weak, iterations=iterations, unsafe_share=0.0, **{"lr": 5e-4, **changes})
        judge = rewarder(lab, play)
        accuracy = reward.accuracy(reward.pair_scores(judge, lab.tokenizer, rows, lab.machine))
        for beta in betas:
            seen = [{k: row[k] for k in keep} for row in run(lab, replace(play, beta=beta), rewards=judge)]
            runs.append({"reward": name, "accuracy": accuracy, "beta": beta, "rows": seen})
    return {"runs": runs}


def rejection_against_ppo(
    lab: Finished,
    prompts: int = 288,
    k: int = 8,
    batch: int = 128,
    helpful: int = 360,
    unsafe: int = 60,
    chat_rows: int = 600,
    lr: float = 5e-4,
) -> dict[str, Any]:
    """Claim 18: rejection sampling is broad, PPO deep, and PPO on top adds a little. Both start from SFT, ask the same
    reward models and may sample prompts x k answers: rejection sampling k to each prompt at once, fine-tuned on the
    best; PPO one to each prompt, from a policy that moves. Then the full run's own V4 and V5. About 45 s on two cores.
    """
    machine, tokenizer = lab.machine, lab.tokenizer
    judges = lab.reward("reward-helpfulness-v5"), lab.reward("reward-safety-v5")
    documents = pretraining_corpus(lab.town, 60_000, 1)

    def ask(n: int, seed: int) -> list[Prompt]:
        few = round(n * 0.15)
        return lab.prompts(n - 2 * few, few, few, seed, "train")

    chosen = rejection.sample_and_score(lab.model("sft"), *judges, tokenizer, ask(prompts, 500), k, 1.0, 5, machine)
    rows = rejection.finetuning_rows([rejection.best_of(chosen)], lab.rows("sft", "rows.jsonl"), chat_rows, 0)
    broad = copy.deepcopy(lab.model("sft"))
    tuning = SFTSettings(epochs=2.0, batch_tokens=1024, optim=Optim(lr=lr, warmup=0.05))
    sft(broad, tokenizer, rows, tuning, 0, machine, documents=documents)

    deep = copy.deepcopy(lab.model("sft"))
    iterations = round(prompts * k / batch)
    settings = PPOSettings(
        iterations=iterations, batch=batch, minibatch=min(32, batch), critic_warmup=min(2, iterations - 1)
    )

    def score(asked: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        return gate.combined_scores(*judges, tokenizer, asked, answers, machine)

    def prompts_for(iteration: int) -> list[Prompt]:
        return ask(batch, 600 + 10 * iteration)

    critic = ppo.Critic(judges[0])
    tuned = ppo.ppo(deep, critic, score, tokenizer, prompts_for, settings, 0, machine, documents=documents)

    tested = lab.prompts(helpful, unsafe, 0, 21)
    result: dict[str, Any] = {"answers": prompts * k, "ppo_kl": tuned["kl"], "models": {}}
    start: list[evaluate.Verdict] = []
    for name, model in (("sft", lab.model("sft")), ("rejection sampling", broad), ("ppo", deep)):
        answers = evaluate.answer_prompts(model, tokenizer, tested, 1.0, 3, machine.precision)
        verdicts = evaluate.judge_all(lab.oracle, tested, answers)
        start = start or verdicts
        figures = evaluate.chat_metrics(tested, verdicts)
        both = zip(tested, verdicts, start, strict=True)
        gaps = [(p, v.helpfulness - w.helpfulness) for p, v, w in both if p.kind == "helpful"]
        result["models"][name] = {
            **{what: figures[what] for what in ("helpfulness", "safety", "correct")},
            "gain": stats.mean([g for _, g in gaps], [p.content for p, _ in gaps]),
            "by_skill": {s: stats.mean([g for p, g in gaps if p.skill == s]) for s in figures["correct_by_skill"]},
            "kl": distance(lab, model, lab.model("sft"), tested, answers),
        }
    steps = (("SFT to V4, by rejection sampling", "sft", "rlhf-v4"), ("V4 to V5, by PPO", "rlhf-v4", "rlhf-v5"))
    result["in_sequence"] = {
        name: paired_gap([lab.folder], b, a, lab.figures)
        for name, a, b in steps
        if metrics(lab.figures, a) and metrics(lab.figures, b)
    }
    return result


@dataclass(frozen=True)
class Stages:
    """A finished run's stages, as a workshop asks for them."""

    lab: Finished

    def folder(self, name: str) -> Path:
        return self.lab.stage(name)


def heads_by_ppo(
    lab: Finished, settings: PPOSettings | None = None, helpful: int = 600, unsafe: int = 150, borderline: int = 150
) -> dict[str, Any]:
    """Does it matter for the policy which head its helpfulness model has? PPO with the preset's settings from one V4
    against ours and against the report's. The oracle judges both on the same held-out prompts; `claims` holds the
    difference prompt by prompt. About 100 s on two cores."""
    documents = pretraining_corpus(lab.town, 200_000, 1)
    shop = Workshop(Stages(lab), 0, lab.machine, lab.tokenizer, TownSource(lab.town), documents)  # type: ignore[arg-type]
    asked = lab.prompts(helpful, unsafe, borderline, 41)
    policies, worth = {}, {}
    for stage in ("reward-helpfulness-v5", "reward-helpfulness-v5-linear"):
        policy, told = ppo_policy(shop, settings or PPOSettings(), "rlhf-v4", 5, stage)
        answers = evaluate.answer_prompts(policy, lab.tokenizer, asked, 1.0, 4, lab.machine.precision)
        verdicts = evaluate.judge_all(lab.oracle, asked, answers)
        head = lab.reward(stage).head
        policies[head] = {**evaluate.chat_metrics(asked, verdicts), "kl": told["kl"]}
        worth[head] = [v.helpfulness for p, v in zip(asked, verdicts, strict=True) if p.kind == "helpful"]
    gap = [a - b for a, b in zip(worth["likelihood"], worth["linear"], strict=True)]
    contents = [p.content for p in asked if p.kind == "helpful"]
    words = "true helpfulness: PPO on our head less PPO on the report's"
    return {"policies": policies, "claims": {words: stats.mean(gap, contents)}}


def distance(
    lab: Finished, model: Llama, start: Llama, prompts: Sequence[Prompt], answers: Sequence[str]
) -> stats.Figure:
    """KL(model || start) in nats an answer, on the model's own answers (k1)."""
    encoded = reward.encode_answers(lab.tokenizer, [p.messages for p in prompts], answers)
    own, old = (answer_loglikelihoods(m, encoded, lab.tokenizer.pad_token_id, lab.machine) for m in (model, start))
    return stats.mean([a - b for a, b in zip(own, old, strict=True)])


EXPERIMENTS = (three_betas, over_optimisation, hacking, rejection_against_ppo, heads_by_ppo)
