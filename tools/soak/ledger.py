"""How every request of a soak ended: the judgement of a response, and counters by kind and by status."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

Ending = Literal["answered", "refused", "shed", "left", "failed", "lost"]
"""`answered`: completely. `refused`: 4xx. `shed`: 429, 503 or 504, by an overloaded server. `left`: the
client disconnected on purpose. `failed`: another 5xx, or an error event in a stream. `lost`: the connection
ended without an error."""

SHED_STATUSES: Final = (429, 503, 504)
_MAX_MESSAGES: Final = 20
_LONGEST_MESSAGE: Final = 300


@dataclass
class Ledger:
    """Holds only counters, so that it does not grow with the duration."""

    endings: defaultdict[str, Counter[Ending]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind of request."""
    statuses: Counter[int] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    """Messages of the first few unexpected endings."""

    def record(self, kind: str, ending: Ending, *, status: int | None = None, message: str = "") -> None:
        """Records the end of one request."""
        self.endings[kind][ending] += 1
        if status is not None:
            self.statuses[status] += 1
        if ending in ("failed", "lost"):
            self._add_message(f"{kind}: {ending}: {message}")

    def _add_message(self, message: str) -> None:
        if len(self.messages) < _MAX_MESSAGES and message not in self.messages:
            self.messages.append(message)

    def count(self, ending: Ending) -> int:
        """Number of requests with this ending."""
        return sum(endings[ending] for endings in self.endings.values())

    @property
    def num_requests(self) -> int:
        return sum(endings.total() for endings in self.endings.values())


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
