"""The benchmark of what follows pretraining: fine-tuning, reward model, PPO; TRL's trainers beside the first two.

The library's own functions train, with the preset's batches and optimisers, on the town's questions and answers, so
that lengths are real ones. What is timed, of ours and of TRL's alike: all steps of the training loop, batches put
together and optimiser included; not the texts' encoding and packing, nor the making of the trainer.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from llama2lab.engine.device import Machine, wait
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import epoch_batches
from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.model.chat import CHAT_TEMPLATE, encode_chats
from llama2lab.model.checkpoint import save_reward_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run.presets import PRESETS
from llama2lab.run.turns import OURS, compared, seconds_of_loop, share_of_ceiling, take_turns
from llama2lab.stages import gate
from llama2lab.stages.ppo import Critic, ppo
from llama2lab.stages.pretrain import training_flops_per_token
from llama2lab.stages.reward import RewardModel, encode_answers, train_reward
from llama2lab.stages.sft import sft
from llama2lab.town.corpus import pretraining_corpus
from llama2lab.town.demonstrations import answer_for, clean_style, demonstrations, noisy_style
from llama2lab.town.items import Prompt
from llama2lab.town.prompts import TownSource, draw_prompts
from llama2lab.town.town import load_town

PEER = "trl"
CONVERSATIONS = 200  # of fine-tuning: an epoch of ten steps
PAIRS = 160  # of the reward model: five steps
WORDS = 60_000  # of the corpus that tokenizer and replay read
ANSWER_TOKENS = 27  # of PPO's answers, as they were on average in the shipped run: an untrained policy ends none itself
SEED = 0


@dataclass(frozen=True)
class Texts:
    """What is trained on, of the town; and the tokenizer for a model of `vocab_size`."""

    tokenizer: Any
    documents: list[str]
    conversations: list[dict]
    pairs: list[dict]  # preference rows
    prompts: list[Prompt]  # of an iteration of PPO


def town_texts(vocab_size: int) -> Texts:
    """The same in every process."""
    town, settings, rng = load_town(), PRESETS["mini"].rlhf.ppo, random.Random(SEED)
    documents = pretraining_corpus(town, WORDS, SEED)
    pairs = [
        {
            "prompt": list(prompt.messages),
            **{
                side: [{"role": "assistant", "content": answer_for(town, prompt, style(prompt, rng), rng)}]
                for side, style in (("chosen", clean_style), ("rejected", noisy_style))
            },
            "grade": rng.choice(GRADES),
        }
        for prompt in draw_prompts(town, "rlhf", PAIRS, SEED, kinds=("helpful",))
    ]
    unsafe = round(settings.batch * settings.unsafe_share)
    borderline = round((settings.batch - unsafe) * settings.borderline_share)
    numbers = {"helpful": settings.batch - unsafe - borderline, "borderline": borderline, "unsafe": unsafe}
    return Texts(
        train_tokenizer(documents, vocab_size, chat_template=CHAT_TEMPLATE),
        documents,
        demonstrations(town, CONVERSATIONS, SEED),
        pairs,
        [prompt for kind, n in numbers.items() for prompt in TownSource(town).prompts(kind, n, SEED)],
    )


def training_flops(config: ModelConfig, lengths: Sequence[int], predicted: int) -> float:
    """Operations of an epoch on documents of these lengths, `predicted` of whose tokens are to be predicted: the others
    need no product with the language-model head."""
    every = sum(n * training_flops_per_token(config, n) for n in lengths)
    return every - 6.0 * config.dim * config.vocab_size * (sum(lengths) - predicted)


# ---- the rows of the benchmark -------------------------------------------------------------------------------------


def sft_row(ours: Llama, theirs: nn.Module, texts: Texts, machine: Machine, repeats: int) -> dict[str, Any]:
    """Tokens a second of an epoch of fine-tuning, padding not counted: `sft` packs the conversations in rows. TRL takes
    as many conversations a step, sorted by length, so that little is padded (its own packing was slower here). Neither
    replays, and the format is not learnt beforehand."""
    settings = replace(PRESETS["mini"].sft, epochs=1.0, replay=0.0, format_examples=0)
    encoded = encode_chats(texts.tokenizer, [row["messages"] for row in texts.conversations])
    lengths = [len(ids) for ids, _ in encoded]
    steps = math.ceil(sum(lengths) / settings.batch_tokens)
    rows = [
        {"input_ids": ids, "labels": [token if wanted else -100 for token, wanted in zip(ids, mask, strict=True)]}
        for ids, mask in sorted(encoded, key=lambda chat: len(chat[0]))
    ]

    def our_epoch() -> float:
        model = copy.deepcopy(ours)
        return seconds_of_loop(
            lambda: sft(model, texts.tokenizer, texts.conversations, settings, SEED, machine), machine.device
        )

    trl = find_trl()

    def their_epoch() -> float:
        skip = {"dataset_kwargs": {"skip_prepare_dataset": True}}  # it is done
        arguments = _arguments(math.ceil(len(rows) / steps), settings.optim, machine) | skip
        return _seconds_of_trl(trl.SFTTrainer, trl.SFTConfig, arguments, theirs, rows, texts.tokenizer, machine)

    turns = take_turns({OURS: our_epoch} | ({PEER: their_epoch} if trl else {}), repeats)
    flops = training_flops(ours.config, lengths, sum(sum(mask) for _, mask in encoded))
    return {
        **compared(sum(lengths), turns, PEER, machine.precision),
        "share": share_of_ceiling(flops, turns.of(OURS), machine),
    }


def reward_row(ours: Llama, texts: Texts, machine: Machine, repeats: int) -> dict[str, Any]:
    """Pairs a second of an epoch of reward training, both with the report's linear head, which is what TRL has, and in
    the same batches. The likelihood head costs a step no more; what its reference says is read before the loop."""
    settings = replace(PRESETS["mini"].rlhf.helpfulness, head="linear", epochs=1.0)
    conversations = [row["prompt"] for row in texts.pairs]
    chosen, rejected = (
        [
            ids
            for ids, _ in encode_answers(
                texts.tokenizer, conversations, [row[side][0]["content"] for row in texts.pairs]
            )
        ]
        for side in ("chosen", "rejected")
    )
    margins = [MARGINS[settings.margin][row["grade"]] for row in texts.pairs]
    batches = epoch_batches(  # those of train_reward
        len(chosen),
        settings.batch_pairs,
        SEED,
        [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)],
    )
    rows = [
        {"chosen_ids": chosen[i], "rejected_ids": rejected[i], "margin": margins[i]}
        for step in range(math.ceil(len(chosen) / settings.batch_pairs))
        for i in batches(step)
    ]

    def our_epoch() -> float:
        model = copy.deepcopy(ours)
        return seconds_of_loop(
            lambda: train_reward(model, texts.tokenizer, texts.pairs, settings, SEED, machine), machine.device
        )

    trl = find_trl()
    theirs = reward_peer(ours, texts.tokenizer) if trl else None

    def their_epoch() -> float:
        arguments = _arguments(settings.batch_pairs, settings.optim, machine)
        return _seconds_of_trl(trl.RewardTrainer, trl.RewardConfig, arguments, theirs, rows, texts.tokenizer, machine)

    turns = take_turns({OURS: our_epoch} | ({PEER: their_epoch} if trl else {}), repeats)
    flops = training_flops(ours.config, [len(ids) for ids in chosen + rejected], 0)
    return {
        **compared(len(rows), turns, PEER, machine.precision),
        "share": share_of_ceiling(flops, turns.of(OURS), machine),
    }


def ppo_row(ours: Llama, texts: Texts, machine: Machine, repeats: int) -> dict[str, Any]:
    """Answers a second of an iteration of PPO: answers of ANSWER_TOKENS, their scores by two reward models, a step of
    policy and critic for each minibatch, replay. An untrained policy's answers are no words; it has no peer."""
    settings = replace(
        PRESETS["mini"].rlhf.ppo,
        iterations=1,
        critic_warmup=0,
        max_new_tokens=ANSWER_TOKENS,
        early_stop_kl=1e12,
    )
    reference = copy.deepcopy(ours).requires_grad_(False)
    helpfulness, safety = (
        RewardModel(copy.deepcopy(ours), reference, seed).to(machine.device).eval() for seed in (SEED, SEED + 1)
    )

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        return gate.combined_scores(helpfulness, safety, texts.tokenizer, prompts, answers, machine)

    def iteration() -> float:
        policy, critic = copy.deepcopy(ours), Critic(helpfulness)
        return seconds_of_loop(
            lambda: ppo(
                policy,
                critic,
                score,
                texts.tokenizer,
                lambda number: texts.prompts,
                settings,
                SEED,
                machine,
                documents=texts.documents,
                reference=reference,
            ),
            machine.device,
        )

    turns = take_turns({OURS: iteration}, repeats)
    return {OURS: len(texts.prompts) / turns.of(OURS), "ratio": None, "precision": machine.precision}


# ---- TRL -----------------------------------------------------------------------------------------------------------


def find_trl() -> Any:
    """The library, or None where the extra `peers` is not installed."""
    try:
        import trl
    except ImportError:
        return None
    return trl


def reward_peer(ours: Llama, tokenizer: Any) -> nn.Module:
    """transformers' reward model (SDPA attention) with the weights that `train_reward` begins with."""
    from transformers import AutoModelForSequenceClassification

    start = RewardModel(copy.deepcopy(ours), None, SEED)
    with tempfile.TemporaryDirectory() as folder:
        save_reward_model(Path(folder) / "m", start.backbone, start.score, tokenizer)
        theirs: nn.Module = AutoModelForSequenceClassification.from_pretrained(
            Path(folder) / "m", attn_implementation="sdpa", trust_remote_code=False, local_files_only=True
        )
    return theirs


def _arguments(batch: int, optim: Optim, machine: Machine) -> dict[str, Any]:
    """Of TRL's configs: the optimiser and schedule of ours, precision of ours, and nothing that only costs time."""
    return {
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "max_length": None,
        "learning_rate": optim.lr,
        "lr_scheduler_type": "cosine",
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps,
        "max_grad_norm": optim.clip,
        "optim": "adamw_torch_fused",
        "bf16": machine.precision == "bf16",
        "use_cpu": machine.device.type == "cpu",
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",  # the rows come in the order that saves padding
        "dataloader_pin_memory": machine.device.type == "cuda",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def _seconds_of_trl(
    trainer: Any,
    config: Any,
    arguments: dict[str, Any],
    model: nn.Module | None,
    rows: list[dict],
    tokenizer: Any,
    machine: Machine,
) -> float:
    """Of all steps of a TRL trainer on a copy of `model`."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            wait(machine.device)
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait(machine.device)
            marks.append(time.perf_counter())

    logging.getLogger("trl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(
            copy.deepcopy(model),
            config(output_dir=folder, **arguments),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        made.remove_callback(PrinterCallback)
        made.train()
    return marks[-1] - marks[0]
