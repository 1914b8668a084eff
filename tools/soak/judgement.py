"""Determines from a response how a request ended."""

from typing import Any, Final, NamedTuple

import msgspec

from tools.soak.ledger import SHED_STATUSES, Ending

_LONGEST_MESSAGE: Final = 300


class Judgement(NamedTuple):
    """How a request ended, and the message of an unexpected ending."""

    ending: Ending
    message: str = ""


class _Error(msgspec.Struct):
    code: Any = None


class _Event(msgspec.Struct):
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Event)


def judge_answer(status: int, content: bytes, *, is_stream: bool) -> Judgement:
    """Judges a response whose body was read to its end."""
    if status in SHED_STATUSES:
        return Judgement("shed")
    if status >= 500:
        return Judgement("failed", f"HTTP {status}: {_shorten(content)}")
    if status >= 400:
        return Judgement("refused")
    return judge_stream(content) if is_stream else Judgement("answered")


def judge_stream(content: bytes) -> Judgement:
    """Judges the events of a stream: the last one must be `[DONE]`, and none may be an error."""
    payloads = [line[5:].strip() for line in content.split(b"\n") if line.startswith(b"data:")]
    for payload in payloads:
        if b'"error"' in payload and (error := _find_error(payload)) is not None:
            is_shed = error.code in SHED_STATUSES
            return Judgement("shed") if is_shed else Judgement("failed", f"in a stream: {_shorten(payload)}")
    if not payloads or payloads[-1] != b"[DONE]":
        return Judgement("lost", f"the stream ended after {_shorten(content[-_LONGEST_MESSAGE:])!r}")
    return Judgement("answered")


def _find_error(payload: bytes) -> _Error | None:
    try:
        return _decoder.decode(payload).error
    except msgspec.DecodeError:
        return None


def _shorten(content: bytes) -> str:
    return " ".join(content.decode(errors="replace").split())[:_LONGEST_MESSAGE]
