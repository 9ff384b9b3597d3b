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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import traitlets

from llama2lab.annotation.form import book, feedback, finding
from llama2lab.annotation.form.answering import Answering
from llama2lab.annotation.form.messages import (
    MESSAGES,
    ChooseTask,
    Find,
    Guidelines,
    Message,
    PastOne,
    Skip,
    Start,
    Submit,
)
from llama2lab.annotation.form.standing import GOAL, Settings, Standing
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.engines import public_url
from llama2lab.annotation.store.faults import StoreError
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS, POSITIONS

HERE = Path(__file__).parent
FRONT = (  # one module, in this order
    "widget_text.js",
    "widget_words.js",
    "widget_pace.js",
    "widget_session.js",
    "widget_pages.js",
    "widget_find.js",
    "widget_guide.js",
    "widget_item.js",
    "widget.js",
)
NAMES = {"left": "Answer A", "right": "Answer B"}  # as the guidelines call them
REASONS = (
    "I do not understand the question",
    "The text is broken or cannot be read",
    "I would rather not judge this one",
)
OTHER_WINDOW = (
    "This pair had been answered in another window, and that answer stands; here it is. A new choice replaces it."
)
CLOSED = "practice pairs, and those of an attempt that is over, cannot be changed any more"
LEASE_SECONDS = 1800.0  # a page that is being looked at claims its item anew every few minutes
SHOWN_CHARS = 200_000  # of an answer, and of a prompt
SHOWN_MESSAGES = 200
COUNT_SECONDS = 2.0  # how long the text for places without widgets waits for its figures


class AnnotationForm(Answering):
    """The annotation form of one person.

    `store` is an open store, a file or a URL; one that cannot be opened is said in the form, which tries again.
    `kind` restricts the items to "helpfulness" or "safety": else these are two tasks, one after the other. `seed` draws
    which answer stands left. The first `practice` gold pairs of a task are explained as soon as they are answered;
    after `goal` pairs the form proposes a rest (0: it does not).
    """

    _esm = "\n".join((HERE / name).read_text(encoding="utf-8") for name in FRONT)
    _css = (HERE / "widget.css").read_text(encoding="utf-8")
    _session = traitlets.Unicode().tag(sync=True)
    _config = traitlets.Dict().tag(sync=True)
    _messages = MESSAGES

    def __init__(
        self,
        store: Store | str | os.PathLike[str],
        name: str,
        kind: str | None = None,
        seed: int = 0,
        *,
        reasons: Sequence[str] = REASONS,
        lease_seconds: float = LEASE_SECONDS,
        practice: int = 0,
        goal: int = GOAL,
    ):
        if kind is not None and kind not in KINDS:
            raise LabError(f"kind is {' or '.join(KINDS)}, not {kind!r}; leave it out for both")
        if not 1 <= len(reasons) <= 8 or not all(isinstance(r, str) and r.strip() for r in reasons):
            raise LabError("reasons for skipping are one to eight short texts")
        self._name: str | None = None if self._is_app else clean_name(name)  # the application asks for it
        self._store = store if isinstance(store, Store) else None
        self._url: str = store.url if isinstance(store, Store) else os.fspath(store)
        self._kind, self._seed, self._lease = kind, seed, lease_seconds
        self._settings = Settings(kind, seed, number=0, practice=practice, goal=goal)
        self._chosen: str | None = None  # the task, where there are two
        self._apart = False  # whether there are two
        self._annotator = ""
        super().__init__(
            _session=uuid.uuid4().hex,
            _config={
                "store": hashlib.sha256(public_url(self._url).encode()).hexdigest()[:16],
                "app": self._is_app,
                "positions": [list(p) for p in POSITIONS],
                "names": NAMES,
                "reasons": list(reasons),
                "goal": goal,
            },
        )

    _is_app = False

    # -- messages ----------------------------------------------------------------------------------------------------

    def _answer(self, message: Message) -> dict[str, Any]:
        if isinstance(message, Start):
            return self._start(message.name, message.code)
        if not self._annotator:
            self._start(None)
        if not self._annotator:
            raise LabError("the page has not said who it is; reload it")
        if isinstance(message, PastOne):
            return self._past(message.index)
        if isinstance(message, Find):
            return self._find(message)
        if isinstance(message, Guidelines):
            return {"texts": self._guidelines(message.kind)}
        if isinstance(message, (Submit, Skip)):
            return self._save(message)
        if isinstance(message, ChooseTask):
            self._chosen = message.kind
            return self._next("task")
        if message.type == "summary":
            return {"summary": self._summary()}
        return self._next(message.type)

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._url, create=False)
        return self._store

    def _start(self, name: str | None, code: str | None = None) -> dict[str, Any]:
        assert self._name is not None
        self._annotator = self._open().annotator(self._name)
        return {"stage": "ready", "annotator": self._name}

    # -- tasks: helpfulness and safety are judged apart --------------------------------------------------------------

    @property
    def _task(self) -> str | None:
        """The kind of pairs that are judged now; None where that is to be chosen."""
        return self._kind or self._chosen

    def _next(self, wish: str) -> dict[str, Any]:
        if self._task is None:
            progress = {kind: self._progress(kind) for kind in KINDS}
            waiting = [kind for kind in KINDS if progress[kind].open]
            there = [kind for kind in KINDS if any(asdict(progress[kind]).values())]
            self._apart = len(there) > 1
            held = None if wish == "task" else queue.held_kind(self._open(), self._annotator)
            if held is None and len(waiting) > 1:
                return {"stage": "tasks", "tasks": [{"kind": kind, **asdict(progress[kind])} for kind in waiting]}
            last = [past.task.kind for past in self._history()][-1:]
            self._chosen = held or next(iter([*waiting, *last]), None)
        answer = self._work(wish)
        if self._apart:
            answer["apart"] = True
            if answer["stage"] == "done":
                other = next(kind for kind in KINDS if kind != self._task)
                answer["other"] = {"kind": other, "open": self._progress(other).open}
        return {**answer, "kind": self._task}

    def _work(self, wish: str) -> dict[str, Any]:
        """The next of this task: practice, then whatever waits."""
        standing = self._standing()
        return self._item(self._claim(gold_first=standing.practising), standing)

    def _item(self, task: queue.Task | None, standing: Standing) -> dict[str, Any]:
        counts = self._progress()
        practice = {"done": standing.practised, "number": standing.practice}
        return {
            "stage": "item" if task else "done",
            "task": shown(task) if task else None,
            "facts": self._facts(task) if task else None,
            "progress": asdict(counts),
            "count": counts.done + counts.skipped,
            "first_index": standing.closed,
            **({"practice": practice} if task and standing.practising else {}),
        }

    def _claim(self, gold_first: bool = False) -> queue.Task | None:
        return queue.next_task(self._open(), self._annotator, self._seed, self._lease, self._task, gold_first)

    def _progress(self, kind: str | None = None) -> queue.Progress:
        return queue.progress(self._open(), self._annotator, kind=kind or self._task)

    def _standing(self, kind: str | None = None) -> Standing:
        if not (self._settings.practice or self._settings.number):
            return Standing(0, 0, 0, ())
        found = queue.qualify(self._open(), self._annotator, kind=kind or self._task)
        return Standing.of(found, self._settings)

    def _history(self, every: bool = False) -> list[queue.Past]:
        """What was answered in this task, or in all."""
        wanted = None if every else self._task
        return [past for past in queue.history(self._open(), self._annotator) if wanted in (None, past.task.kind)]

    def _past(self, index: int) -> dict[str, Any]:
        history = self._history()
        if index >= len(history):
            raise LabError(f"there is no earlier pair number {index + 1}; you have answered {len(history)}")
        past = history[index]
        self._refuse_closed(past.task.item_id, None)
        label = {
            key: getattr(past.label, key)
            for key in ("label_id", "side", "grade", "safe_left", "safe_right", "comment", "flag", "skip_reason")
        }
        return {"task": shown(past.task), "facts": self._facts(past.task), "label": label, "count": len(history)}

    def _refuse_closed(self, item_id: str, label_id: str | None) -> None:
        """LabError for a pair of practice or of an attempt that is over, unless it is about the very label that it
        has."""
        if not (self._settings.practice or self._settings.number):
            return
        every = self._history(every=True)
        past = next((past for past in every if past.task.item_id == item_id), None)
        if past and past.label.label_id != label_id and item_id in self._closed(past.task.kind, every):
            raise LabError(CLOSED)

    def _closed(self, kind: str, history: Sequence[queue.Past]) -> set[str]:
        """The pairs of a task that cannot be changed any more: those of practice and of attempts that are over."""
        standing = self._standing(kind)
        first = [past.task.item_id for past in history if past.task.kind == kind][: standing.closed]
        # Gold pairs are the first ones, unless some pairs were answered before there was practice or qualification.
        return set(standing.items[: standing.closed] or first)

    def _find(self, message: Find) -> dict[str, Any]:
        """The newest of one's pairs of this task that fit and can be changed, how many fit, and of how many."""
        history = self._history()
        closed = set[str]().union(*(self._closed(kind, history) for kind in {past.task.kind for past in history}))
        mine = [(i, past) for i, past in enumerate(history) if past.task.item_id not in closed]
        fitting = [(i, past) for i, past in mine if finding.fits(past, message)]
        found = [finding.line(i, past, message.text, NAMES) for i, past in reversed(fitting[-finding.FOUND :])]
        return {"found": found, "fitting": len(fitting), "of": len(mine)}

    # -- what stands beside a pair -----------------------------------------------------------------------------------

    def _guidelines(self, kind: str | None) -> list[dict[str, Any]]:
        kinds = [kind] if kind else [self._task] if self._task else list(KINDS)
        found = [(k, *self._open().guidelines(k)) for k in kinds]
        return [{"kind": k, "version": v, **self._parts(text)} for k, v, text in found if text]

    def _parts(self, text: str) -> dict[str, Any]:
        rules, whole = book.split(text)
        return {"text": rules, "title": whole.title, "book": [list(line) for line in whole.lines.items()]}

    def _facts(self, task: queue.Task) -> dict[str, Any] | None:
        """The lines about whom the pair names, of the book in the guidelines of its own task or else of the other."""
        for kind in dict.fromkeys((task.kind, *KINDS)):
            _, there = book.split(self._open().guidelines(kind)[1])
            if there.lines:
                texts = [str(m["content"])[:SHOWN_CHARS] for m in task.prompt[-SHOWN_MESSAGES:]]
                return book.facts(there, [*texts, task.left_text[:SHOWN_CHARS], task.right_text[:SHOWN_CHARS]])
        return None

    def _summary(self) -> dict[str, Any]:
        standing = self._standing()
        over = not self._progress().open
        return feedback.summary(self._open(), self._annotator, self._task, standing.practice, over)

    # -- labels ------------------------------------------------------------------------------------------------------

    def _save(self, message: Submit | Skip) -> dict[str, Any]:
        store, item = self._open(), message.item_id
        self._refuse_closed(item, message.label_id)
        before = len(self._standing().outcomes) if self._task else None
        save = queue.submit if isinstance(message, Submit) else queue.skip
        try:
            save(store, self._annotator, **message.model_dump(exclude={"request", "type"}))
        except queue.Superseded as e:
            past = next((past for past in self._history(every=True) if past.task.item_id == item), None)
            if past is None:
                raise
            self._chosen = past.task.kind
            index = [p.task.item_id for p in self._history()].index(item)
            return {"saved": e.label_id, "newer": index, "notice": OTHER_WINDOW}
        except StoreError:
            raise
        except LabError as e:
            answered = any(past.task.item_id == item for past in self._history(every=True))
            if not answered and not queue.renew(store, self._annotator, item, self._lease):
                e.gone = True  # type: ignore[attr-defined]  # the page then goes on with another item
            raise
        told = self._told(item, before) if message.replaces is None else None
        return {"saved": message.label_id, **({"feedback": told} if told else {})}

    def _told(self, item: str, before: int | None) -> dict[str, Any] | None:
        """What practice says of a new label; None where there is no practice (any more). `before`: gold pairs answered
        before it, where that is known; by this a class's login, which is not told which pairs are gold, sees that this
        was one."""
        if not self._settings.practice:
            return None
        kind = next(past.task.kind for past in self._history(every=True) if past.task.item_id == item)
        standing = self._standing(kind)
        newest = standing.items[-1] == item if standing.items else len(standing.outcomes) - 1 == before
        if not standing.practised or standing.tried or not newest:
            return None
        return feedback.practice_feedback(self._open(), self._annotator, item, kind)

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
