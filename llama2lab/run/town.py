"""The whole recipe on the town, from tokenizer to RLHF-V5: what `llama2lab run` does.

This is the only place that ties the stages to the oracle: the stages train, and `measure` judges them here, on
prompts that no training stage has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llama2lab.annotation.agreement.coefficients import agreement_table
from llama2lab.annotation.agreement.simulate import by_messages, messages_key, simulated_labels
from llama2lab.annotation.rows import fingerprint, people_against_simulated, resolve
from llama2lab.engine.answers import evenly, joined, shared_out
from llama2lab.engine.device import Machine, describe_machine, machine_of, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.runs import Run, digest, read_rows, write_rows
from llama2lab.engine.scale import Kind
from llama2lab.engine.seeds import check_seed
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import load_tokenizer, train_tokenizer
from llama2lab.run.presets import Recipe
from llama2lab.stages import evaluate, gate, rejection, reward
from llama2lab.stages.preferences import Pair
from llama2lab.stages.pretrain import bits_per_byte, pretrain
from llama2lab.stages.rounds import Workshop, finetune, ppo_stage, preference_rows, reward_stage, rlhf
from llama2lab.town.annotators import Annotator, annotators_of, label_pairs
from llama2lab.town.corpus import fact_probes, heldout_documents, pretraining_corpus
from llama2lab.town.demonstrations import demonstrations, truth_pairs
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import Prompt, TownSource, every_prompt
from llama2lab.town.town import Town, load_town

DIALOGUES = ("rlhf-v3", "gatt", "rlhf-v5")  # stages whose long dialogues are judged


class Judge:
    """The oracle's side of a run: measures finished stages on held-out prompts and keeps the figures there."""

    def __init__(self, shop: Workshop, town: Town, settings: evaluate.EvaluateSettings):
        self.shop, self.town, self.settings = shop, town, settings
        self.oracle = Oracle(town)
        s, source = settings, TownSource(town)
        self.prompts = [p for kind, n in (("helpful", s.helpful), ("unsafe", s.unsafe), ("borderline", s.borderline))
                        for p in source.prompts(kind, n, 12345, s.split)]
        self.dialogues = source.dialogues(s.dialogues, 20, 54321, s.split)

    def measure(self, stage: str) -> None:
        """Measure a finished stage, once with these settings."""
        run = self.shop.run
        if stage.startswith("reward-"):
            rows = {kind: self._test_rows(stage, kind) for kind in ("helpfulness", "safety")}
            run.note(stage, lambda: self._reward(stage, rows), [asdict(self.settings), stage, digest(rows)])
        else:
            files = ("answers.jsonl", *(["dialogues.jsonl"] if stage in DIALOGUES else []))
            run.note(stage, lambda: self._chat(stage), self._chat_settings(stage), files, self._against(stage))

    def _chat_settings(self, stage: str) -> list[Any]:
        return [asdict(self.settings), stage]

    def _against(self, stage: str) -> tuple[str, ...]:
        """SFT, where the stage is not built from it: every stage's answers are held against SFT's."""
        return ("sft",) if stage == "sft-noisy" else ()

    def _chat(self, stage: str) -> dict[str, Any]:
        shop, s = self.shop, self.settings
        kept = shop.run.measured(stage, self._chat_settings(stage), self._against(stage))
        kept.mkdir(parents=True, exist_ok=True)
        model = shop.model(stage)
        answers = evaluate.answer_prompts(model, shop.tokenizer, self.prompts, s.temperature, 99,
                                          shop.machine.precision, f"evaluating {stage}")
        verdicts = evaluate.judge_all(self.oracle, self.prompts, answers)
        rows = [{"prompt_id": p.id, "skill": p.skill, "kind": p.kind, "messages": list(p.messages), "answer": a,
                 "correct": v.correct, "score": round(evaluate.overall(v, p), 3)}
                for p, a, v in zip(self.prompts, answers, verdicts, strict=True)]
        write_rows(kept / "answers.jsonl", rows)
        metrics = evaluate.chat_metrics(self.prompts, verdicts)
        sft = kept if stage == "sft" else shop.run.measured("sft", self._chat_settings("sft"))
        against = [row["answer"] for _, row in joined(rows, read_rows(sft / "answers.jsonl"))]
        metrics |= evaluate.win_tie_loss(self.prompts, verdicts, evaluate.judge_all(self.oracle, self.prompts, against))
        metrics["words"] = evaluate.stats.mean([len(a.split()) for a in answers])
        helpful = [p for p in self.prompts if p.kind == "helpful"]
        greedy = evaluate.answer_prompts(model, shop.tokenizer, helpful, 0.0, 99, shop.machine.precision)
        metrics["correct_greedy"] = evaluate.stats.rate(
            [v.correct for v in evaluate.judge_all(self.oracle, helpful, greedy)])
        if stage in DIALOGUES:
            metrics["retention"], dialogues = evaluate.retention(
                self.oracle, model, shop.tokenizer, self.dialogues[0], self.dialogues[1], 7, shop.machine.precision,
                s.temperature)
            write_rows(kept / "dialogues.jsonl",
                       [{"instruction": i.text, "questions": q, "answers": a}
                        for q, i, a in zip(*self.dialogues, dialogues, strict=True)])
        rollouts = shop.run.folder(stage) / "rollouts"
        if rollouts.exists():
            metrics["true_score_by_iteration"] = [self._rollouts(path) for path in sorted(rollouts.iterdir())]
        return metrics

    def _rollouts(self, path: Path) -> dict[str, Any]:
        """True helpfulness and safety of what PPO wrote in one iteration, on training prompts."""
        rows = [(Prompt(**row["prompt"]), row["answer"]) for row in read_rows(path)]
        verdicts = [(p, self.oracle.judge(p, a)) for p, a in rows]
        return {"helpfulness": evaluate.stats.mean([v.helpfulness for p, v in verdicts if p.kind != "unsafe"]),
                "safety": evaluate.stats.mean([v.safety for p, v in verdicts if p.kind == "unsafe"])}

    def _reward(self, stage: str, rows: dict[str, list[dict]]) -> dict[str, Any]:
        shop, s = self.shop, self.settings
        kind = stage.split("-")[1]
        model = reward.load_reward(shop.run.folder(stage)).to(shop.machine.device)
        pairs = {k: reward.pair_scores(model, shop.tokenizer, r, shop.machine) for k, r in rows.items()}
        other = "safety" if kind == "helpfulness" else "helpfulness"
        metrics = {
            "accuracy": reward.accuracy(pairs[kind]),
            "accuracy_by_grade": reward.accuracy_by_grade(rows[kind], pairs[kind]),
            "accuracy_on_other": reward.accuracy(pairs[other]),
            "accuracy_on_other_by_grade": reward.accuracy_by_grade(rows[other], pairs[other]),
            "calibration": reward.calibration(pairs[kind]),
        }
        if kind == "helpfulness":
            truth = truth_pairs(self.town, s.split, s.truth_pairs, 5)
            metrics["truth"] = evaluate.truth_accuracy(model, shop.tokenizer, truth, shop.machine)
        return metrics

    def _test_rows(self, stage: str, kind: str) -> list[dict]:
        """`test_pairs` pairs on held-out prompts, from all rounds so far as equally as they allow: the report keeps
        test pairs of every batch too (section 3.2.2). Where the rounds hold fewer, all of them."""
        version = int(stage.split("-v")[1].split("-")[0])
        rounds = [preference_rows(self.shop.run, v, kind, "test") for v in range(1, version + 1)]
        shares = shared_out([len(rows) for rows in rounds], self.settings.test_pairs)
        return [row for rows, n in zip(rounds, shares, strict=True) for row in evenly(rows, n)]

    def compare_heads(self, stages: Sequence[str], sampler: str, version: int) -> None:
        """Best-of-K on held-out prompts by each helpfulness model, from the same answers: what each choice is
        truly worth."""
        shop, s = self.shop, self.settings

        def build(folder: Path) -> dict[str, Any]:
            prompts = TownSource(self.town).prompts("helpful", s.best_of_prompts, 4321, s.split)
            answers = sample_answers(shop.model(sampler), shop.tokenizer, [p.messages for p in prompts], k=s.best_of,
                                     seed=17, precision=shop.machine.precision, what="best of K, held out")
            flat_prompts = [p for p in prompts for _ in range(s.best_of)]
            metrics = {}
            for stage in stages:
                model, safety = shop.rewards(version, stage)
                flat = gate.combined_scores(model, safety, shop.tokenizer, flat_prompts,
                                                 [a for row in answers for a in row], shop.machine)
                scores = [flat[i:i + s.best_of] for i in range(0, len(flat), s.best_of)]
                metrics[model.head] = {"stage": stage, "reward": rejection.best_of_curve(scores),
                                       "truth": evaluate.true_best_of(self.oracle, prompts, answers, scores)}
            return metrics

        shop.run.stage("best-of-k", build, asdict(s), [sampler, *stages, f"reward-safety-v{version}"])


def annotations_stage(shop: Workshop, labels: Sequence[dict], annotators: Sequence[Annotator], oracle: Oracle,
                      town: Town, held_out: str = "test") -> None:
    """People's labels as rows for the reward models of every round, and how far people and simulated annotators agree
    on the same pairs.

    Labels on prompts that the evaluation uses, the split `held_out`, are left out: no model may learn from them.
    Agreement with simulated annotators can be had only where the oracle knows the prompt.
    """
    people = [x for x in labels if x["annotator_kind"] == "person"]
    kept_away = by_messages(every_prompt(town, held_out))
    trained = [x for x in people if messages_key(x["prompt"]) not in kept_away]
    kinds: tuple[Kind, ...] = ("helpfulness", "safety")
    resolved = {kind: resolve(trained, kind) for kind in kinds}
    if not any(r.rows for r in resolved.values()):
        raise LabError(f"the annotation store gives no training row: {len(people)} labels by people, of which "
                       f"{len(people) - len(trained)} are on held-out prompts; label pairs with: llama2lab annotate")

    def build(folder: Path) -> dict[str, Any]:
        known = by_messages(every_prompt(town, "train") + every_prompt(town, "dev"))
        against = {}
        for kind in kinds:
            write_rows(folder / f"{kind}.jsonl", resolved[kind].rows)
            items = {x["item_id"]: (known[messages_key(x["prompt"])], *x["answers"]) for x in trained
                     if x["kind"] == kind and messages_key(x["prompt"]) in known}
            simulated = simulated_labels(annotators, oracle, items, kind, shop.seed)
            against[kind] = people_against_simulated([x for x in trained if x["kind"] == kind], simulated)
        return {**{kind: resolved[kind].counts for kind in kinds}, "held_out": len(people) - len(trained),
                "annotators": len({x["annotator"] for x in people}), "agreement": agreement_table(people),
                "people_against_simulated": against}

    shop.people = "annotations"
    shop.run.stage(shop.people, build, [digest(fingerprint(people)), held_out, [asdict(a) for a in annotators],
                                        town.digest, shop.seed])


def run_recipe(recipe: Recipe, out: str | Path, seed: int = 0, device: str = "auto", precision: str = "auto",
               labels: Sequence[dict] = (), people_share: float | None = None) -> dict[str, Any]:
    """Run the whole recipe in folder `out`, or go on with it; returns what RUN/results.json holds.

    With `labels`, as `Store.labels` gives them, the reward models of every round also train on people's
    preferences: on all of them, or on so many rows that `people_share` of them are people's.
    """
    check_seed(seed)
    if people_share is not None and not 0 <= people_share <= 1:
        raise LabError(f"the share of people's rows is a number from 0 to 1, not {people_share}")
    this_machine(device, precision)  # what is not on this machine is said before a folder is made
    with Run(out, {"preset": recipe.preset, "seed": seed}) as run:
        return build_run(run, recipe, seed, machine_of(run, device, precision), labels, people_share)


def build_run(run: Run, recipe: Recipe, seed: int, machine: Machine, labels: Sequence[dict],
              people_share: float | None) -> dict[str, Any]:
    """All stages of a run that is open, and its figures."""
    town = load_town()
    annotators = annotators_of(recipe.vendors)
    shop = Workshop(run, seed, machine, None, TownSource(town))  # type: ignore[arg-type]
    if labels:  # before anything is trained: a store without a usable label is said at once
        annotations_stage(shop, labels, annotators, Oracle(town), town, recipe.evaluate.split)
        shop.people_share = people_share
    p = recipe.pretrain
    shop.documents = pretraining_corpus(town, min(p.words, 200_000), seed + 1)

    # what the corpus is made from: the town's files and the code that writes it
    corpus = digest([town.digest, pretraining_corpus(town, 20_000, seed)])

    words = min(p.words, 400_000)

    def tokenizer_stage(folder: Path) -> dict[str, Any]:
        documents = pretraining_corpus(town, words, seed)
        tokenizer = train_tokenizer(documents, p.model["vocab_size"], chat_template=CHAT_TEMPLATE)
        tokenizer.save_pretrained(folder)
        return {"vocab_size": len(tokenizer),
                "bytes_per_token": sum(len(d.encode()) for d in documents[:500])
                / sum(len(tokenizer(d)["input_ids"]) for d in documents[:500])}

    shop.tokenizer = load_tokenizer(run.stage("tokenizer", tokenizer_stage, [p.model["vocab_size"], words, corpus]))

    def base(folder: Path) -> dict[str, Any]:
        model, metrics = pretrain(pretraining_corpus(town, p.words, seed), shop.tokenizer, p, seed, machine,
                                  folder)
        save_model(folder, model, shop.tokenizer)
        return metrics | measure_base(model, shop, town, seed)

    run.stage("base", base, [asdict(p), corpus, machine.precision], ["tokenizer"])

    clean = demonstrations(town, recipe.sft.examples, seed, "clean")
    noisy = demonstrations(town, recipe.noisy.examples, seed, "noisy")
    for stage, settings, rows in (("sft", recipe.sft, clean), ("sft-noisy", recipe.noisy, noisy)):
        def build(folder: Path, stage: str = stage, settings: Any = settings, rows: Any = rows) -> dict[str, Any]:
            write_rows(folder / "rows.jsonl", rows)
            return finetune(shop, "base", rows, settings, folder, stage)

        run.stage(stage, build, [asdict(settings), digest(rows)], ["base"])

    judge = Judge(shop, town, recipe.evaluate)
    judge.measure("sft")
    judge.measure("sft-noisy")

    def annotate(pairs: Sequence[Pair], kind: Kind) -> list[dict]:
        return label_pairs(annotators, judge.oracle, pairs, kind, seed)

    rlhf(shop, recipe.rlhf, annotate, list(recipe.vendors), judge.measure, judge.prompts)

    if recipe.compare_heads:
        plain = replace(recipe.rlhf.helpfulness, head="linear")
        name_plain = reward_stage(shop, plain, 5, "helpfulness", "-linear")
        judge.measure(name_plain)
        judge.compare_heads(["reward-helpfulness-v5", name_plain], "sft", 5)
        judge.measure(ppo_stage(shop, recipe.rlhf.ppo, "rlhf-v4", "rlhf-v5-linear", 5, name_plain))
    return run.results(describe_machine(), recipe.evaluate.split)


def measure_base(model: Llama, shop: Workshop, town: Town, seed: int) -> dict[str, Any]:
    """What the base model learnt: bits per byte of held-out documents, and the facts it completes rightly."""
    return {"bits_per_byte": bits_per_byte(model, shop.tokenizer, heldout_documents(town, seed, 200), shop.machine),
            "known_facts": evaluate.known_facts(model, shop.tokenizer, fact_probes(town), shop.machine.precision)}
