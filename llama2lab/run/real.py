"""The recipe on real text: what `llama2lab run --recipe data/recipes/real.yaml` does.

The stages are those of the town; what differs is where texts come from and who judges. There is no oracle here, so:

- the pairs are divided by dialogue (`part_of`). The reward models learn from "train"; "judge" pairs train two further
  models that no policy ever sees, which then judge the policies on "test" prompts; each reward model is tested on
  people's pairs of the parts it has not seen;
- refusals are counted by their wording on XSTest's safe and unsafe questions.

A judge of this kind is itself right on some six pairs of ten, and it shares its habits with the models that trained
the policy: the figures say so beside the win rates. They show whether the recipe did what it optimises, no more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.answers import joined
from llama2lab.engine.device import Machine, describe_machine, machine_of, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, read_rows, write_rows
from llama2lab.engine.loop import Optim
from llama2lab.engine.recipefile import changed, read_recipe
from llama2lab.engine.runs import Run
from llama2lab.engine.seeds import check_seed
from llama2lab.engine.settings import Clash, Count, CountOrNone, Share, Split, Temperature, Text, checked
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import checkpoint_digest, context_of, load_model, parameters_of, save_model
from llama2lab.model.generate import generate
from llama2lab.model.network import Llama
from llama2lab.model.tokenizer import load_tokenizer, train_tokenizer
from llama2lab.run import start_from
from llama2lab.run.realdata import SourceSettings, data_folder, load_role
from llama2lab.run.realsplits import KINDS, PARTS, PairPrompts, Texts, fit_demonstrations, fit_pairs, part_of, place_of
from llama2lab.run.start_from import find_checkpoint, with_control_tokens, with_room
from llama2lab.stages import evaluate, reward
from llama2lab.stages import rounds as rlhf
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.pretrain import PretrainSettings, bits_per_byte, parameter_count, pretrain
from llama2lab.stages.rejection import RejectionSettings
from llama2lab.stages.reward import RewardModel, RewardSettings
from llama2lab.stages.rounds import RlhfSettings, Workshop
from llama2lab.stages.sft import SFTSettings
from llama2lab.town.items import Prompt
from llama2lab.town.language import refuses

ANSWER_TOKENS = 48  # the most that is sampled where nothing else is said (sample.sample_answers)
READING = 64  # held-out texts on which every chat stage is compared with the one before it


@checked
@dataclass(frozen=True)
class DataSettings:
    """Where the rows of each role come from, and the share of malformed ones that stops the run."""

    pretrain: SourceSettings = SourceSettings()
    sft: SourceSettings = SourceSettings()
    helpful: SourceSettings = SourceSettings()
    harmless: SourceSettings = SourceSettings()
    refusals: SourceSettings = SourceSettings()
    max_malformed: Share = 0.05


@checked
@dataclass(frozen=True)
class RealEvaluateSettings:
    split: Split = "test"  # "dev" for choices: nothing may be chosen on "test"
    stories: CountOrNone = 300  # held-out documents
    prompts: Count = 300  # of each kind, at most
    temperature: Temperature = 1.0
    sample_stories: CountOrNone = 5
    story_tokens: Count = 200


@checked
@dataclass(frozen=True)
class RealRecipe:
    """Every setting of a run on real text; data/recipes/real.yaml is the example."""

    data: DataSettings = DataSettings()
    start_from: Text = ""  # a checkpoint folder (also inside the data folder) or hub name, instead of pretraining
    pretrain: PretrainSettings = PretrainSettings()
    sft: SFTSettings = SFTSettings()
    helpfulness: RewardSettings = RewardSettings(margin="none")
    safety: RewardSettings = RewardSettings(margin="none", other_share=0.1)
    prompt_tokens: Count = 160  # longer prompts are not answered in rejection sampling, PPO and evaluation
    rejection: RejectionSettings = RejectionSettings()
    ppo: PPOSettings = PPOSettings()
    evaluate: RealEvaluateSettings = RealEvaluateSettings()

    def __post_init__(self) -> None:
        if self.pretrain.model and not self.start_from:
            self.check_context(self.pretrain.config.context, "max_seq_len", "pretrain.model.max_seq_len")

    def check_context(self, context: int, whence: str, *settings: str) -> None:
        """Clash if the lengths do not fit in the model's context, which `settings` set too."""
        for role in ("sft", "helpful", "harmless"):
            source = getattr(self.data, role)
            if (source.files or source.hub) and source.max_tokens > context:
                raise Clash(f"must be at most the model's context ({whence}, {context}), not {source.max_tokens}",
                            f"data.{role}.max_tokens", *settings)
        longest = min(self.prompt_tokens, max(self.data.helpful.max_tokens, self.data.harmless.max_tokens))
        answer = max(ANSWER_TOKENS, self.ppo.max_new_tokens)
        if longest + answer > context:
            raise Clash(f"is too much: prompts of {longest} tokens and answers of {answer} do not fit in the model's "
                        f"context ({whence}, {context})", "prompt_tokens", "ppo.max_new_tokens", *settings)


def load_real_recipe(path: str | Path, data_dir: Path | None = None) -> RealRecipe:
    """A recipe file with `data:` at its top. Where it starts from a checkpoint (also one inside `data_dir`), learning
    rates that it does not give are those for a trained model of that size: see start_from.py. LabError with file, line
    and what may stand there."""
    file = read_recipe(path)
    recipe = changed(RealRecipe(), file)
    if recipe.start_from:
        start = find_checkpoint(recipe.start_from, data_dir)
        recipe = changed(start_from.for_checkpoint(RealRecipe(), parameters_of(start)), file)
        try:
            recipe.check_context(context_of(start), "the checkpoint's max_position_embeddings", "start_from")
        except Clash as e:
            lines = [file.lines[place] for place in (tuple(name.split(".")) for name in e.settings)
                     if place in file.lines]
            file.refuse(lines[0], str(e))
    needed = ["sft", "helpful", "harmless", *([] if recipe.start_from else ["pretrain"])]
    for role in needed:
        source = getattr(recipe.data, role)
        if not source.files and not source.hub:
            file.refuse(file.line(("data", role)), f"data.{role} names neither files nor hub; the recipe needs this "
                                                   "role")
    if not recipe.start_from and not recipe.pretrain.model:
        file.refuse(file.line(("pretrain", "model")), "pretrain.model is missing; give the model's sizes, as "
                    "data/recipes/real.yaml does, or a checkpoint with start_from")
    return recipe


def load_texts(recipe: RealRecipe, folder: Path | None, seed: int) -> Texts:
    """All rows of all roles; LabError as `load_role`."""
    rows: dict[str, list[dict]] = {}
    tallies = {}
    for role in ("pretrain", "sft", "helpful", "harmless", "refusals"):
        source = getattr(recipe.data, role)
        if not source.files and not source.hub:
            rows[role] = []
            continue
        loaded, tallies[role] = load_role(role, source, folder, recipe.data.max_malformed, seed)
        rows[role] = loaded.to_list()
    stories = sorted({r["text"] for r in rows["pretrain"]}, key=place_of)  # equal texts once: none is in both parts
    held = min(recipe.evaluate.stories, len(stories) // 10)
    for role in KINDS.values():
        for row in rows[role]:
            row["part"] = part_of(row["prompt"])
    return Texts(stories[held:], stories[:held], rows["sft"], {k: rows[r] for k, r in KINDS.items()},
                 rows["refusals"], tallies)


# ---- the run -------------------------------------------------------------------------------------------------


def run_real_data(recipe_path: str | Path, out: str | Path, seed: int = 0, device: str = "auto",
                  precision: str = "auto", data_dir: str | Path | None = None) -> dict[str, Any]:
    """Run the recipe on real text in folder `out`, or go on with it; returns what RUN/results.json holds.

    `data_dir` is the folder of local copies; without it the environment variable LLAMA2LAB_DATA, and without that
    the hub. All texts are read before the first stage, so that a mistake in them shows at once.
    """
    check_seed(seed)
    this_machine(device, precision)  # what is not on this machine is said before a folder is made
    folder = data_folder(data_dir)
    recipe = load_real_recipe(recipe_path, folder)
    texts = load_texts(recipe, folder, seed)
    with Run(out, {"preset": "real", "recipe": Path(recipe_path).stem, "seed": seed}) as run:
        return build_run(run, recipe, texts, folder, seed, machine_of(run, device, precision))


def build_run(run: Run, recipe: RealRecipe, texts: Texts, folder: Path | None, seed: int, machine: Machine,
              ) -> dict[str, Any]:
    """All stages of a run that is open, and its figures."""
    shop = Workshop(run, seed, machine, None, None)  # type: ignore[arg-type]
    shop.documents = texts.stories
    start = find_checkpoint(recipe.start_from, folder) if recipe.start_from else ""
    for line in start_from.hasty(recipe, parameters_of(start)) if start else ():
        run.say(f"WARNING: {line}")

    tokenizer_stage(shop, recipe, texts, start)
    pairs_stage(shop, recipe, texts)
    base_stage(shop, recipe, texts, start)
    sft_stage(shop, recipe, texts)
    reading = Reading(shop, texts)
    bits = reading.measure("sft", reading.measure("base"), "sft.optim", recipe.sft.optim)
    shop.source = PairPrompts(run, shop.tokenizer, recipe.prompt_tokens)
    judges = {kind: judge_stage(shop, getattr(recipe, kind), kind) for kind in KINDS}
    referee = Referee(shop, recipe, texts.probes, judges)
    referee.measure("sft")
    for kind in KINDS:
        name = rlhf.reward_stage(shop, getattr(recipe, kind), 1, kind)
        referee.measure_reward(name, kind, ("judge", "test"))
    settings = RlhfSettings(rejection=recipe.rejection, ppo=recipe.ppo)
    best = rlhf.rejection_stage(shop, settings, 1, "sft")
    bits = reading.measure(best, bits, "rejection.optim", recipe.rejection.optim)
    referee.measure(best)
    last = rlhf.ppo_stage(shop, recipe.ppo, best, "rlhf-v2", 1)
    reading.measure(last, bits, "ppo.optim", recipe.ppo.optim)
    referee.measure(last)
    return run.results(describe_machine(), recipe.evaluate.split)


def tokenizer_stage(shop: Workshop, recipe: RealRecipe, texts: Texts, start: str) -> None:
    """A tokenizer trained on the training texts of all roles; or the checkpoint's, with the chat's control tokens."""
    training = [*texts.stories, *(m["content"] for row in texts.demonstrations for m in row["messages"]),
                *(m["content"] for rows in texts.pairs.values() for row in rows if row["part"] == "train"
                  for m in [*row["prompt"], *row["chosen"], *row["rejected"]])]

    def build(folder: Path) -> dict[str, Any]:
        added: list[str] = []
        if start:
            tokenizer, added = with_control_tokens(load_tokenizer(start))
        else:
            tokenizer = train_tokenizer(training, recipe.pretrain.model["vocab_size"], chat_template=CHAT_TEMPLATE)
        tokenizer.save_pretrained(folder)
        sample = training[:: max(1, len(training) // 500)]
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        metrics = {"vocab_size": len(tokenizer), "bytes_per_token": sum(len(t.encode()) for t in sample)
                   / max(1, sum(map(len, ids))), "data": {r: t.metrics() for r, t in texts.tallies.items()}}
        return metrics | ({"added_control_tokens": added} if start else {})

    content = checkpoint_digest(start) if start else ""
    settings = [content, recipe.pretrain.model.get("vocab_size"), fingerprint(texts)]
    shop.tokenizer = load_tokenizer(shop.run.stage("tokenizer", build, settings))


def fingerprint(texts: Texts) -> str:
    """Changes when any text does."""
    whole = json.dumps([texts.stories, texts.heldout_stories, texts.demonstrations, texts.pairs, texts.probes])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def pairs_stage(shop: Workshop, recipe: RealRecipe, texts: Texts) -> None:
    """The pairs of both kinds and all parts, cut to length: people's preferences, in the place of round 1's."""

    def build(folder: Path) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for kind, role in KINDS.items():
            rows, counts = fit_pairs(shop.tokenizer, texts.pairs[kind], getattr(recipe.data, role).max_tokens)
            parts: dict[str, list[dict]] = {part: [] for part in PARTS}
            for row in rows:
                parts[row["part"]].append({k: v for k, v in row.items() if k != "part"} | {"round": 1})
            for part, some in parts.items():
                if not some:
                    raise LabError(f"{role}: too few pairs, none is left for the part {part!r}; give more rows")
                write_rows(folder / f"{kind}.{part}.jsonl", some)
            metrics[kind] = {**{part: len(some) for part, some in parts.items()}, **counts}
        return metrics

    limits = [getattr(recipe.data, role).max_tokens for role in KINDS.values()]
    shop.run.stage("preferences-v1", build, limits, ["tokenizer"])


def base_stage(shop: Workshop, recipe: RealRecipe, texts: Texts, start: str) -> None:
    """Pretraining on the stories, or somebody's checkpoint with room for the control tokens."""
    s = recipe.evaluate

    def build(folder: Path) -> dict[str, Any]:
        if start:
            original = load_model(start)
            model = with_room(original, load_tokenizer(start), shop.tokenizer, shop.seed)
            metrics = {"started_from": recipe.start_from, "parameters": parameter_count(model),
                       "control_tokens_added": len(shop.tokenizer) - len(load_tokenizer(start))}
        else:
            model, metrics = pretrain(texts.stories, shop.tokenizer, recipe.pretrain, shop.seed, shop.machine, folder)
        save_model(folder, model, shop.tokenizer)
        model.eval()
        if texts.heldout_stories:
            metrics["bits_per_byte"] = bits_per_byte(model, shop.tokenizer, texts.heldout_stories, shop.machine,
                                                     min(512, model.config.context))
        metrics["stories"] = write_stories(model, shop.tokenizer, s.sample_stories, s.story_tokens,
                                           shop.machine.precision)
        return metrics

    content = checkpoint_digest(start) if start else ""
    shop.run.stage("base", build, [content, asdict(recipe.pretrain), asdict(s), shop.machine.precision], ["tokenizer"])


class Reading:
    """How well chat stages still read held-out text: what fine-tuning must not cost."""

    def __init__(self, shop: Workshop, texts: Texts):
        dialogues = [m["content"] for rows in texts.pairs.values() for row in rows if row["part"] == "test"
                     for m in [*row["prompt"], *row["chosen"]]]
        self.shop = shop
        self.texts = sorted(set(texts.heldout_stories or dialogues), key=place_of)[:READING]

    def measure(self, stage: str, before: float | None = None, name: str = "", optim: Optim | None = None) -> float:
        """Bits a byte of a finished stage. `before` are those of the stage it was trained from: where it reads so much
        worse, that is said, and stands in its figures; `name` is the setting of its `optim`."""
        shop = self.shop

        def build() -> dict[str, Any]:
            model = shop.model(stage)
            figure = bits_per_byte(model, shop.tokenizer, self.texts, shop.machine, min(256, model.config.context))
            warning = start_from.worsened(stage, name, optim, before, figure["mean"]) if before and optim else ""
            return {"heldout_bits_per_byte": figure, "warnings": [warning] if warning else []}

        found = shop.run.note(stage, build, ["reading", digest(self.texts), start_from.WORSE])
        for warning in found["warnings"]:
            shop.run.say(f"WARNING: {warning}")
        return found["heldout_bits_per_byte"]["mean"]


def write_stories(model: Llama, tokenizer: Any, n: int, tokens: int, precision: str) -> list[str]:
    """What the model writes from nothing, at temperature 0.8 and top-p 0.95: for people to read."""
    if n < 1:
        return []
    written = generate(model, [[tokenizer.bos_token_id]] * n, min(tokens, model.config.context - 1), temperature=0.8,
                       top_p=0.95, eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, seed=1,
                       precision=precision)
    return [tokenizer.decode(g.tokens, skip_special_tokens=True).strip() for g in written]


def sft_stage(shop: Workshop, recipe: RealRecipe, texts: Texts) -> None:
    source = recipe.data.sft

    def build(folder: Path) -> dict[str, Any]:
        rows = fit_demonstrations(shop.tokenizer, texts.demonstrations, source, recipe.sft.examples, shop.seed)
        write_rows(folder / "rows.jsonl", rows)
        return rlhf.finetune(shop, "base", rows, recipe.sft, folder, "sft") | {"read": len(texts.demonstrations)}

    shop.run.stage("sft", build, [asdict(recipe.sft), source.max_tokens, source.max_answer_tokens], ["base"])


def judge_stage(shop: Workshop, s: RewardSettings, kind: str) -> str:
    """A reward model on the pairs that the policies' reward models do not see."""
    name = f"judge-{kind}"

    def build(folder: Path) -> dict[str, Any]:
        own, other = (rlhf.preference_rows(shop.run, 1, k, "judge") for k in (kind, *(k for k in KINDS if k != kind)))
        rows = reward.mix(own, other, s.other_share, shop.seed)
        model, metrics = reward.train_reward(shop.model("sft"), shop.tokenizer, rows, s, shop.seed + 500, shop.machine,
                                             folder, shop.frozen("sft"), name)
        reward.save_reward(folder, model, shop.tokenizer, shop.run.folder("sft"))
        return metrics

    shop.run.stage(name, build, [asdict(s), kind], ["sft", "preferences-v1"])
    return name


# ---- judging without an oracle -------------------------------------------------------------------------------


class Referee:
    """Measures finished stages: by the held-out reward models, by people's held-out pairs, by refusals."""

    def __init__(self, shop: Workshop, recipe: RealRecipe, probes: list[dict], judges: dict[str, str]):
        self.shop, self.settings, self.judges = shop, recipe.evaluate, judges
        s, pools = recipe.evaluate, shop.source.pools  # type: ignore[attr-defined]
        self.prompts = [p for kind in ("helpful", "unsafe") for p in pools[kind, s.split][:s.prompts]]
        self.probes = [Prompt(f"refusals/{i}", ({"role": "user", "content": row["prompt"]},), "refusals", row["label"],
                              "", "test") for i, row in enumerate(probes)]
        accuracy = {kind: self.measure_reward(name, kind, ("train", "test")) for kind, name in judges.items()}
        self.limits = ("no oracle: the judges are reward models trained on other pairs than the policy's; on people's "
                       "held-out pairs they are right in "
                       + " and ".join(f"{a['accuracy']['mean']:.3f} ({k})" for k, a in accuracy.items())
                       + " of the cases, and may share the training reward's mistakes")

    def measure_reward(self, stage: str, kind: str, parts: tuple[str, ...]) -> dict[str, Any]:
        """Accuracy on people's pairs of parts that the model has not seen."""
        shop = self.shop

        def measure() -> dict[str, Any]:
            model = load_reward(shop, stage)
            rows = {k: [row for part in parts for row in rlhf.preference_rows(shop.run, 1, k, part)] for k in KINDS}
            pairs = {k: reward.pair_scores(model, shop.tokenizer, r, shop.machine) for k, r in rows.items()}
            other = next(k for k in KINDS if k != kind)
            grades = reward.accuracy_by_grade(rows[kind], pairs[kind])
            sides = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows[kind]]
            return {"accuracy": reward.accuracy(pairs[kind]), "accuracy_on_other": reward.accuracy(pairs[other]),
                    "accuracy_by_grade": {g: figure for g, figure in grades.items() if figure["n"]},
                    "calibration": reward.calibration(pairs[kind]),
                    "longer_is_chosen": stats.rate([c > r for c, r in sides])}  # what length alone would get

        return shop.run.note(stage, measure, [kind, parts])

    def measure(self, stage: str) -> None:
        """A chat stage's answers to held-out prompts, against those of SFT, and its refusals."""
        shop, s = self.shop, self.settings

        def build() -> dict[str, Any]:
            asked = [*self.prompts, *self.probes]
            answers = evaluate.answer_prompts(shop.model(stage), shop.tokenizer, asked, s.temperature, 99,
                                              shop.machine.precision, f"evaluating {stage}")
            scores = {kind: reward.score_answers(load_reward(shop, name), shop.tokenizer, [p.messages for p in asked],
                                                 answers, shop.machine) for kind, name in self.judges.items()}
            rows = [{"prompt_id": p.id, "skill": p.skill, "kind": p.kind, "messages": list(p.messages), "answer": a,
                     "helpfulness": round(h, 4), "safety": round(x, 4)}
                    for p, a, h, x in zip(asked, answers, scores["helpfulness"], scores["safety"], strict=True)]
            kept = shop.run.measured(stage, settings, judges)
            kept.mkdir(parents=True, exist_ok=True)
            write_rows(kept / "answers.jsonl", rows)
            sft = rows if stage == "sft" else read_rows(shop.run.measured("sft", settings, judges) / "answers.jsonl")
            return compare(rows, sft) | {"limits": self.limits}

        judges = tuple(self.judges.values())  # verdicts are theirs: other judges, other figures
        settings = [asdict(s), digest([[p.id, p.messages, p.kind] for p in (*self.prompts, *self.probes)])]
        shop.run.note(stage, build, settings, ("answers.jsonl",), judges)


def load_reward(shop: Workshop, stage: str) -> RewardModel:
    return reward.load_reward(shop.run.folder(stage)).to(shop.machine.device)


def compare(rows: list[dict], against: list[dict]) -> dict[str, Any]:
    """Figures of one stage's judged answers, `against` being SFT's to the same prompts. A win rate counts a tie as
    half: helpful prompts by the helpfulness judge, the harmless pairs' prompts by the safety judge."""
    metrics: dict[str, Any] = {}
    for kind, judge, name in (("helpful", "helpfulness", "win_rate_vs_sft"),
                              ("unsafe", "safety", "safety_win_rate_vs_sft")):
        both = [(a, b) for a, b in joined(rows, against, kind=kind) if a["skill"] == "real"]
        metrics[name] = stats.mean([(a[judge] > b[judge]) + 0.5 * (a[judge] == b[judge]) for a, b in both])
        metrics[f"{judge}_by_judge"] = stats.mean([a[judge] for a, _ in both])
    probes = [row for row in rows if row["skill"] == "refusals"]
    for label, name in (("safe", "false_refusal_rate"), ("unsafe", "refusal_rate_on_unsafe")):
        if probes:
            metrics[name] = stats.rate([refuses(row["answer"]) for row in probes if row["kind"] == label])
    metrics["words"] = stats.mean([len(row["answer"].split()) for row in rows if row["skill"] == "real"])
    return metrics
