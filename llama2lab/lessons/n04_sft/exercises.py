"""Exercises of notebook 04: supervised fine-tuning (Llama 2, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, randn, read
from llama2lab.lab.predictions import Choice, Guess, Prediction
from llama2lab.lessons.n04_sft.own_output import draw_chat, draw_sft_mask
from llama2lab.model.chat import Message, encode_chat, segments
from llama2lab.stages.pretrain import packed_lm_loss

# ---- the format --------------------------------------------------------------------------------------------------


def chat_text(messages: Sequence[Message]) -> str:
    """The library's format, as one text."""
    return "".join(segments(messages))


def chat_with_faults(
    messages: Sequence[Message],
    bos: str = "all",
    eos: str = " </s>",
    system: str = "<<SYS>>\n{}\n<</SYS>>\n\n",
    every: bool = False,
    own_turn: bool = False,
    blanks: bool = True,
) -> str:
    """The format with one <s> alone, another end of an answer, another shape of the system message, that message in
    every turn or in a turn of its own, or without the blanks around texts."""
    text, blank = "", " " if blanks else ""
    opening = ""
    for number, message in enumerate(messages):
        content, start = message["content"], "<s>" if bos == "all" or not text else ""
        if message["role"] == "system":
            opening = system.format(content)
            if own_turn:
                text += f"<s>[INST]{blank}{opening.strip()}{blank}[/INST]"
        elif message["role"] == "user":
            shown = opening if not own_turn and (every or number < 2) else ""
            text += f"{start}[INST]{blank}{shown}{content}{blank}[/INST]"
        else:
            text += f"{blank}{content}{eos if blanks else eos.strip()}"
    return text


def check_chat_text(f: Callable) -> None:
    turns = [
        *(("user", "Where does Mira live?"), ("assistant", "On Forest Road.")),
        *(("user", "Who is her neighbour?"), ("assistant", "Tom, the baker."), ("user", "Thank you.")),
    ]
    plain = [{"role": role, "content": content} for role, content in turns]
    for messages in (plain[:1], plain, [{"role": "system", "content": "Be kind."}, *plain[:3]]):
        got, right = f(messages), chat_text(messages)
        if isinstance(got, list | tuple) and all(isinstance(piece, str) for piece in got):
            raise Mistake('That is a list of pieces; join them to one text: "".join(pieces).')
        if not isinstance(got, str):
            raise Mistake(f"A text is expected, not {type(got).__name__}.")
        if got == right:
            continue
        wrongs = [
            (
                chat_with_faults(messages, bos="first"),
                "Every user turn begins with <s>, not the first alone.",
            ),
            (chat_with_faults(messages, eos=""), "The </s> after an answer is missing: nothing tells where it ends."),
            (chat_with_faults(messages, eos="</s>"), "A blank stands between the answer and its </s>."),
            (
                chat_with_faults(messages, own_turn=True),
                "The system message has no turn of its own: it stands within the first user turn, before its text.",
            ),
            (chat_with_faults(messages, every=True), "The system message stands in the first user turn alone."),
            (chat_with_faults(messages, system=""), "The system message is left out."),
            (
                chat_with_faults(messages, system="<<SYS>>\n{}\n<</SYS>>\n"),
                "Two line ends follow <</SYS>>, so that an empty line stands before the user's text.",
            ),
            (
                chat_with_faults(messages, system="<<SYS>>{}<</SYS>>"),
                "The system message stands on a line of its own: a line end after <<SYS>>, one before <</SYS>>, two "
                "behind it.",
            ),
            (
                chat_with_faults(messages, blanks=False),
                "Blanks are missing: texts are set off from [INST], [/INST] and </s> by one.",
            ),
        ]
        for wrong, name in wrongs:
            if got == wrong:
                raise Mistake(name)
        if got.rstrip() == right.rstrip() or got == right + "\n":
            raise Mistake(f"The end is {got[-12:]!r}; {right[-12:]!r} is right. Nothing follows the last token.")
        at = next((i for i, (g, r) in enumerate(zip(got, right, strict=False)) if g != r), min(len(got), len(right)))
        begin = max(0, at - 12)
        raise Mistake(f"At character {at + 1} stands {got[begin : at + 12]!r}; {right[begin : at + 12]!r} is right.")


CHAT_TEXT = Exercise(
    "04.chat_text",
    "The chat format",
    "Write chat_text(messages) -> text; a message has a role and a content. A user turn is '<s>[INST] {user} [/INST]', "
    "an answer ' {answer} </s>'. A system message, which may come first, is put before the text of the first user "
    "turn as '<<SYS>>\\n{system}\\n<</SYS>>\\n\\n'. Texts hold no such tags here.",
    Level(difficulty=2, minutes=10, points=2),
    "3.1; the released code",
    (
        "Keep the system message until the first user turn comes, then empty it.",
        "Nothing stands between one turn and the next: '... </s><s>[INST] ...'.",
    ),
    check_chat_text,
    chat_text,
    lesson="A chat model has seen one format only, to the blank. In another it does not fail, it answers worse, and "
    "nobody is told: look at its template before you judge a released model.",
    picture=draw_chat,
)

# ---- the loss ----------------------------------------------------------------------------------------------------

BOS, EOS, INST, END_INST = 1, 2, 4, 5  # ids of <s>, </s>, [INST], [/INST]


def library_mask(ids: Sequence[int], mask_turns: str) -> list[int]:
    """The mask that the library's `encode_chat` gives a conversation of these ids: prompts end with [/INST], answers
    with </s>, so the ids are cut there and handed over as a tokenizer would."""
    pieces: list[list[int]] = [[]]
    for token in ids:
        pieces[-1].append(token)
        if token in (EOS, END_INST):
            pieces.append([])
    pieces.pop()
    messages = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(len(pieces))]
    return encode_chat(lambda texts, **options: {"input_ids": pieces}, messages, mask_turns=mask_turns)[1]


def sft_mask(ids: Sequence[int]) -> list[int]:
    """1 on every answer and its </s>, as the library marks them."""
    return library_mask(ids, "all")


CONVERSATION = [
    *(BOS, INST, 20, 21, END_INST, 30, 31, EOS),
    *(BOS, INST, 22, END_INST, 32, EOS),
    *(BOS, INST, 23, 24, 25, END_INST, 33, 34, 35, EOS),
]


def marks(
    ids: Sequence[int],
    eos: bool = True,
    end_inst: bool = False,
    prompt: bool = False,
    answer: bool = True,
    bos: bool = False,
) -> Tensor:
    """What a mask says that marks these parts: for the ways to do it wrongly."""
    inside, result = False, []
    for token in ids:
        kind = {EOS: eos, END_INST: end_inst, BOS: bos or prompt}.get(token, answer if inside else prompt)
        result.append(int(kind))
        inside = token == END_INST or (inside and token != EOS)
    return torch.tensor(result)


def check_sft_mask(f: Callable) -> None:
    for ids in (CONVERSATION, CONVERSATION[:8]):
        right = torch.tensor(sft_mask(ids))
        got = read(f(ids), (len(ids),), "the mask")
        judge(
            got,
            right,
            (
                marks(ids, eos=False),
                "The closing </s> must be learnt too: without it the model never learns to stop.",
            ),
            (marks(ids, end_inst=True), "[/INST] belongs to the prompt; the answer begins after it."),
            (1 - right, "The mask is inverted: 1 is where the loss counts, on the answers."),
            (torch.ones_like(right), "The prompts' tokens are learnt too; their loss is zeroed."),
            (
                torch.tensor(library_mask(ids, "last")),
                "Only the last answer is marked: that is Ghost Attention's mask. SFT learns every answer.",
            ),
            (
                right.roll(-1),
                "The mask is shifted by one; here it marks the tokens themselves, the loss does the shift.",
            ),
            (marks(ids, bos=True), "<s> begins the next prompt and is not learnt."),
            what="the mask",
            tolerance=0,
        )


SFT_MASK = Exercise(
    "04.sft_mask",
    "The loss mask of SFT",
    "Write sft_mask(ids) -> a list of 0 and 1: 1 on the tokens of every answer and the </s> that closes it. Ids: 1 is "
    "<s>, 2 is </s>, 4 is [INST], 5 is [/INST]; an answer follows [/INST].",
    Level(difficulty=2, minutes=10, points=2),
    "3.1",
    (
        "Walk through the ids and remember whether you are inside an answer.",
        "An answer begins after 5 and ends with 2, which still belongs to it.",
    ),
    check_sft_mask,
    sft_mask,
    lesson="Masked is not ignored: prompts are read, and what is learnt about reading them comes back through the "
    "answers that look at them. They are only not imitated.",
    picture=draw_sft_mask,
)


def sft_loss(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The library's `packed_lm_loss` of a model that gives these logits, each row one document."""
    identity = SimpleNamespace(weight=torch.eye(logits.shape[-1]))  # the states are the logits
    given: Any = SimpleNamespace(hidden=lambda *_: logits, lm_head=identity)
    return packed_lm_loss(given, tokens, torch.ones_like(tokens), mask.bool())[0]


def check_sft_loss(f: Callable) -> None:
    logits = randn(2, 6, 5) * 2
    tokens = torch.tensor([[0, 3, 1, 4, 2, 2], [1, 1, 0, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1]])
    each = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    shifted = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    on, late = mask[:, 1:].bool(), mask[:, :-1].bool()
    judge(
        read(f(logits, tokens, mask), (), "the loss"),
        sft_loss(logits, tokens, mask),
        (
            each[mask.bool()].mean(),
            "The logits at a token predict the next one: shift them by one place, or the model is asked for a token "
            "that it sees.",
        ),
        (shifted.mean(), "The mask is not used: the prompts' tokens are learnt too."),
        (shifted[late].mean(), "The mask is not shifted with the tokens: it marks what is predicted, mask[:, 1:]."),
        (shifted[on].sum(), "That is the sum; the loss is the mean over the marked tokens."),
        ((shifted * on).mean(), "You divide by all tokens; divide by the number of the marked ones."),
        (-shifted[on].mean(), "The sign is wrong: the loss is the negative log-probability."),
        (
            ((shifted * on).sum(1) / on.sum(1)).mean(),
            "You average each row first: then a token in a short answer weighs more than one in a long answer.",
        ),
        what="the loss",
    )


SFT_LOSS = Exercise(
    "04.sft_loss",
    "The loss of SFT",
    "Write sft_loss(logits, tokens, mask): the mean cross-entropy of the tokens that mask (batch, seq) marks. logits "
    "(batch, seq, vocab) at position t predict the token at t + 1.",
    Level(difficulty=2, minutes=10, points=3),
    "3.1",
    (
        "Take logits[:, :-1] and tokens[:, 1:]; the mask belongs to the tokens.",
        "Pick what the mask marks, then take F.cross_entropy.",
    ),
    check_sft_loss,
    sft_loss,
    lesson="Averaged over tokens, a long answer weighs more than a short one; averaged over answers, a word in a short "
    "one weighs more. Both are called the mean loss; the report does not say which it took.",
)

# ---- questions and predictions -----------------------------------------------------------------------------------

WHY_EOS = Exercise(
    "04.why_eos",
    "A model that does not stop",
    "The plot shows the length of answers of a model trained without loss on </s>. What does it show?",
    Level(difficulty=1, minutes=2, points=1),
    "3.1",
    ("Who tells the model to stop?",),
    Choice(
        a="answers run to the length limit",
        b=("answers are empty", "An empty answer is an early </s>; this model never learnt to write one."),
        c=("nothing changes", "The </s> is a token like others: what is never learnt is never written."),
    ),
    lesson="The same fault is easily made unseen: where </s> also fills up rows, whoever masks the padding masks the "
    "end of every answer. So our padding has a token of its own.",
)

QUALITY = Prediction(
    "04.quality",
    "Few clean or many noisy examples",
    "Some thousand clean SFT examples against twice as many of which many are noisy. By how many points of "
    "helpfulness (from -3 to 3) is the first model better?",
    Level(difficulty=2, minutes=3, points=1),
    "3.1",
    ("The report set millions of examples aside for 27,540 good ones.",),
    Guess(
        -6.0,
        6.0,
        "Noise hurts more than you thought: the model imitates manners exactly as they are shown.",
        "The gap is smaller than you thought.",
        absolute=0.4,
    ),
    lesson="More examples do not make up for bad ones.",
)

EXERCISES = (CHAT_TEXT, SFT_MASK, SFT_LOSS, WHY_EOS, QUALITY)
