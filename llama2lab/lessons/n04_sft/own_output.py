"""Pictures of a student's own output in notebooks 04 and 09: the chat format, and which tokens are learnt."""

from __future__ import annotations

import re
from functools import partial

from llama2lab.lab.checking import Mistake
from llama2lab.lab.chips import token_picture
from llama2lab.lab.own_output import Answer, numbers, own

TURNS = (("Where does Mira live?", "On Forest Road."), ("Who is her neighbour?", "Tom, the baker."))
TAGS = re.compile(r"(<s>|</s>|\[INST\]|\[/INST\]|<<SYS>>|<</SYS>>)")
IDS = {"<s>": 1, "</s>": 2, "[INST]": 4, "[/INST]": 5}


def draw_chat(f: Answer) -> str:
    """The text that the student's format makes of a system message and two turns."""
    said = [("system", "Be brief.")]
    for asked, answered in TURNS:
        said += [("user", asked), ("assistant", answered)]
    text = f([{"role": role, "content": content} for role, content in said])
    if not isinstance(text, str):
        raise Mistake("A text is expected.")
    parts = [part for part in TAGS.split(text[:600].replace("\n", "↵")) if part]
    note = "Filled: what the format adds. · is a blank, ↵ the end of a line."
    tokens = token_picture([(part, bool(TAGS.match(part))) for part in parts])
    return own("Your dialogue, as the model reads it", tokens, note=note)


def draw_mask(title: str, f: Answer) -> str:
    """A dialogue, a box for each word, and which of them the student's mask lets the model learn."""
    words = [w for asked, said in TURNS for w in ("<s>", "[INST]", *asked.split(), "[/INST]", *said.split(), "</s>")]
    ids = [IDS.get(word, 20 + i) for i, word in enumerate(words)]
    mask = numbers(f(ids), len(ids))
    tokens = token_picture([(word, bool(on)) for word, on in zip(words, mask, strict=True)])
    return own(title, tokens, note=f"Filled: learnt, {sum(map(bool, mask))} of {len(words)}.")


draw_sft_mask = partial(draw_mask, "Your loss mask of SFT")
