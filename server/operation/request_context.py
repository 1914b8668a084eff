"""What the server records about a request besides its body, and how its work is spread over turns."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from server.operation.admission import Lease, unbounded_lease

T = TypeVar("T")
_MEMBERS_PER_TURN = 16
"""Formatting a token for the first time takes 30 us, and each has up to `max_logprobs` candidates."""


@dataclass
class RequestTimes:
    """The durations of a request's stages in seconds; of several sequences the longest of each stage."""

    render_s: float | None = None
    """From the decoded body to the prompt's tokens, including the wait for a thread."""
    queue_s: float | None = None
    """In the engine's queue."""
    prefill_s: float | None = None
    """From the end of the queue to the first token, or to the pooled result."""
    decode_s: float | None = None
    """From the first token to the last; unknown when a stream's headers are sent."""

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Times the block as rendering."""
        begin_s = perf_counter()
        try:
            yield
        finally:
            self.render_s = (self.render_s or 0.0) + perf_counter() - begin_s

    def record_prefill(self, *, queue_s: float, prefill_s: float) -> None:
        """Records the times of one sequence that has its first token."""
        self.queue_s = max(self.queue_s or 0.0, queue_s)
        self.prefill_s = max(self.prefill_s or 0.0, prefill_s)

    def record_decode(self, decode_s: float) -> None:
        """Records the time of one sequence that has its last token."""
        self.decode_s = max(self.decode_s or 0.0, decode_s)

    @property
    def server_timing(self) -> str:
        """The times so far as a Server-Timing header (W3C): milliseconds by name."""
        named = (
            ("queue", self.queue_s),
            ("render", self.render_s),
            ("prefill", self.prefill_s),
            ("decode", self.decode_s),
        )
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in named if seconds is not None)


@dataclass
class RequestContext:
    """One request, passed through the routes and the serving layer; used on the event loop only."""

    header_id: str | None = None
    """The client's X-Request-Id."""
    arrival_s: float = field(default_factory=perf_counter)
    """When its headers had arrived, by `perf_counter`."""
    times: RequestTimes = field(default_factory=RequestTimes)
    has_response: bool = False
    """Whether the response has begun."""
    lease: Lease = field(default_factory=unbounded_lease)
    """Its share of the admission limits."""
    is_small: bool = True
    """Whether work that grows with the body or the response may run on the event loop, not in the pool."""
    held: list[Any] = field(default_factory=list)
    """What a large request has created; freed in the pool, because a million objects take 30 ms."""

    def hold(self, *created: Any) -> None:
        """Keeps what may be large until the response has ended."""
        if not self.is_small:
            self.held += created


async def take_turns(members: Iterable[T]) -> AsyncIterator[T]:
    """The members; lets the event loop run after every few."""
    for position, member in enumerate(members, start=1):
        yield member
        if position % _MEMBERS_PER_TURN == 0:
            await asyncio.sleep(0)
