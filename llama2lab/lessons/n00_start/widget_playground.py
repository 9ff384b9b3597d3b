"""The sampling playground: what temperature, top-k and top-p do to the next token's probabilities, token by token."""

from __future__ import annotations

import html
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as w
import torch
from torch import Tensor

from llama2lab.engine.errors import LabError
from llama2lab.lab.chips import chips, piece
from llama2lab.lab.explorer import LABEL, Explorer, button, dropdown, slider
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import label, svg
from llama2lab.lessons.n00_start.widget_chat import talkers
from llama2lab.model.chat import encode_chat
from llama2lab.model.generate import check_sampling, cut, sample
from llama2lab.model.network import Llama
from llama2lab.model.tokenizer import encode_text
from llama2lab.report.look import BLUE, ORANGE, tame
from llama2lab.report.summary import short_name

SHOWN = 10  # bars
MAX_NEW_TOKENS = 40  # of a continuation
CONTINUATIONS = 5


@dataclass(frozen=True)
class NextToken:
    """A token that may come next: its probability by the model alone (T = 1), at the temperature, and after the cut
    (which sums to 1 again)."""

    id: int
    shown: str
    model: float
    before: float
    after: float


def logits_after(model: Llama, ids: Sequence[int]) -> Tensor:
    """Logits of the token after `ids`, (vocab,)."""
    with torch.inference_mode():
        return model(torch.tensor([list(ids)], device=model.embed.weight.device))[0, -1].float()


def probabilities(logits: Tensor, temperature: float, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """(before the cut, after it) of `generate.sample`, each (vocab,): the second is what it draws from. LabError for
    settings that it refuses."""
    check_sampling(temperature, top_p, top_k)
    if temperature == 0:
        token, _ = sample(logits[None], torch.zeros(1), 0.0)
        return logits.softmax(-1), torch.nn.functional.one_hot(token[0], len(logits)).float()
    before = (logits / temperature).softmax(-1)
    kept, ids = cut(before[None], top_p, top_k)
    after = kept[0] if ids is None else torch.zeros_like(before).scatter(0, ids[0], kept[0])
    return before, after / after.sum()


def next_tokens(
    logits: Tensor, tokenizer: Any, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, n: int = SHOWN
) -> list[NextToken]:
    """The n likeliest next tokens (all with n = 0), likeliest first; logits (vocab,)."""
    before, after = probabilities(logits, temperature, top_p, top_k)
    order = logits.argsort(descending=True)[: n or len(logits)]
    plain = logits.softmax(-1)
    return [
        NextToken(i, piece(tokenizer, i).shown, *values)
        for i, *values in zip(
            order.tolist(), plain[order].tolist(), before[order].tolist(), after[order].tolist(), strict=True
        )
    ]


def bars(rows: Sequence[NextToken], width: int = 540) -> str:
    """Two bars a token: by the model alone, and as it is sampled."""
    high, left = 26, 130
    unit = (width - left - 150) / max((max(r.model, r.after) for r in rows), default=1.0)
    body = ""
    for i, r in enumerate(rows):
        y = i * high
        body += (
            label(left - 8, y + 17, r.shown, "end")
            + f'<rect x="{left}" y="{y + 3}" width="{r.model * unit:.1f}" height="9" fill="{ORANGE}"/>'
            + f'<rect x="{left}" y="{y + 13}" width="{r.after * unit:.1f}" height="9" fill="{BLUE}"/>'
            + label(
                left + max(r.model, r.after) * unit + 8,
                y + 17,
                f"{100 * r.model:.3g} % \u2192 " + (f"{100 * r.after:.3g} %" if r.after else "cut"),
            )
        )
    return svg(body, width, high * len(rows), "Probability of the likeliest next tokens, by the model and as sampled")


class Playground(Explorer):
    """A prompt, three sliders, and the next token."""

    def __init__(self, lab: Finished, stage: str = "rlhf-v5", prompt: str = "Where does Mira live?"):
        names = talkers(lab)
        self.lab, self.notice, self.draws = lab, "", 0
        self.written: list[int] = []
        self.finished = False
        self.continuations: list[str] = []
        self.written_at = ""  # the settings that the continuations were written at
        self._logits: OrderedDict[tuple, Tensor] = OrderedDict()
        models = [(short_name(s), s) for s in names]
        self.stage = dropdown("model", models, stage if stage in names else names[-1], "200px")
        self.prompt = w.Text(
            prompt,
            description="prompt",
            style=LABEL,
            continuous_update=False,
            layout=w.Layout(flex="1 1 300px", width="auto"),
        )
        self.temperature = slider("temperature", 1.0, 0.0, 2.0, 0.05, None)
        self.top_p = slider("top-p", 1.0, 0.05, 1.0, 0.05, None)
        self.top_k = slider("top-k (0: off)", 0, 0, 50, width=None)
        self.next = button("Next token", "draw one token and append it", self.append)
        self.greedy = button("Likeliest token", "append the likeliest token", lambda: self.append(greedy=True))
        self.more = button("Five continuations", "write five answers at these settings", self.write)
        self.reset = button("Reset", "back to the prompt", self.restart)
        sliders, buttons = (self.temperature, self.top_p, self.top_k), (self.next, self.greedy, self.more, self.reset)
        super().__init__("Sampling playground", [self.stage, self.prompt, *sliders, *buttons])
        for control in (self.stage, self.prompt):
            control.observe(lambda _: self.restart(), "value")

    def prompt_ids(self) -> list[int]:
        """<s> and the text for the base model, the chat format for the others."""
        if self.stage.value == "base":
            return [self.lab.tokenizer.bos_token_id, *encode_text(self.lab.tokenizer, self.prompt.value)]
        messages = [{"role": "user", "content": self.prompt.value}]
        return encode_chat(self.lab.tokenizer, messages, add_generation_prompt=True)[0]

    def logits(self) -> Tensor:
        """Of the next token; the last ones are kept, so that a slider needs no model."""
        key = (self.stage.value, *self.prompt_ids(), *self.written)
        if key not in self._logits:
            self._logits[key] = logits_after(self.lab.model(self.stage.value), key[1:])
            while len(self._logits) > 32:
                self._logits.popitem(last=False)
        return self._logits[key]

    @property
    def settings(self) -> dict[str, Any]:
        return {"temperature": self.temperature.value, "top_p": self.top_p.value, "top_k": self.top_k.value}

    def append(self, greedy: bool = False) -> None:
        """One token more, drawn or the likeliest."""
        if not self.finished:
            self.draws += 1
            uniform = torch.rand(1, generator=torch.Generator().manual_seed(self.draws))
            logits = self.logits().cpu()[None]
            token = int(sample(logits, uniform, **({"temperature": 0.0} if greedy else self.settings))[0])
            self.written.append(token)
            self.finished = token == self.lab.tokenizer.eos_token_id
            self.continuations = []  # of what stood there before
        self.redraw()

    def write(self) -> None:
        """Five continuations of what stands there, to compare; nothing is appended."""
        self.draws += 1
        try:
            model, so_far = self.lab.model(self.stage.value), self.prompt_ids() + self.written
            settings = {**self.settings, "seed": self.draws, "precision": "fp32"}
            found = self.lab.generate(model, [so_far] * CONTINUATIONS, MAX_NEW_TOKENS, **settings)
            self.continuations = [str(self.lab.tokenizer.decode(g.tokens, skip_special_tokens=True)) for g in found]
            self.notice = ""
            self.written_at = (
                f"Written at temperature {self.temperature.value:g}, top-p {self.top_p.value:g}, "
                f"top-k {self.top_k.value}:"
            )
        except LabError as e:
            self.continuations, self.notice = [], str(e)
        self.redraw()

    def restart(self) -> None:
        self.written, self.finished, self.continuations, self.notice = [], False, [], ""
        self.redraw()

    def draw(self) -> str:
        tokenizer = self.lab.tokenizer
        so_far = [piece(tokenizer, i) for i in [*self.prompt_ids(), *self.written]]
        parts = [chips(so_far, ids=False)]
        if self.finished:
            parts.append("<p>The model has ended its text with &lt;/s&gt;. Press Reset.</p>")
        else:
            logits = self.logits().cpu()
            kept = int((probabilities(logits, **self.settings)[1] > 0).sum())
            parts += [
                bars(next_tokens(logits, tokenizer, **self.settings, n=SHOWN)),
                f'<p><span style="color: {ORANGE}">&#9632;</span> by the model alone (temperature 1), '
                f'<span style="color: {BLUE}">&#9632;</span> as it is sampled. {kept:,} of {len(logits):,} '
                "tokens can still be drawn.</p>",
            ]
        if self.continuations:
            parts.append(f"<p>{self.written_at}</p>")
            parts.append("<ol>" + "".join(f"<li>{html.escape(tame(t))}</li>" for t in self.continuations) + "</ol>")
        return "".join(parts) + (f"<p>{html.escape(self.notice)}</p>" if self.notice else "")
