"""The output item that is being written, one class per kind: its events in vLLM's order, and the item."""

from abc import ABC, abstractmethod
from typing import ClassVar
from uuid import uuid4

from server.apis.responses.custom_input import CustomInputReader
from server.apis.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomInputDelta,
    CustomInputDone,
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
from server.apis.responses.tools import CalledTool
from server.generation.logprob_bodies import ChatLogprob


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


class OpenMessage(OpenItem):
    """Text for the user."""

    id_prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[ChatLogprob] = []

    def begin(self) -> list[ResponseEvent]:
        part = OutputText(text="", logprobs=[])
        return [*super().begin(), PartAdded(item_id=self._id, output_index=self._index, part=part)]

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        self._logprobs += logprobs
        shown = [_stream_logprob(entry) for entry in logprobs]
        return [TextDelta(item_id=self._id, output_index=self._index, delta=text, logprobs=shown)]

    def end(self) -> list[ResponseEvent]:
        return [
            TextDone(item_id=self._id, output_index=self._index, text=self._text),
            PartDone(item_id=self._id, output_index=self._index, part=self._part),
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
        return [*super().begin(), PartAdded(item_id=self._id, output_index=self._index, part=part)]

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        return [ReasoningDelta(item_id=self._id, output_index=self._index, delta=text)]

    def end(self) -> list[ResponseEvent]:
        part = ReasoningText(text=self._text)
        return [
            ReasoningDone(item_id=self._id, output_index=self._index, text=self._text),
            PartDone(item_id=self._id, output_index=self._index, part=part),
            *super().end(),
        ]

    def item(self, status: OutputStatus) -> ReasoningItem:
        content = [ReasoningText(text=self._text)] if self._texts else None
        return ReasoningItem(id=self._id, status=status, content=content)


class OpenFunctionCall(OpenItem):
    """The arguments of a call."""

    id_prefix = "fc"

    def __init__(self, index: int, call_id: str, tool: CalledTool) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._tool = tool

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        self._texts.append(text)
        return [ArgumentsDelta(item_id=self._id, output_index=self._index, delta=text)]

    def end(self) -> list[ResponseEvent]:
        name = self._tool.name
        done = ArgumentsDone(item_id=self._id, output_index=self._index, name=name, arguments=self._text)
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


class OpenCustomCall(OpenItem):
    """The text for a custom tool, inside the arguments of the function that stands for it."""

    id_prefix = "ctc"

    def __init__(self, index: int, call_id: str, tool: CalledTool) -> None:
        super().__init__(index)
        self._call_id = call_id
        self._tool = tool
        self._reader = CustomInputReader()

    def extend(self, text: str, logprobs: list[ChatLogprob]) -> list[ResponseEvent]:
        return self._show(self._reader.read(text))

    def end(self) -> list[ResponseEvent]:
        rest, whole = self._reader.finish()
        self._texts = [whole]
        done = CustomInputDone(item_id=self._id, output_index=self._index, input=whole)
        return [*self._show(rest), done, *super().end()]

    def item(self, status: OutputStatus) -> CustomToolCallItem:
        return CustomToolCallItem(id=self._id, call_id=self._call_id, name=self._tool.name, input=self._text)

    def _show(self, text: str) -> list[ResponseEvent]:
        return [CustomInputDelta(item_id=self._id, output_index=self._index, delta=text)] if text else []


def _stream_logprob(entry: ChatLogprob) -> StreamLogprob:
    top = [StreamTopLogprob(candidate.token, candidate.logprob) for candidate in entry.top_logprobs]
    return StreamLogprob(entry.token, entry.logprob, top)
