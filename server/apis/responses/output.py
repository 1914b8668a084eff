"""Turns the parts of a model's output into output items and into events."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

from server.apis.responses.tools import ResponseTools
from server.generation.chat import Part, ToolCallPart
from server.generation.logprobs import ChatLogprob
from server.text.parsers.output_parser import Content, Reasoning

OutputItem = dict[str, Any]
ResponseEvent = dict[str, Any]


class ItemKind(NamedTuple):
    """A kind of output item."""

    type: str
    id_prefix: str
    event: str
    """The first part of the names of events that have the item's text."""
    text: str
    """The key that holds the item's whole text."""
    part: str | None = None
    """The type of the item's only part. None if the item has no parts."""


MESSAGE: Final = ItemKind("message", "msg", "response.output_text", "text", "output_text")
REASONING: Final = ItemKind("reasoning", "rs", "response.reasoning_text", "text", "reasoning_text")
CALL: Final = ItemKind("function_call", "fc", "response.function_call_arguments", "arguments")


def create_event(type: str, **fields: Any) -> ResponseEvent:
    """Creates an event. The stream sets its sequence number."""
    return {"type": type, "sequence_number": -1, **fields}


class OutputWriter:
    """Writes the output of one response."""

    def __init__(self, tools: ResponseTools) -> None:
        self.items: list[OutputItem] = []
        """The complete items."""
        self._tools = tools
        self._open: OpenItem | None = None
        self._spaces: list[str] = []
        """White space outside a message. The next text begins a message with it. A tool call drops it."""
        self._logprobs: list[ChatLogprob] = []

    def add(self, parts: Sequence[Part], logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        """Adds parts, and returns their events. The next text of a message gets the `logprobs`."""
        self._logprobs += logprobs
        events: list[ResponseEvent] = []
        for part in parts:
            if isinstance(part, Content):
                events += self._add_content(part.text)
                continue
            self._logprobs = []
            events += self._add_call(part) if isinstance(part, ToolCallPart) else self._add_reasoning(part)
        return events

    def finish(self) -> list[ResponseEvent]:
        """Ends the last item. Returns its events."""
        if self._spaces and self._open is None:
            spaces = "".join(self._spaces)
            return [*self._switch_to(MESSAGE), *self._extend(spaces), *self._close()]
        return self._close()

    def _add_content(self, text: str) -> list[ResponseEvent]:
        if self._open is not None and self._open.kind is MESSAGE:
            return self._extend(text)
        if text:
            self._spaces.append(text)
        if not text or text.isspace():
            return []
        return [*self._switch_to(MESSAGE), *self._extend("".join(self._spaces))]

    def _add_reasoning(self, part: Reasoning) -> list[ResponseEvent]:
        if (self._open is not None and self._open.kind is REASONING) or not part.text:
            return self._extend(part.text)
        return [*self._switch_to(REASONING), *self._extend(part.text)]

    def _add_call(self, part: ToolCallPart) -> list[ResponseEvent]:
        if part.name is None:
            return self._extend(part.arguments)
        tool = self._tools.called(part.name)
        called = {"call_id": part.id, "name": tool.name, "namespace": tool.namespace}
        return [*self._switch_to(CALL, called), *self._extend(part.arguments)]

    def _switch_to(self, kind: ItemKind, called: dict[str, Any] | None = None) -> list[ResponseEvent]:
        closing = self._close()
        self._open = OpenItem(kind, len(self.items), called or {})
        return closing + self._open.begin()

    def _extend(self, text: str) -> list[ResponseEvent]:
        self._spaces = []
        if self._open is None or not text:
            return []
        logprobs, self._logprobs = self._logprobs, []
        return self._open.extend(text, logprobs)

    def _close(self) -> list[ResponseEvent]:
        if self._open is None:
            return []
        events = self._open.end()
        self._open = None
        self.items.append(events[-1]["item"])
        return events


class OpenItem:
    """An item whose text is not complete yet. `begin`, `extend` and `end` return events."""

    def __init__(self, kind: ItemKind, index: int, called: dict[str, Any]) -> None:
        """`index` is the position in the output. `called` has all fields of a call except its text."""
        self.kind = kind
        self._index = index
        self._id = f"{kind.id_prefix}_{uuid4().hex}"
        self._called = called
        self._texts: list[str] = []
        self._logprobs: list[ChatLogprob] = []

    def begin(self) -> list[ResponseEvent]:
        """Returns the events before the first text."""
        added = create_event("response.output_item.added", output_index=self._index, item=self._item("in_progress"))
        if self.kind.part is None:
            return [added]
        return [added, self._event("response.content_part.added", part=self._part([]))]

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        """Adds text, which must not be empty."""
        self._texts.append(text)
        self._logprobs += logprobs
        shown = {"logprobs": [_shown_logprob(entry) for entry in logprobs]} if self.kind is MESSAGE else {}
        return [self._event(f"{self.kind.event}.delta", delta=text, **shown)]

    def end(self) -> list[ResponseEvent]:
        """Returns the events after the last text. The last event has the whole item."""
        fields: dict[str, Any] = {}
        if self.kind is CALL:
            fields["name"] = self._called["name"]
        fields[self.kind.text] = self._text
        if self.kind is MESSAGE:
            fields["logprobs"] = []
        events = [self._event(f"{self.kind.event}.done", **fields)]
        if self.kind.part is not None:
            events.append(self._event("response.content_part.done", part=self._part(self._logprobs or None)))
        item = self._item("completed")
        return [*events, create_event("response.output_item.done", output_index=self._index, item=item)]

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    def _item(self, status: str) -> OutputItem:
        """Returns the item with its text so far."""
        head: OutputItem = {"type": self.kind.type, "id": self._id, "status": status}
        if self._called:
            return {**head, **self._called, self.kind.text: self._text}
        content = [self._part(self._logprobs or None)] if self._texts else None
        if self.kind is REASONING:
            return {**head, "summary": [], "content": content}
        return {**head, "role": "assistant", "content": content or []}

    def _part(self, logprobs: list[ChatLogprob] | None) -> dict[str, Any]:
        part = {"type": self.kind.part, "text": self._text}
        return part | {"annotations": [], "logprobs": logprobs} if self.kind is MESSAGE else part

    def _event(self, type: str, **fields: Any) -> ResponseEvent:
        place: dict[str, Any] = {"item_id": self._id, "output_index": self._index}
        if self.kind.part is not None:
            place["content_index"] = 0
        return create_event(type, **place, **fields)


def _shown_logprob(entry: ChatLogprob) -> dict[str, Any]:
    top = [{"token": candidate.token, "logprob": candidate.logprob} for candidate in entry.top_logprobs]
    return {"token": entry.token, "logprob": entry.logprob, "top_logprobs": top}
