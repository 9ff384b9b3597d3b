"""A widget that answers its page: each message is read, dealt with in its turn, and answered once, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import anywidget

from llama2lab.annotation.form.messages import Message, parse, printable
from llama2lab.engine.errors import LabError, first_line


class Answering(anywidget.AnyWidget):
    """What the form and the teacher's desk are: `_answer` deals with a message of `_messages`."""

    _messages: Mapping[str, type[Message]]

    def __init__(self, **traits: Any):
        self._lock = threading.RLock()  # messages may arrive in threads beside a running cell
        super().__init__(**traits)
        self.on_msg(self._receive)

    def _answer(self, message: Message) -> dict[str, Any]:
        """What the page is told. LabError for what it cannot have."""
        raise NotImplementedError

    def _fault_words(self, e: Exception) -> str:
        return f"a fault in the lab itself ({type(e).__name__}: {first_line(e)}); please report it"

    def _receive(self, _: Any, content: Any, __: Any) -> None:
        request = content.get("request") if isinstance(content, Mapping) else None
        fault: Exception | None = None
        try:
            with self._lock:
                answer = {"ok": True, **self._answer(parse(content, self._messages))}
        except LabError as e:
            known = {name: getattr(e, name, False) for name in ("retry", "gone")}
            answer = {"ok": False, "error": str(e), **known}
        except Exception as e:
            fault = e
            answer = {"ok": False, "error": self._fault_words(e), "retry": False, "gone": False}
        self.send({"type": "answer", "request": request if isinstance(request, str) else None, **printable(answer)})
        if fault:
            raise fault
