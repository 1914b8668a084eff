"""The events of a stream of /v1/responses; the stream sets their sequence numbers."""

import msgspec

from server.apis.responses.response import OutputItem, OutputText, ReasoningText, Response


class StreamTopLogprob(msgspec.Struct):
    """One candidate token for a position."""

    token: str
    logprob: float


class StreamLogprob(msgspec.Struct):
    """The token at one position and the most likely ones."""

    token: str
    logprob: float
    top_logprobs: list[StreamTopLogprob]


class ResponseEvent(msgspec.Struct, kw_only=True, tag_field="type"):
    """Base of all events."""

    sequence_number: int = -1


class LifecycleEvent(ResponseEvent, kw_only=True):
    """Base of the events about the response as a whole."""

    response: Response


class ResponseCreated(LifecycleEvent, kw_only=True, tag="response.created"):
    """The first event."""


class ResponseInProgress(LifecycleEvent, kw_only=True, tag="response.in_progress"):
    """The second event."""


class ResponseCompleted(LifecycleEvent, kw_only=True, tag="response.completed"):
    """The last event, as in vLLM also of a response whose status is `incomplete`."""


class ResponseFailed(LifecycleEvent, kw_only=True, tag="response.failed"):
    """The last event of a response that failed."""


class ItemEvent(ResponseEvent, kw_only=True):
    """Base of the events about a whole output item."""

    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, kw_only=True, tag="response.output_item.added"):
    """An item begins."""


class ItemDone(ItemEvent, kw_only=True, tag="response.output_item.done"):
    """An item is complete."""


class InsideItemEvent(ResponseEvent, kw_only=True):
    """Base of the events about something inside an item."""

    item_id: str
    output_index: int


class InsidePartEvent(InsideItemEvent, kw_only=True):
    """Base of the events about a part of an item; every item has at most one."""

    content_index: int = 0


class PartAdded(InsidePartEvent, kw_only=True, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText | ReasoningText


class PartDone(InsidePartEvent, kw_only=True, tag="response.content_part.done"):
    """A part is complete."""

    part: OutputText | ReasoningText


class TextDelta(InsidePartEvent, kw_only=True, tag="response.output_text.delta"):
    """New text of a message."""

    delta: str
    logprobs: list[StreamLogprob] = []


class TextDone(InsidePartEvent, kw_only=True, tag="response.output_text.done"):
    """The whole text of a message."""

    text: str
    logprobs: list[StreamLogprob] = []


class ReasoningDelta(InsidePartEvent, kw_only=True, tag="response.reasoning_text.delta"):
    """New text of the reasoning."""

    delta: str


class ReasoningDone(InsidePartEvent, kw_only=True, tag="response.reasoning_text.done"):
    """The whole text of the reasoning."""

    text: str


class ArgumentsDelta(InsideItemEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    """New text of a call's arguments."""

    delta: str


class ArgumentsDone(InsideItemEvent, kw_only=True, tag="response.function_call_arguments.done"):
    """The whole arguments of a call."""

    name: str
    arguments: str


class CustomInputDelta(InsideItemEvent, kw_only=True, tag="response.custom_tool_call_input.delta"):
    """New text of a custom tool's input."""

    delta: str


class CustomInputDone(InsideItemEvent, kw_only=True, tag="response.custom_tool_call_input.done"):
    """The whole input of a custom tool."""

    input: str


ResponseStreamEvent = (
    ResponseCreated
    | ResponseInProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | CustomInputDelta
    | CustomInputDone
    | PartDone
    | ItemDone
    | ResponseCompleted
    | ResponseFailed
)
"""Every event of a stream."""
