"""Turns the parts of a model's output into output items, one after the other, and their events."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from uuid import uuid4

from server.apis.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomInputDelta,
    CustomInputDone,
    InsideItemEvent,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
    StreamLogprob,
    StreamTopLogprob,
    TextDelta,
    TextDone,
)
from server.apis.responses.response import (
    CustomToolCallItem,
    FunctionCallItem,
    MessageItem,
    OutputItem,
    OutputStatus,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from server.apis.responses.tools import CalledTool, CustomInputReader, ResponseTools
from server.generation.logprobs import ChatLogprob
from server.generation.output_parsing import Part, ToolCallPart
from server.parsers.events import Content, Reasoning


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

    def _switch_to(self, item: "OpenItem") -> list[ResponseEvent]:
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


class OpenItem(ABC):
    """Base of the kinds; `begin`, `extend` and `end` return events."""

    id_prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        """`index` is the position in the response's output."""
        self._index = index
        self._id = f"{self.id_prefix}_{uuid4().hex}"
        self._texts: list[str] = []

    def begin(self) -> list[ResponseEvent]:
        return [ItemAdded(output_index=self._index, item=self.item("in_progress"))]

    @abstractmethod
    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        """Adds text, which is not empty."""

    def end(self) -> list[ResponseEvent]:
        return [ItemDone(output_index=self._index, item=self.item("completed"))]

    @abstractmethod
    def item(self, status: OutputStatus) -> OutputItem:
        """The item so far."""

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    def _event(self, kind: type[InsideItemEvent], **fields: Any) -> ResponseEvent:
        return kind(item_id=self._id, output_index=self._index, **fields)


class OpenMessage(OpenItem):
    """Text for the user."""

    id_prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[ChatLogprob] = []

    def begin(self) -> list[ResponseEvent]:
        part = OutputText(text="", logprobs=[])
        return [*super().begin(), self._event(PartAdded, part=part)]

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        self._logprobs += logprobs
        shown = [_stream_logprob(entry) for entry in logprobs]
        return [self._event(TextDelta, delta=text, logprobs=shown)]

    def end(self) -> list[ResponseEvent]:
        return [
            self._event(TextDone, text=self._text),
            self._event(PartDone, part=self._part),
            *super().end(),
        ]

    def item(self, status: OutputStatus) -> MessageItem:
        return MessageItem(id=self._id, status=status, content=[self._part] if self._texts else [])

    @property
    def _part(self) -> OutputText:
        return OutputText(text=self._text, logprobs=self._logprobs or None)


class OpenReasoning(OpenItem):
    """Text of the reasoning."""

    id_prefix = "rs"

    def begin(self) -> list[ResponseEvent]:
        part = ReasoningText(text="")
        return [*super().begin(), self._event(PartAdded, part=part)]

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        return [self._event(ReasoningDelta, delta=text)]

    def end(self) -> list[ResponseEvent]:
        part = ReasoningText(text=self._text)
        return [
            self._event(ReasoningDone, text=self._text),
            self._event(PartDone, part=part),
            *super().end(),
        ]

    def item(self, status: OutputStatus) -> ReasoningItem:
        content = [ReasoningText(text=self._text)] if self._texts else None
        return ReasoningItem(id=self._id, status=status, content=content)


class OpenCall(OpenItem):
    """Base of calls."""

    def __init__(self, index: int, call_id: str, tool: CalledTool) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._tool = tool


class OpenFunctionCall(OpenCall):
    """The arguments of a call."""

    id_prefix = "fc"

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        return [self._event(ArgumentsDelta, delta=text)]

    def end(self) -> list[ResponseEvent]:
        name = self._tool.name
        done = self._event(ArgumentsDone, name=name, arguments=self._text)
        return [done, *super().end()]

    def item(self, status: OutputStatus) -> FunctionCallItem:
        return FunctionCallItem(
            id=self._id,
            status=status,
            call_id=self._call_id,
            name=self._tool.name,
            namespace=self._tool.namespace,
            arguments=self._text,
        )


class OpenCustomCall(OpenCall):
    """The text for a custom tool, inside the arguments of the function that stands for it."""

    id_prefix = "ctc"

    def __init__(self, index: int, call_id: str, tool: CalledTool) -> None:
        super().__init__(index, call_id, tool)
        self._reader = CustomInputReader()

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        return self._show(self._reader.read(text))

    def end(self) -> list[ResponseEvent]:
        rest, whole = self._reader.finish()
        self._texts = [whole]
        done = self._event(CustomInputDone, input=whole)
        return [*self._show(rest), done, *super().end()]

    def item(self, status: OutputStatus) -> CustomToolCallItem:
        return CustomToolCallItem(id=self._id, call_id=self._call_id, name=self._tool.name, input=self._text)

    def _show(self, text: str) -> list[ResponseEvent]:
        return [self._event(CustomInputDelta, delta=text)] if text else []


def _stream_logprob(entry: ChatLogprob) -> StreamLogprob:
    top = [StreamTopLogprob(candidate.token, candidate.logprob) for candidate in entry.top_logprobs]
    return StreamLogprob(entry.token, entry.logprob, top)
