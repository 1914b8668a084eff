"""Writes a generated message as the blocks of /v1/messages."""

from typing import Any
from uuid import uuid4

from server.apis.messages.response import (
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    ResponseBlock,
    SignatureDelta,
    StopDelta,
    StreamEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from server.parsers.json_text import read_json


class BlockStream:
    """The events of one message's blocks, which follow one another; each method returns what it adds.

    Text that arrives while a call is open is held back until the call ends: more of its arguments may come.
    """

    def __init__(self) -> None:
        self._index = -1
        self._open: type[ResponseBlock] | None = None
        self._held: list[str] = []
        self._arguments: list[str] = []
        self.has_calls = False

    @property
    def is_call_complete(self) -> bool:
        """Whether the latest call's arguments are complete."""
        return self.has_calls and parse_arguments("".join(self._arguments)) is not None

    def add_thinking(self, text: str) -> list[StreamEvent]:
        """More of the reasoning."""
        events = self._open_block(ThinkingBlock(thinking=""))
        return [*events, self._delta(ThinkingDelta(text))]

    def add_text(self, text: str) -> list[StreamEvent]:
        """More of the answer's text."""
        if self._open is ToolUseBlock:
            self._held.append(text)
            return []
        events = self._open_block(TextBlock(text=""))
        return [*events, self._delta(TextDelta(text))]

    def add_call(self, call_id: str, name: str) -> list[StreamEvent]:
        """A new call without arguments yet."""
        events = self.close()
        self.has_calls, self._arguments = True, []
        return events + self._open_block(ToolUseBlock(id=call_id, name=name, input={}))

    def add_arguments(self, text: str) -> list[StreamEvent]:
        """More of the latest call's arguments."""
        self._arguments.append(text)
        return [self._delta(InputJsonDelta(text))]

    def close(self) -> list[StreamEvent]:
        """The end of the open block, then the text that was held back."""
        held, self._held = "".join(self._held), []
        events = self._close_block()
        return [*events, *self.add_text(held), *self._close_block()] if held else events

    def _open_block(self, block: ResponseBlock) -> list[StreamEvent]:
        if self._open is type(block):
            return []
        events = self.close()
        self._index += 1
        self._open = type(block)
        return [*events, ContentBlockStart(block, self._index)]

    def _close_block(self) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        if self._open is ThinkingBlock:
            events.append(self._delta(SignatureDelta(create_signature())))
        if self._open is not None:
            events.append(ContentBlockStop(self._index))
        self._open = None
        return events

    def _delta(self, delta: BlockDelta) -> ContentBlockDelta:
        return ContentBlockDelta(delta, self._index)


def create_signature() -> str:
    """The signature of a thinking block; clients send it back, and it is not checked."""
    return uuid4().hex


def parse_arguments(text: str) -> dict[str, Any] | None:
    """A call's arguments; None if they are incomplete."""
    try:
        arguments = read_json(text)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def create_stop(
    finish_reason: str | None, stop_reason: int | str | None, *, has_calls: bool, is_call_complete: bool
) -> StopDelta:
    """Why a message ends. A stop sequence counts more than a call that it has cut short."""
    if finish_reason == "length":
        return StopDelta("max_tokens")
    if finish_reason not in ("stop", "tool_calls"):
        return StopDelta()
    if is_call_complete:
        return StopDelta("tool_use")
    if isinstance(stop_reason, str):
        return StopDelta("stop_sequence", stop_reason)
    return StopDelta("tool_use" if has_calls or finish_reason == "tool_calls" else "end_turn")
