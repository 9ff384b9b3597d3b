"""The form in which a person compares two answers: a notebook cell, keys 1 to 8, and the label is in the store.

    from llama2lab.annotation.form.widget import AnnotationForm
    AnnotationForm("labels.db", "Ada")

A label is saved before the page's message is answered, and only the answer makes the page ask for the next item. Label
ids are made by the page, so that a message that is sent again saves nothing twice. With ipykernel 7 messages arrive in
threads beside a running cell: one lock for each widget keeps them in order. What comes from the page is not trusted.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import anywidget
import traitlets
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama2lab.annotation.store import queue
from llama2lab.annotation.store.checks import ID, clean_name
from llama2lab.annotation.store.engines import public_url
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.scale import GRADES, KINDS, POSITIONS

HERE = Path(__file__).parent
FRONT = ("widget_text.js", "widget_session.js", "widget_pages.js", "widget.js")  # one module, in this order
NAMES = {"left": "Answer A", "right": "Answer B"}  # as the guidelines call them
REASONS = (
    "I do not understand the question",
    "The text is broken or cannot be read",
    "I would rather not judge this one",
)
OTHER_WINDOW = (
    "This pair had been answered in another window, and that answer stands; here it is. A new choice replaces it."
)
LEASE_SECONDS = 1800.0  # a page that is being looked at claims its item anew every few minutes
SHOWN_CHARS = 200_000  # of an answer, and of a prompt
SHOWN_MESSAGES = 200
COUNT_SECONDS = 2.0  # how long the text for places without widgets waits for its figures


class Message(BaseModel):
    """What the page may send; anything else is refused with the reason."""

    model_config = ConfigDict(extra="forbid", strict=True)
    request: str = Field(min_length=1, max_length=64)
    type: str


class Start(Message):
    name: str | None = Field(default=None, max_length=1000)
    code: str | None = Field(default=None, max_length=1000)


class Plain(Message):
    """A message without content: next, begin, again."""


class PastOne(Message):
    index: int = Field(ge=0)


class Guidelines(Message):
    kind: Literal["helpfulness", "safety"] | None = None


class Answered(Message):
    item_id: str = Field(pattern=rf"\A{ID.pattern}\z")
    label_id: str = Field(pattern=r"\A[0-9a-f]{32}\z")
    replaces: str | None = Field(default=None, pattern=rf"\A{ID.pattern}\z")  # the label that was shown; None: new
    comment: str = Field(default="", max_length=10_000)
    flag: bool = False
    seconds: float = Field(default=0.0, ge=0, le=10_000_000, allow_inf_nan=False)


class Submit(Answered):
    side: Literal["left", "right"]
    grade: Literal[GRADES]  # type: ignore[valid-type]
    safe_left: bool | None = None
    safe_right: bool | None = None


class Skip(Answered):
    reason: str = Field(min_length=1, max_length=1000)


MESSAGES: dict[str, type[Message]] = {
    "start": Start,
    "next": Plain,
    "begin": Plain,
    "again": Plain,
    "past": PastOne,
    "guidelines": Guidelines,
    "submit": Submit,
    "skip": Skip,
}


def parse(content: Any) -> Message:
    """The page's message; LabError says what is wrong with it."""
    kind = content.get("type") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise LabError(
            f"the page sent a message of an unknown type ({str(kind)[:40]!r}); reload the page, so that "
            "page and Python are of the same version"
        )
    try:
        # Half a character (an emoji cut in two) is no text that could be kept: U+FFFD.
        return MESSAGES[kind].model_validate({k: printable(v) if isinstance(v, str) else v for k, v in content.items()})
    except ValidationError as e:
        wrong = e.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "message"
        raise LabError(
            f"the page sent a {kind!r} message whose {where[:60]!r} is wrong ({wrong['msg']}); nothing was "
            "saved or changed; reload the page and try again"
        ) from e


class AnnotationForm(anywidget.AnyWidget):
    """The annotation form of one person.

    `store` is an open store, a file or a URL; one that cannot be opened is said in the form, which tries again.
    `kind` restricts the items to "helpfulness" or "safety"; `seed` draws which answer stands left.
    """

    _esm = "\n".join((HERE / name).read_text(encoding="utf-8") for name in FRONT)
    _css = (HERE / "widget.css").read_text(encoding="utf-8")
    _session = traitlets.Unicode().tag(sync=True)
    _config = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        name: str,
        kind: str | None = None,
        seed: int = 0,
        *,
        reasons: Sequence[str] = REASONS,
        lease_seconds: float = LEASE_SECONDS,
    ):
        if kind is not None and kind not in KINDS:
            raise LabError(f"kind is {' or '.join(KINDS)}, not {kind!r}; leave it out for both")
        if not 1 <= len(reasons) <= 8 or not all(isinstance(r, str) and r.strip() for r in reasons):
            raise LabError("reasons for skipping are one to eight short texts")
        self._name: str | None = None if self._is_app else clean_name(name)  # the application asks for it
        self._store = store if isinstance(store, Store) else None
        self._url: str = store.url if isinstance(store, Store) else os.fspath(store)
        self._kind, self._seed, self._lease = kind, seed, lease_seconds
        self._annotator = ""
        self._lock = threading.RLock()
        super().__init__(
            _session=uuid.uuid4().hex,
            _config={
                "store": hashlib.sha256(public_url(self._url).encode()).hexdigest()[:16],
                "app": self._is_app,
                "positions": [list(p) for p in POSITIONS],
                "names": NAMES,
                "reasons": list(reasons),
            },
        )
        self.on_msg(self._receive)

    _is_app = False

    # -- messages ----------------------------------------------------------------------------------------------------

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        request = content.get("request") if isinstance(content, Mapping) else None
        fault: Exception | None = None
        try:
            with self._lock:
                answer = {"ok": True, **self._answer(parse(content))}
        except LabError as e:
            known = {name: getattr(e, name, False) for name in ("retry", "gone")}
            answer = {"ok": False, "error": str(e), **known}
        except Exception as e:
            fault = e
            answer = {"ok": False, "error": self._fault_words(e), "retry": False, "gone": False}
        self.send({"type": "answer", "request": request if isinstance(request, str) else None, **printable(answer)})
        if fault:
            raise fault

    def _fault_words(self, e: Exception) -> str:
        return f"a fault in the lab itself ({type(e).__name__}: {first_line(e)}); please report it"

    def _answer(self, message: Message) -> dict[str, Any]:
        if isinstance(message, Start):
            return self._start(message.name, message.code)
        if not self._annotator:
            self._start(None)
        if not self._annotator:
            raise LabError("the page has not said who it is; reload it")
        if isinstance(message, PastOne):
            return self._past(message.index)
        if isinstance(message, Guidelines):
            return {"texts": self._guidelines(message.kind)}
        if isinstance(message, (Submit, Skip)):
            return self._save(message)
        return self._next(message.type)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._url, create=False)
        return self._store

    def _start(self, name: str | None, code: str | None = None) -> dict[str, Any]:
        assert self._name is not None
        self._annotator = self._open().annotator(self._name)
        return {"stage": "ready", "annotator": self._name}

    def _next(self, wish: str) -> dict[str, Any]:
        return self._item(self._claim())

    def _item(self, task: queue.Task | None) -> dict[str, Any]:
        counts = self._progress()
        return {
            "stage": "item" if task else "done",
            "task": shown(task) if task else None,
            "progress": asdict(counts),
            "count": counts.done + counts.skipped,
        }

    def _claim(self, gold_first: bool = False) -> queue.Task | None:
        return queue.next_task(self._open(), self._annotator, self._seed, self._lease, self._kind, gold_first)

    def _progress(self) -> queue.Progress:
        return queue.progress(self._open(), self._annotator, kind=self._kind)

    def _history(self) -> list[queue.Past]:
        return [past for past in queue.history(self._open(), self._annotator) if self._kind in (None, past.task.kind)]

    def _past(self, index: int) -> dict[str, Any]:
        history = self._history()
        if index >= len(history):
            raise LabError(f"there is no earlier pair number {index + 1}; you have answered {len(history)}")
        past = history[index]
        label = {
            key: getattr(past.label, key)
            for key in ("label_id", "side", "grade", "safe_left", "safe_right", "comment", "flag", "skip_reason")
        }
        return {"task": shown(past.task), "label": label, "count": len(history)}

    def _guidelines(self, kind: str | None) -> list[dict[str, str]]:
        kinds = [kind] if kind else [self._kind] if self._kind else list(KINDS)
        found = [(k, *self._open().guidelines(k)) for k in kinds]
        return [{"kind": k, "version": version, "text": text} for k, version, text in found if text]

    def _save(self, message: Submit | Skip) -> dict[str, Any]:
        store, item = self._open(), message.item_id
        save = queue.submit if isinstance(message, Submit) else queue.skip
        try:
            save(store, self._annotator, **message.model_dump(exclude={"request", "type"}))
        except queue.Superseded as e:
            index = next((i for i, past in enumerate(self._history()) if past.task.item_id == item), None)
            if index is None:
                raise
            return {"saved": e.label_id, "newer": index, "notice": OTHER_WINDOW}
        except StoreError:
            raise
        except LabError as e:
            answered = any(past.task.item_id == item for past in self._history())
            if not answered and not queue.renew(store, self._annotator, item, self._lease):
                e.gone = True  # type: ignore[attr-defined]  # the page then goes on with another item
            raise
        return {"saved": message.label_id}

    # -- where no widget can run -------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"AnnotationForm({public_url(self._url)!r}, {self._name!r})"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        for part in bundle if isinstance(bundle, tuple) else (bundle,):
            if isinstance(part, dict) and "text/plain" in part:
                part["text/plain"] = self._plain_text()
        return bundle

    def _plain_text(self) -> str:
        """What a printed notebook, a terminal or a page without widgets shows instead of the form."""
        found: list[str] = []

        def count() -> None:
            try:
                with self._lock:
                    self._start(None)
                    counts = self._progress()
                found.append(f"{counts.done} pairs judged, {counts.skipped} skipped, {counts.open} wait")
            except LabError as e:
                found.append(f"the store cannot be read: {e}")

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        thread.join(COUNT_SECONDS)
        who = self._name or "anybody"
        return (
            f"Annotation form for {who}: {found[0] if found else 'the store has not answered yet'}.\n"
            "No widget can run here. Open the notebook in JupyterLab and run this cell, or serve the form to a "
            "browser with\n    llama2lab annotate URL-OR-FILE"
        )


def shown(task: queue.Task) -> dict[str, Any]:
    """The task for the page, which no browser could show in full if a text has millions of characters: `cut` says how
    long texts that are cut really are, and how many messages the prompt has of which the last ones are there."""
    cut: dict[str, int] = {}
    texts = {"left_text": task.left_text, "right_text": task.right_text}
    for name, text in texts.items():
        if len(text) > SHOWN_CHARS:
            texts[name], cut[name] = text[:SHOWN_CHARS], len(text)
    prompt: list[dict[str, Any]] = []
    room = SHOWN_CHARS
    for message in reversed(task.prompt[-SHOWN_MESSAGES:]):  # the newest matter most
        if room <= 0:
            break
        role, content = str(message["role"])[:100], message["content"]
        prompt.insert(
            0, {"role": role, "content": content[:room], **({"cut": len(content)} if len(content) > room else {})}
        )
        room -= len(content)
    if len(prompt) < len(task.prompt):
        cut["prompt"] = len(task.prompt)
    return {"item_id": task.item_id, "kind": task.kind, "prompt": prompt, **texts, **({"cut": cut} if cut else {})}


def printable(value: Any) -> Any:
    """The answer with lone surrogates, which no JSON message can carry, made U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {key: printable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    return value
