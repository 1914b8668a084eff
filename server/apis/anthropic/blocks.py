"""Writes a generated message as the content blocks of /v1/messages."""

from typing import Any
from uuid import uuid4

from server.text.parsers.json_text import read_json

StreamEvent = dict[str, Any]


class BlockStream:
    """Writes the content blocks of one message. Each method returns the events that it adds to the stream.

    Text that arrives within a call is held back until the call ends, because more arguments may follow.
    """

    def __init__(self) -> None:
        self.blocks: list[dict[str, Any]] = []
        """The blocks so far. The last block has no content while it is open."""
        self._open: str | None = None
        """The type of the open block. None if no block is open."""
        self._texts: list[str] = []
        self._held: list[str] = []
        self.has_calls = False
        self.is_call_complete = False
        """Whether the last call that ended has complete arguments."""

    def add_thinking(self, text: str) -> list[StreamEvent]:
        events = self._open_block({"type": "thinking", "thinking": ""})
        return [*events, self._add({"type": "thinking_delta", "thinking": text}, text)]

    def add_text(self, text: str) -> list[StreamEvent]:
        if self._open == "tool_use":
            self._held.append(text)
            return []
        events = self._open_block({"type": "text", "text": ""})
        return [*events, self._add({"type": "text_delta", "text": text}, text)]

    def add_call(self, call_id: str, name: str) -> list[StreamEvent]:
        """Opens a new call, which has no arguments yet."""
        self.has_calls = True
        events = self.close()
        return events + self._open_block({"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def add_arguments(self, text: str) -> list[StreamEvent]:
        return [self._add({"type": "input_json_delta", "partial_json": text}, text)]

    def close(self) -> list[StreamEvent]:
        """Ends the open block, then adds the held-back text as a block of its own."""
        held, self._held = "".join(self._held), []
        events = self._close_block()
        return [*events, *self.add_text(held), *self._close_block()] if held else events

    def stop(self, finish_reason: str | None, stop_reason: int | str | None) -> dict[str, str | None]:
        """Returns why the message ends. If a stop sequence has cut off a call, the sequence is the reason."""
        sequence = None
        reason: str | None = "tool_use" if self.has_calls or finish_reason == "tool_calls" else "end_turn"
        if finish_reason == "length":
            reason = "max_tokens"
        elif finish_reason not in ("stop", "tool_calls"):
            reason = None
        elif isinstance(stop_reason, str) and not self.is_call_complete:
            reason, sequence = "stop_sequence", stop_reason
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _open_block(self, block: dict[str, Any]) -> list[StreamEvent]:
        if self._open == block["type"]:
            return []
        events = self.close()
        self._open = block["type"]
        self.blocks.append(block)
        return [*events, self._event("content_block_start", content_block=block)]

    def _close_block(self) -> list[StreamEvent]:
        if self._open is None:
            return []
        events, text = [], "".join(self._texts)
        whole: dict[str, Any] = {"text": text}
        if self._open == "thinking":
            whole = {"thinking": text, "signature": uuid4().hex}  # clients send the signature back; nothing checks it
            delta = {"type": "signature_delta", "signature": whole["signature"]}
            events.append(self._event("content_block_delta", delta=delta))
        elif self._open == "tool_use":
            arguments = _parse_arguments(text)
            self.is_call_complete = arguments is not None
            whole = {"input": arguments or {}}
        self.blocks[-1] = self.blocks[-1] | whole
        self._open, self._texts = None, []
        return [*events, self._event("content_block_stop")]

    def _add(self, delta: dict[str, Any], text: str) -> StreamEvent:
        self._texts.append(text)
        return self._event("content_block_delta", delta=delta)

    def _event(self, type: str, **fields: Any) -> StreamEvent:
        return {"type": type, **fields, "index": len(self.blocks) - 1}


def _parse_arguments(text: str) -> dict[str, Any] | None:
    """Returns the arguments of a call. None if the text is not a complete JSON object."""
    try:
        arguments = read_json(text)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None
