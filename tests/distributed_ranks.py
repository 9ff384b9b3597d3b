"""What test_distributed.py lets one process do, and several: `torchrun ... distributed_ranks.py FOLDER TASK...` writes
FOLDER/TASK.json, each task's figures as the first rank has them. A task is given a folder; another's is another."""

import json
import os
import sys
from pathlib import Path

import torch

from llama2lab.engine import distributed, loop
from llama2lab.engine.device import Machine
from llama2lab.engine.files import write_rows
from llama2lab.engine.followers import open_run
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.engine.state import load_state
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.generate import generate
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.stages.gatt import sample_dialogues
from llama2lab.stages.ppo import Critic, PPOSettings, ppo
from llama2lab.stages.pretrain import fit_packed
from llama2lab.stages.reward import RewardModel, RewardSettings, score_answers, train_reward
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.items import Prompt

CPU = Machine(torch.device("cpu"), "fp32")
DIVIDED = Machine(torch.device("cpu"), "fp32", "always")
TEXTS = ["Mira lives on Mill Lane. Tom eats soup and says thank you.", "yes no good bad apple pear"] * 20
STEPS = 12


def tokenizer():
    return train_tokenizer(TEXTS, 320, chat_template=CHAT_TEMPLATE)


def tiny(seed=0, tied=False):
    return Llama(ModelConfig(320, 40, 2, 4, 2, 51, max_seq_len=128, tie_embeddings=tied), seed)


def asked(text, kind="helpful"):
    return Prompt(text, ({"role": "user", "content": text},), "fact", kind, text, "train")


def losses(log, keys=("loss", "grad_norm")):
    return [{k: row[k] for k in keys} for row in log]


def documents(n=60):
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 40, (n,), generator=g).tolist()
    return [(torch.randint(4, 320, (length,), generator=g).tolist(), [1] * length) for length in lengths]


def pretrained(folder=None, steps=STEPS, machine=CPU, watch=lambda what, log, n: False, on_step=None, tied=False):
    """A model and the log of its training, which `watch` may stop."""
    model, data = tiny(tied=tied), pack(documents(), 48, 0, 3)
    batch, optim = 5, Optim(lr=3e-3)
    epochs = steps * batch / len(data)
    with loop.watching(watch):
        log = fit_packed(
            model,
            data,
            epochs,
            batch * 48,
            optim,
            0,
            machine,
            folder,
            "pretraining",
            on_step and (lambda step: on_step(model, step)),
        )
    return model, log


def figures(model, log):
    return {"log": losses(log), "weights": [p.double().sum().item() for p in model.parameters()]}


def saved_log(folder):
    """The log in the state that an interrupted training left in a folder."""
    return load_state(Path(folder) / "resume" / "state.safetensors")[1]["log"]


# ---- tasks -------------------------------------------------------------------------------------------------


def pretraining(folder):
    return figures(*pretrained())


def fine_tuning(folder):
    said = [("Where does Mira live?", "On Mill Lane."), ("yes or no?", "yes good apple"), ("Tom?", "Tom eats soup.")]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said * 5]
    settings = SFTSettings(epochs=3.0, seq_len=32, batch_tokens=96, format_examples=6)
    metrics = sft(tiny(), tokenizer(), rows, settings, 0, CPU, documents=TEXTS)
    return {"log": [{"loss": row["loss"]} for row in metrics["loss"]]}


def rewards(folder, machine=CPU):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Which {i}?"}],
            "chosen": [{"role": "assistant", "content": "good apple" + " yes" * (i % 3)}],
            "rejected": [{"role": "assistant", "content": "bad pear"}],
            "grade": "better",
            "safety": "chosen_safe",
        }
        for i in range(23)
    ]
    settings = RewardSettings(safety_loss=1.0, batch_pairs=5, epochs=2.0)
    model, metrics = train_reward(tiny(), tokenizer(), rows, settings, 0, machine, reference=tiny())
    conversations, answers = [row["prompt"] for row in rows], [row["chosen"][0]["content"] for row in rows]
    scores = score_answers(model, tokenizer(), conversations, answers, CPU)
    return {"log": [{k: row[k] for k in ("loss", "accuracy")} for row in metrics["loss"]], "scores": scores}


def policy(folder, machine=CPU):
    """Prompts of both kinds, in a batch that two and four ranks share unevenly, and of whose last minibatch three have
    nothing; held-out prompts, replay."""
    prompts = [asked("yes or no?"), asked("Tom?"), asked("bad?", "unsafe"), asked("Mira?")]
    settings = PPOSettings(
        iterations=4, batch=11, minibatch=5, critic_warmup=1, max_new_tokens=6, replay_tokens=512, early_stop_kl=1e9
    )
    metrics = ppo(
        tiny(),
        Critic(RewardModel(tiny(1))),
        lambda p, answers: [len(set(a)) / 3 for a in answers],
        tokenizer(),
        lambda i: (prompts * 4)[:11],
        settings,
        3,
        machine,
        heldout=prompts,
        documents=TEXTS,
    )
    keys = ("score", "kl", "loss", "replay_loss", "value_loss", "entropy", "explained_variance", "grad_norm", "length")
    return {"log": losses(metrics["log"], keys), "heldout": metrics["log"][-1]["heldout_score"]}


def sampling(folder):
    model, words = tiny(), tokenizer()
    prompts = [[1, 4 + i, *range(5, 5 + i % 7)] for i in range(11)]
    written = generate(model, prompts, 9, seed=5, eos_id=2, pad_id=3, precision="fp32")
    told = [[{"role": "user", "content": text}] for text in ("yes?", "Mira lives", "a")]
    return {
        "tokens": [g.tokens for g in written],
        "logprobs": [g.logprobs for g in written],
        "one": generate(model, [[1]], 5, seed=1, precision="fp32")[0].tokens,
        "answers": sample_answers(model, words, told, k=3, max_new_tokens=8, seed=2),
        "dialogues": sample_dialogues(
            model, words, [["a", "b", "c"]] * 5, ["be good"] * 5, True, temperature=1.0, seed=1, max_new_tokens=5
        ),
    }


def run(folder):
    """A run of two stages: which rank wrote where, and what all of them read of it."""
    wrote = []

    def watch(event, args):
        if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
            wrote.append(args[0])

    sys.addaudithook(watch)
    out, found = Path(folder) / "run", []

    def build(path):
        (path / "mine.txt").write_text("one writes, all see", encoding="utf-8")
        found.append(sorted(p.name for p in path.iterdir() if not p.name.startswith("started")))
        model, log = pretrained(path, 4)
        save_model(path, model)
        return {"steps": len(log), "rank": distributed.rank()}

    with open_run(out, {"preset": "trial"}) as opened:
        precision = opened.picked("precision", lambda: f"rank {distributed.rank()}")
        stage = opened.stage("base", build, 1)
        before = len(found)
        opened.stage("base", build, 1)  # it stands

        def measure():
            kept = opened.measured("base", "m")
            kept.mkdir(parents=True)
            write_rows(kept / "rows.jsonl", [{"rank": distributed.rank()}])
            return {"rank": distributed.rank()}

        noted = [opened.note("base", measure, "m", ("rows.jsonl",)) for _ in range(2)]
        rows = (opened.measured("base", "m") / "rows.jsonl").read_text(encoding="utf-8")
        results = opened.results({}, "test")
    mine = {
        "built": (before, len(found)),
        "within": sorted(Path(p).name for p in wrote if str(out) in p),
        "read": [precision, rows, noted, results["stages"]["base"]["metrics"], (stage / "mine.txt").read_text()],
        "scratch": [str(p) for p in (getattr(opened, "scratch", out.parent / "none"),) if p.exists()],
    }
    return {"ranks": distributed.gathered(mine)}


def divided(folder, machine=DIVIDED):
    """As `pretraining`, by a model that is divided over the ranks, and tied; it is used between the steps and after."""
    written = []

    def sample(model, step):
        if step == 2:
            written.append(generate(model, [[1, 7], [1, 9, 4]], 6, seed=2, precision="fp32"))

    model, log = pretrained(machine=machine, on_step=sample, tied=True)
    written.append(generate(model, [[1, 7]], 6, seed=2, precision="fp32"))
    return figures(model, log) | {"written": [[g.tokens for g in some] for some in written]}


def divided_rewards(folder):
    return rewards(folder, DIVIDED)


def divided_policy(folder):
    return policy(folder, DIVIDED)


def interrupted(folder, machine=CPU):
    """A training that is stopped after 5 of 12 steps and keeps its state."""
    try:
        pretrained(Path(folder) / "training", watch=lambda what, log, n: len(log) == 5, machine=machine)
    except KeyboardInterrupt:
        kept = Path(folder, "training", "resume")
        return {"files": sorted(p.name for p in kept.iterdir() if not p.name.startswith("."))}


def interrupted_divided(folder):
    return interrupted(Path(folder) / "divided", DIVIDED)


def resumed(folder, machine=CPU):
    """And goes on from there."""
    begun = []
    model, log = pretrained(
        Path(folder) / "training", watch=lambda what, log, n: begun.append(len(log)) is not None, machine=machine
    )
    return {"begun": begun[0]} | figures(model, log)


def resumed_divided(folder):
    return resumed(Path(folder) / "divided", DIVIDED)


def speaking(folder):
    return {"ranks": distributed.gathered(distributed.first_to_speak())}


def main():
    folder, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.start("cpu")
    for task in tasks:
        found = globals()[task](folder)
        if distributed.is_first():
            (Path(folder) / f"{task}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.leave()


if __name__ == "__main__":
    main()
