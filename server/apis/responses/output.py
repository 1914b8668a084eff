"""Turns the parts of a model's output into output items, one after the other, and their events."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.apis.responses.events import ItemDone, ResponseEvent
from server.apis.responses.open_items import OpenCustomCall, OpenFunctionCall, OpenItem, OpenMessage, OpenReasoning
from server.apis.responses.tools import ResponseTools
from server.generation.chat_run import Part, ToolCallPart
from server.generation.logprob_bodies import ChatLogprob
from server.parsers.events import Content, Reasoning

if TYPE_CHECKING:
    from server.apis.responses.response import OutputItem


class OutputWriter:
    """The output of one response."""

    def __init__(self, tools: ResponseTools) -> None:
        self.items: list[OutputItem] = []
        """The complete items."""
        self._tools = tools
        self._open: OpenItem | None = None
        self._spaces: list[str] = []
        """Spaces that open a message only if other text follows: models write them around calls."""
        self._logprobs: list[ChatLogprob] = []

    def add(self, parts: Sequence[Part], logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        """The events of some tokens, whose log-probabilities are shown with the next text of a message."""
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
        """The events that end the last item."""
        if self._spaces and self._open is None:
            return [*self._switch_to(OpenMessage(0)), *self._extend("".join(self._spaces)), *self._close()]
        return self._close()

    def _add_content(self, text: str) -> list[ResponseEvent]:
        if isinstance(self._open, OpenMessage):
            return self._extend(text)
        if text:
            self._spaces.append(text)
        if not text or text.isspace():
            return []
        return [*self._switch_to(OpenMessage(self._next_index)), *self._extend("".join(self._spaces))]

    def _add_reasoning(self, part: Reasoning) -> list[ResponseEvent]:
        if isinstance(self._open, OpenReasoning) or not part.text:
            return self._extend(part.text)
        return [*self._switch_to(OpenReasoning(self._next_index)), *self._extend(part.text)]

    def _add_call(self, part: ToolCallPart) -> list[ResponseEvent]:
        if part.name is None:
            return self._extend(part.arguments)
        tool = self._tools.called(part.name)
        kind = OpenCustomCall if tool.is_custom else OpenFunctionCall
        call = kind(self._next_index, str(part.id), tool)
        return [*self._switch_to(call), *self._extend(part.arguments)]

    @property
    def _next_index(self) -> int:
        return len(self.items) + (self._open is not None)

    def _switch_to(self, item: OpenItem) -> list[ResponseEvent]:
        closing = self._close()
        self._open = item
        return closing + item.begin()

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
        self.items += [event.item for event in events if isinstance(event, ItemDone)]
        return events
