"""Tracks which part of a request a client has sent. Rejects requests above a limit of time or size."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

import msgspec

from server.terms.http_body.response_body import error_response
from server.terms.limits import LimitsConfig, flag_of

_READ_GRACE_S = 0.05
"""The seconds added to each timeout, in which the loop reads input that arrived while the process was
stopped. When a stopped process continues, the loop runs timers before it reads sockets."""
_FRAMING_FACTOR = 8
"""The most bytes of framing and trailers per body byte. A chunk of one byte has five bytes of framing."""


@dataclass(frozen=True)
class Rejection:
    """An HTTP error for a request that does not reach the application. The connection is then closed."""

    status: int
    message: str
    retry_after_s: int | None = None

    def encode(self, header: tuple[bytes, bytes]) -> bytes:
        """Returns the whole HTTP/1.1 response, with this header and `connection: close`."""
        phrase = HTTPStatus(self.status).phrase
        body = msgspec.json.encode(error_response(self.message, type=phrase, code=self.status))
        lines = [b"HTTP/1.1 %d %s" % (self.status, phrase.encode()), b"%b: %b" % header]
        if self.retry_after_s is not None:
            lines.append(b"retry-after: %d" % self.retry_after_s)
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close", b"", body]
        return b"\r\n".join(lines)


class RejectedError(Exception):
    """Raised with a `Rejection` in a callback of the parser, which then stops parsing the input."""


class Timer:
    """Calls a function after a time, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    def start(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Starts again, with another delay or function."""
        self.stop()
        self._handle = self._loop.call_later(delay_s, self._call_after_grace, callback)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call_after_grace(self, callback: Callable[[], None]) -> None:
        self._handle = self._loop.call_later(_READ_GRACE_S, callback)


class Stage(Enum):
    """The part that the client has to send next."""

    IDLE = "nothing, or a request"
    HEAD = "the rest of the headers"
    BODY = "the rest of the body"


class ReadWatch:
    """Watches what a client sends on one connection. Most requests arrive in one piece and need no timer."""

    def __init__(
        self,
        limits: LimitsConfig,
        loop: asyncio.AbstractEventLoop,
        *,
        is_reading: Callable[[], bool],
        on_timeout: Callable[[Rejection | None], None],
    ) -> None:
        """`on_timeout` gets the rejection of a too slow client, or None if a new connection sent nothing.

        While `is_reading` returns false, the server has paused reading, and no timeout applies.
        """
        self._limits = limits
        self._loop = loop
        self._is_reading = is_reading
        self._on_timeout = on_timeout
        self._timer = Timer(loop)
        self._begin_s = 0.0
        self._body_end_s = 0.0
        """The deadline for the next part of the body."""
        self._num_bytes = 0
        """The bytes received of the headers, or of the body with its framing and trailers."""
        self._num_body_bytes = 0
        self._num_heads = 0
        """The number of requests that begin in the piece that the parser is reading."""
        self.stage = Stage.IDLE

    def expect_first_request(self) -> None:
        """Starts the timeout of a new connection."""
        self._timer.start(self._limits.header_timeout_s, lambda: self._on_timeout(None))

    def note_head(self) -> None:
        """Called when a request begins."""
        self.stage = Stage.HEAD
        self._num_heads += 1
        self._num_bytes = 0

    def note_body(self) -> None:
        """Called when the headers are complete."""
        self.stage = Stage.BODY
        self._num_bytes = self._num_body_bytes = 0

    def count_body(self, num_bytes: int) -> None:
        """Counts a part of the body. Each part extends the deadline, to at most `body_timeout_s` from now."""
        self._num_body_bytes += num_bytes
        earned_s = num_bytes / self._limits.min_body_rate
        self._body_end_s = min(self._body_end_s + earned_s, self._loop.time() + self._limits.body_timeout_s)

    def note_end(self) -> None:
        """Called when the request is complete."""
        self.stage = Stage.IDLE

    def check_piece(self, num_bytes: int, stage_before: Stage) -> Rejection | None:
        """Called after each piece of input. Returns why the input must be rejected, or None."""
        num_heads, self._num_heads = self._num_heads, 0
        if self.stage is Stage.IDLE:
            self._timer.stop()
            return None
        if num_heads or self.stage is not stage_before:
            self._begin()
            # If other data is in the piece, too, the head's part of it is unknown and not counted.
            is_all_head = self.stage is Stage.HEAD and stage_before is Stage.IDLE and num_heads == 1
            self._num_bytes = num_bytes if is_all_head else 0
        else:
            self._num_bytes += num_bytes
        return self._too_large()

    def may_exceed_head_limit(self, num_bytes: int) -> bool:
        """Whether a head that ends in a piece of this size may be too large, so that it must be measured."""
        return self._num_bytes + num_bytes > self._limits.max_head_bytes

    def disarm(self) -> None:
        self._timer.stop()

    def close(self) -> None:
        """Called when the connection is closed. Drops the references to the connection."""
        self._timer.stop()
        self._is_reading, self._on_timeout = (lambda: False), (lambda _: None)

    def _begin(self) -> None:
        self._begin_s = self._loop.time()
        self._body_end_s = self._begin_s + self._limits.body_timeout_s
        if self.stage is Stage.HEAD:
            self._timer.start(self._limits.header_timeout_s, self._time_out_head)
        else:
            self._timer.start(self._limits.body_timeout_s, self._check_body_deadline)

    def _too_large(self) -> Rejection | None:
        most = self._limits.max_head_bytes
        if self.stage is Stage.HEAD:
            return head_too_large(self._limits) if self._num_bytes > most else None
        framing, allowed = self._num_bytes - self._num_body_bytes, most + _FRAMING_FACTOR * self._num_body_bytes
        if framing <= allowed:
            return None
        flag = flag_of("max_head_bytes")
        return Rejection(
            431, f"The framing of the body's chunks and its trailers are larger than {allowed} bytes ({flag})."
        )

    def _time_out_head(self) -> None:
        if not self._is_reading():
            self._begin()
            return
        limit = self._limits.header_timeout_s
        self._on_timeout(Rejection(408, f"The headers took longer than {limit:g} s ({flag_of('header_timeout_s')})."))

    def _check_body_deadline(self) -> None:
        limits = self._limits
        if not self._is_reading():
            self._begin()
            return
        left_s = self._body_end_s - self._loop.time()
        if left_s > 0:
            self._timer.start(left_s, self._check_body_deadline)
            return
        self._on_timeout(
            Rejection(
                408,
                f"Only {self._num_body_bytes} bytes of the body arrived in {self._loop.time() - self._begin_s:.0f} s: "
                f"the limit is {limits.body_timeout_s:g} s ({flag_of('body_timeout_s')}), and one second more for "
                f"every {limits.min_body_rate} bytes.",
            )
        )


def head_too_large(limits: LimitsConfig) -> Rejection:
    """The rejection of a request whose request line and headers are too long."""
    most, flag = limits.max_head_bytes, flag_of("max_head_bytes")
    return Rejection(431, f"The request's headers are larger than {most} bytes ({flag}).")


def too_many_headers(limits: LimitsConfig) -> Rejection:
    """The rejection of a request with more headers than allowed."""
    return Rejection(431, f"The request has more than {limits.max_headers} headers ({flag_of('max_headers')}).")
