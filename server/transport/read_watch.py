"""How far a client is with sending its request, and by when it has to be further."""

import asyncio
from collections.abc import Callable
from enum import Enum

from server.limits import LimitsConfig, flag_of
from server.transport.refusal import Refusal

LAST_LOOK_S = 0.05
"""What came while this process was stopped is read within this time once it goes on: timers come before sockets."""
_FRAMING_SHARE = 8
"""A chunk of one byte takes five bytes more; so many times the body may its framing and trailers be."""


class Stage(Enum):
    """What is expected of the client."""

    IDLE = "nothing, or a request"
    HEAD = "the rest of the headers"
    BODY = "the rest of the body"


class ReadWatch:
    """One per connection. A request that comes in one piece, as nearly all do, costs no timer."""

    def __init__(
        self,
        limits: LimitsConfig,
        loop: asyncio.AbstractEventLoop,
        *,
        is_reading: Callable[[], bool],
        on_late: Callable[[Refusal | None], None],
    ) -> None:
        """`on_late` is told what to say to a client that is too slow: None to one that has said nothing itself.

        While `is_reading` is false, it is this server that is slow.
        """
        self._limits = limits
        self._loop = loop
        self._is_reading = is_reading
        self._on_late = on_late
        self._timer: asyncio.TimerHandle | None = None
        self._begin_s = 0.0
        self._body_end_s = 0.0
        """By when more of the body has to come."""
        self._num_bytes = 0
        """Of the head, and then of everything behind it."""
        self._num_body_bytes = 0
        self._num_heads = 0
        """Requests that begin in the piece that is being read."""
        self.stage = Stage.IDLE

    def expect_first(self) -> None:
        """A new connection should say something."""
        self._arm(self._limits.header_timeout_s, self._give_up_waiting)

    def note_head(self) -> None:
        """A request begins."""
        self.stage = Stage.HEAD
        self._num_heads += 1
        self._num_bytes = 0

    def note_body(self) -> None:
        """Its headers are complete."""
        self.stage = Stage.BODY
        self._num_bytes = self._num_body_bytes = 0

    def count_body(self, num_bytes: int) -> None:
        """So much of the body has come, which earns the client time; what came fast gives it no time to do nothing."""
        self._num_body_bytes += num_bytes
        if self._limits.min_body_rate:
            earned_s = num_bytes / self._limits.min_body_rate
            self._body_end_s = min(self._body_end_s + earned_s, self._loop.time() + self._limits.body_timeout_s)

    def note_end(self) -> None:
        """The request is complete."""
        self.stage = Stage.IDLE

    def after(self, num_bytes: int, stage_before: Stage) -> Refusal | None:
        """Called with every piece that came; what was wrong with it."""
        num_heads, self._num_heads = self._num_heads, 0
        if self.stage is Stage.IDLE:
            self.disarm()
            return None
        if num_heads or self.stage is not stage_before:
            self._begin()
            is_all_head = self.stage is Stage.HEAD and stage_before is Stage.IDLE and num_heads == 1
            self._num_bytes = num_bytes if is_all_head else 0  # else nobody knows how much of the piece counts
        else:
            self._num_bytes += num_bytes
        return self._too_large()

    def is_large_head(self, num_bytes: int) -> bool:
        """Whether a head that ends in a piece of this size has to be measured."""
        return self._num_bytes + num_bytes > self._limits.max_head_bytes

    def disarm(self) -> None:
        """Nothing is expected any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """The connection is gone; it is not kept in memory from here."""
        self.disarm()
        self._is_reading, self._on_late = _never, _tell_nobody

    def _begin(self) -> None:
        self._begin_s = self._loop.time()
        self._body_end_s = self._begin_s + self._limits.body_timeout_s
        if self.stage is Stage.HEAD:
            self._arm(self._limits.header_timeout_s, self._give_up_head)
        else:
            self._arm(self._limits.body_timeout_s, self._look_at_body)

    def _too_large(self) -> Refusal | None:
        most = self._limits.max_head_bytes
        if self.stage is Stage.HEAD:
            return head_too_large(most) if self._num_bytes > most else None
        framing, allowed = self._num_bytes - self._num_body_bytes, most + _FRAMING_SHARE * self._num_body_bytes
        if framing <= allowed:
            return None
        flag = flag_of("max_head_bytes")
        return Refusal(
            431, f"What frames the body's chunks, and its trailers, are larger than {allowed} bytes ({flag})."
        )

    def _give_up_waiting(self) -> None:
        self._on_late(None)

    def _give_up_head(self) -> None:
        if not self._is_reading():
            self._begin()
            return
        limit = self._limits.header_timeout_s
        self._on_late(Refusal(408, f"The headers took longer than {limit:g} s ({flag_of('header_timeout_s')})."))

    def _look_at_body(self) -> None:
        limits = self._limits
        if not self._is_reading():
            self._begin()
            return
        left_s = self._body_end_s - self._loop.time()
        if left_s > 0:
            self._arm(left_s, self._look_at_body)
            return
        self._on_late(
            Refusal(
                408,
                f"Of the body {self._num_body_bytes} bytes came in {self._loop.time() - self._begin_s:.0f} s: it has "
                f"{limits.body_timeout_s:g} s ({flag_of('body_timeout_s')}), and gets back a second for every "
                f"{limits.min_body_rate} bytes ({flag_of('min_body_rate')}).",
            )
        )

    def _arm(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.disarm()
        self._timer = self._loop.call_later(delay_s, self._look_once_more, callback)

    def _look_once_more(self, callback: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(LAST_LOOK_S, callback)


def _never() -> bool:
    return False


def _tell_nobody(refusal: Refusal | None) -> None:
    pass


def head_too_large(most: int) -> Refusal:
    """What a client is told whose request line and headers are too long."""
    return Refusal(431, f"The request's headers are larger than {most} bytes ({flag_of('max_head_bytes')}).")
