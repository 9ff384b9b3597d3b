"""The teacher's desk in a notebook cell, or served by `llama2lab labels watch`: a live view, and disputed pairs.

    from llama2lab.annotation.desk.view import TeacherView
    TeacherView("labels.db", "Ms Hill")

The page asks for what is new every few seconds while it is seen; figures are computed only when a label came in. What
comes from the page is not trusted, and what people wrote reaches it as text.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import traitlets
from pydantic import Field

from llama2lab.annotation.desk.disputes import Dispute, disputes
from llama2lab.annotation.desk.live import figures, now_there, put_together, stamp
from llama2lab.annotation.form import widget as form
from llama2lab.annotation.form.answering import Answering
from llama2lab.annotation.form.messages import Message
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import ID, clean_name
from llama2lab.annotation.store.engines import public_url
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.annotation.store.verdicts import decide, refuse_annotators
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, POSITIONS

HERE = Path(__file__).parent
NOTEBOOK = HERE / "desk.ipynb"
URL_VARIABLE = "LLAMA2LAB_WATCH_URL"
NAME_VARIABLE = "LLAMA2LAB_WATCH_NAME"
EVERY_SECONDS = 5.0
MOST = 200  # disputed pairs that the page holds at once


class Look(Message):
    """A message without content: refresh, disputes."""


class Decide(Message):
    """A verdict: the item's answer that is better, or neither, and the labels that the page showed."""

    item_id: str = Field(pattern=rf"\A{ID.pattern}\z")
    verdict_id: str = Field(pattern=r"\A[0-9a-f]{32}\z")
    choice: Literal[1, 2] | None = None
    grade: Literal[GRADES] | None = None  # type: ignore[valid-type]
    safe_1: bool | None = None
    safe_2: bool | None = None
    reason: str = Field(default="", max_length=10_000)
    labels: list[str] = Field(max_length=100_000)


MESSAGES: dict[str, type[Message]] = {"refresh": Look, "disputes": Look, "decide": Decide}


class TeacherView(Answering):
    """Who labels, how fast and how well, and the pairs about which people disagree, for `name` to decide.

    `store` is an open store, a file or a URL. LabError where the URL is an annotator's.
    """

    _esm = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (form.HERE / "widget_text.js", HERE / "desk_pairs.js", HERE / "desk.js")
    )
    _css = "\n".join(path.read_text(encoding="utf-8") for path in (form.HERE / "widget.css", HERE / "desk.css"))
    _config = traitlets.Dict().tag(sync=True)
    _messages = MESSAGES

    def __init__(
        self, store: Store | str | os.PathLike[str], name: str, every_seconds: float = EVERY_SECONDS, app: bool = False
    ):
        self._name = clean_name(name)
        self._store = store if isinstance(store, Store) else open_store(os.fspath(store), create=False)
        refuse_annotators(self._store)
        self._stamp: tuple[Any, ...] | None = None
        self._revision = 0  # of the labels
        self._labels: list[dict[str, Any]] = []
        self._figures: dict[str, Any] = {}
        super().__init__(
            _config={
                "every": every_seconds,
                "teacher": self._name,
                "positions": [list(p) for p in POSITIONS],
                "app": app,
            }
        )

    def __repr__(self) -> str:
        return f"TeacherView({public_url(self._store.url)!r}, {self._name!r})"

    def _answer(self, message: Message) -> dict[str, Any]:
        if isinstance(message, Decide):
            decide(self._store, self._name, **message.model_dump(exclude={"request", "type"}))
        self._read()
        if message.type == "refresh":
            now = now_there(self._store, self._labels, t.now())
            return {"view": put_together(now, self._figures), "revision": self._revision}
        found = disputes(x for x in self._labels if x["annotator_kind"] == "person")
        return {"disputes": [as_shown(one) for one in found[:MOST]], "all": len(found)}

    def _read(self) -> None:
        """The labels and their figures, anew if anything came in."""
        new = stamp(self._store)
        if new != self._stamp:
            self._labels = self._store.labels()
            self._figures = figures(self._labels)
            self._stamp, self._revision = new, self._revision + 1


def as_shown(one: Dispute) -> dict[str, Any]:
    """A disputed pair for the page: its texts, who said what, and the verdict so far."""
    first = one.labels[0]
    prompt = [{"role": m["role"][:100], "content": m["content"][: form.SHOWN_CHARS]} for m in first["prompt"]]
    said = ("annotator", "choice", "grade", "safe_1", "safe_2", "comment", "flag", "skip_reason")
    decided = ("teacher", "choice", "grade", "safe_1", "safe_2", "reason")
    verdict = one.verdict
    return {
        "item_id": one.item_id,
        "kind": first["kind"],
        "prompt": prompt[-form.SHOWN_MESSAGES :],
        "answers": [answer[: form.SHOWN_CHARS] for answer in first["answers"]],
        "why": list(one.why),
        "open": one.open,
        "changed": one.changed,
        "labels": [x["label_id"] for x in one.labels],
        "said": [{**{name: x[name] for name in said}, "seconds": round(x["seconds"] or 0.0, 1)} for x in one.labels],
        "verdict": verdict and {name: verdict[name] for name in decided},
    }


def watched() -> TeacherView:
    """The view that the environment describes: what the packaged notebook shows."""
    url = os.environ.pop(URL_VARIABLE, None)
    if not url:
        raise LabError("this notebook is served by the command: llama2lab labels watch URL")
    return TeacherView(url, os.environ.get(NAME_VARIABLE) or "teacher", app=True)
