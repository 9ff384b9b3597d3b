"""The report's settings beside those that the run at hand was made with: (header, rows) for `pictures.table`."""

from __future__ import annotations

from typing import Any

from llama2lab.engine.files import read_json
from llama2lab.lab.finished import Finished

Table = tuple[tuple[str, ...], list[tuple[str, str, str]]]


def settings_of(lab: Finished, stage: str) -> dict[str, Any]:
    """What a stage was made with, as its stage.json says."""
    found = read_json(lab.stage(stage) / "stage.json")["settings"]
    return found[0] if isinstance(found, list) else found


def _short(value: float) -> str:
    """1e-5, not 1e-05."""
    return f"{value:g}".replace("e-0", "e-")


def _times(gain_lr: float) -> str:
    return f"; the last norm's gain {gain_lr:g} times as fast: our deviation" if gain_lr != 1 else ""


def pretraining(lab: Finished) -> Table:
    """Section 2.2 and Table 1."""
    s, made = settings_of(lab, "base"), lab.metrics("base")
    o = s["optim"]
    same = f"beta {o['betas'][0]:g} and {o['betas'][1]:g}, eps {_short(o['eps'])}, weight decay {o['weight_decay']:g}"
    each = "each once" if s["epochs"] == 1 else f"{s['epochs']:g} times"
    return (
        ("", "Llama 2 (section 2.2, Table 1)", "here"),
        [
            (
                "optimiser",
                "AdamW, beta 0.9 and 0.95, eps 1e-5, weight decay 0.1, clipping 1.0",
                f"AdamW, {same}, clipping {o['clip']:g}",
            ),
            (
                "schedule",
                "warm-up of 2,000 steps, cosine down to 10 % of the peak",
                f"warm-up of {o['warmup']:.0%} of the steps, cosine down to {o['final']:.0%}",
            ),
            (
                "peak rate",
                "3.0e-4 (7B, 13B), 1.5e-4 (34B, 70B)",
                f"{_short(o['lr'])}: small models want more",
            ),
            ("batch", "4 million tokens", f"{s['batch_tokens']:,} tokens"),
            ("tokens", "2.0 trillion", f"{made['tokens']:,}, {each}"),
        ],
    )


def fine_tuning(lab: Finished) -> Table:
    """Section 3.1."""
    clean, noisy = settings_of(lab, "sft"), settings_of(lab, "sft-noisy")
    replay = f"{clean['replay']:g} tokens for each token of chat: our deviation, since a small model forgets"
    return (
        ("", "Llama 2 (section 3.1)", "the run"),
        [
            ("examples", "27,540", f"{clean['examples']:,}; of the noisy ones {noisy['examples']:,}"),
            ("epochs", "2", f"{clean['epochs']:g}; of the noisy ones {noisy['epochs']:g}"),
            ("rate", "2e-5, cosine", f"{_short(clean['optim']['lr'])}, cosine{_times(clean['optim']['gain_lr'])}"),
            ("batch", "64 sequences of 4,096 tokens", f"{clean['batch_tokens']:,} tokens"),
            ("replay of pretraining text", "none", replay if clean["replay"] else "none"),
            (
                "the tokens of the format",
                "pieces that pretraining has seen",
                "new ones, whose embeddings are learnt first, alone: our deviation, see stages/sft.py",
            ),
        ],
    )


def ppo(lab: Finished) -> Table:
    """Section 3.2.3."""
    s, made = settings_of(lab, "rlhf-v5"), lab.metrics("rlhf-v5")
    seconds = made.get("seconds", lab.figures["stages"]["rlhf-v5"]["seconds"]) / s["iterations"]
    return (
        ("", "the report", "this run"),
        [
            ("answers an iteration, minibatch", "512, 64", f"{s['batch']}, {s['minibatch']}"),
            ("iterations", "200 to 400", f"{s['iterations']}"),
            (
                "learning rate, constant",
                "1e-6",
                f"{_short(s['optim']['lr'])}: the model is thousands of times smaller{_times(s['optim']['gain_lr'])}",
            ),
            ("clip", "0.2", f"{s['clip']:g}"),
            ("beta", "0.01 (7B, 13B), 0.005 (34B, 70B)", f"{s['beta']:g}"),
            ("seconds an iteration", "about 330 (70B)", f"about {seconds:.0f}, all in all"),
            ("critic, GAE, replayed text", "not said", "our choice, in stages/ppo.py"),
        ],
    )
