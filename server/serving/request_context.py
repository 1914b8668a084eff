"""What is known about a request beside its body: when it came, and where its time went."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

from server.serving.admission import Lease, unbounded_lease

if TYPE_CHECKING:
    from server.tracing.request_trace import RequestTrace


@dataclass
class RequestTimes:
    """Where a request's time went, in seconds; of several sequences the longest time of each."""

    render_begin_s: float = 0.0
    """When rendering began, by `perf_counter`."""
    render_s: float | None = None
    """From the decoded body to the prompt's tokens, the wait for a thread included."""
    queue_s: float | None = None
    """In the engine, until the sequence ran."""
    prefill_s: float | None = None
    """From there to the first token, or to the pooled result."""
    decode_s: float | None = None
    """From the first token to the last; unknown when a stream's headers are sent."""

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Times the block as rendering."""
        begin_s = perf_counter()
        self.render_begin_s = self.render_begin_s or begin_s
        try:
            yield
        finally:
            self.render_s = (self.render_s or 0.0) + perf_counter() - begin_s

    def note_prefill(self, *, queue_s: float, prefill_s: float) -> None:
        """One sequence has its first token."""
        self.queue_s = max(self.queue_s or 0.0, queue_s)
        self.prefill_s = max(self.prefill_s or 0.0, prefill_s)

    def note_decode(self, decode_s: float) -> None:
        """One sequence has its last token."""
        self.decode_s = max(self.decode_s or 0.0, decode_s)

    @property
    def server_timing(self) -> str:
        """What is known so far, as the Server-Timing header has it (W3C): milliseconds by name."""
        named = (
            ("queue", self.queue_s),
            ("render", self.render_s),
            ("prefill", self.prefill_s),
            ("decode", self.decode_s),
        )
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in named if seconds is not None)


@dataclass
class RequestContext:
    """One request on its way through the routes and the serving layer; lives on the event loop."""

    header_id: str | None = None
    """The client's X-Request-Id."""
    arrival_s: float = field(default_factory=perf_counter)
    """When its headers had come."""
    times: RequestTimes = field(default_factory=RequestTimes)
    has_answer: bool = False
    """The answer is on its way."""
    lease: Lease = field(default_factory=unbounded_lease)
    """What it may hold of the server's room."""
    trace: "RequestTrace | None" = None
    """Where traces are sent somewhere."""
