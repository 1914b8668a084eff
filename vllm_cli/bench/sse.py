"""Reads a server-sent event stream of completion chunks, with little work per token."""

from typing import Any

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """The token counts of an OpenAI body."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning or delta.reasoning_content)))


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Reads the bytes of one stream and records when text arrived.

    Only chunks with text count: an empty first chat delta or a trailing usage chunk is not a token.
    """

    def __init__(self) -> None:
        self.text_times_ns: list[int] = []
        self.usage: Usage | None = None
        self.error: str | None = None
        self.is_finished = False
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Reads bytes that arrived at `now_ns`; a line may be spread over several calls."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:].strip(), now_ns)

    def _read_event(self, payload: bytes, now_ns: int) -> None:
        if payload == b"[DONE]":
            self.is_finished = True
            return
        chunk = _decoder.decode(payload)
        if chunk.error is not None:
            self.error = str(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            if choice.has_text:
                self.text_times_ns.append(now_ns)
            if choice.finish_reason is not None:
                self.is_finished = True
