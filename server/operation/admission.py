"""Decides by the server's state and limits which requests are accepted. Records running requests.

Admission control rejects requests above the limits of sequences, prompt tokens and held bytes. It checks each
request before its body is read, and again after the body is decoded.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

from base.errors import OverloadedError, RequestError, ServerError
from base.lifecycle import Lifecycle, StartView
from server.terms.held_bytes import HeldBytes
from server.terms.http_body.response_body import UnavailableInfo, UnavailableResponse
from server.terms.limits import LimitsConfig, flag_of


class Admission:
    """The admission control of one server, on the event loop."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.limits = limits
        self.num_sequences = 0
        """Sequences that wait or run. A request counts as one sequence until its body is decoded."""
        self.num_queued_tokens = 0
        """Prompt tokens of sequences that have no first token yet."""
        self.held = HeldBytes(limits.max_held_bytes)
        """The bytes of all requests. The connections count requests here that have not begun."""
        self.num_rejected: dict[str, int] = {}
        """Name of a limit -> the number of requests that it has rejected."""

    @contextmanager
    def hold(self, num_bytes: int) -> Iterator["Lease"]:
        """Admits one request until the block ends. The request's headers announce a body of `num_bytes`.

        Raises:
            OverloadedError: a limit is reached.
        """
        self.check_room(num_sequences=1, num_bytes=num_bytes)
        lease = Lease(self)
        lease.add_bytes(num_bytes)
        self.num_sequences += 1
        try:
            yield lease
        finally:
            lease.release()

    def check_room(self, *, num_sequences: int = 0, num_bytes: int = 0, own: "Lease | None" = None) -> None:
        """Raises OverloadedError if a limit would be exceeded.

        The limit of bytes does not apply if no other request holds bytes. `own` is the lease of the request
        that is checked. Its bytes do not count as bytes of other requests.
        """
        own_sequences, own_bytes = (own.num_sequences, own.num_bytes) if own is not None else (0, 0)
        limits = self.limits
        most = limits.max_queued_requests
        if most is not None and self.num_sequences + num_sequences > most:
            flag = flag_of("max_queued_requests")
            raise self._reject(
                "max_num_queued_reqs", f"{self.num_sequences - own_sequences} of at most {most} requests ({flag})"
            )
        if limits.max_queued_tokens is not None and self.num_queued_tokens >= limits.max_queued_tokens:
            queued = f"{self.num_queued_tokens} of at most {limits.max_queued_tokens} prompt tokens"
            raise self._reject("max_num_queued_tokens", f"{queued} ({flag_of('max_queued_tokens')})")
        num_held, most_held = self.num_held_bytes, self.held.most
        if num_bytes and self.held.num_admitted > own_bytes and num_held + num_bytes > most_held:
            held = f"{num_held} of at most {most_held} bytes in requests"
            raise self._reject(
                "max_held_bytes", f"{held}, and this request adds {num_bytes} ({flag_of('max_held_bytes')})"
            )

    @property
    def num_held_bytes(self) -> int:
        """Bytes of received and announced bodies, and of tensors in prompts."""
        return self.held.num_admitted + self.held.num_waiting

    def _reject(self, reason: str, what: str) -> OverloadedError:
        self.num_rejected[reason] = self.num_rejected.get(reason, 0) + 1
        return OverloadedError(f"The server is busy: it has {what}. Please try again later.", reason=reason)


class Lease:
    """One request's share of the limits."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.num_sequences = 1
        self._num_tokens = 0
        self.num_bytes = 0

    def add_bytes(self, num_bytes: int) -> None:
        """Adds bytes that the request holds. Raises OverloadedError if they exceed the limit."""
        self._admission.check_room(num_bytes=num_bytes, own=self)
        self._admission.held.num_admitted += num_bytes
        self.num_bytes += num_bytes

    def remove_bytes(self, num_bytes: int) -> None:
        """Subtracts bytes that the request no longer holds."""
        self._admission.held.num_admitted -= num_bytes
        self.num_bytes -= num_bytes

    def widen(self, num_sequences: int) -> None:
        """Sets the number of sequences when the request is decoded.

        Raises:
            RequestError: the number exceeds the limit even on an idle server.
            OverloadedError: the number exceeds the limit at the moment.
        """
        most = self._admission.limits.max_queued_requests
        if most is not None and num_sequences > max(most, 1):
            raise RequestError(
                f"The request asks for {num_sequences} sequences, but the server takes at most {most} at once "
                f"({flag_of('max_queued_requests')})."
            )
        more = num_sequences - self.num_sequences
        if more > 0:
            self._admission.check_room(num_sequences=more, own=self)
            self._admission.num_sequences += more
            self.num_sequences = num_sequences

    def queue_tokens(self, num_tokens: int) -> None:
        """Adds prompt tokens that wait to be computed."""
        self._admission.num_queued_tokens += num_tokens
        self._num_tokens += num_tokens

    def finish_prefill(self, num_tokens: int) -> None:
        """Subtracts prompt tokens that have been computed."""
        done = min(num_tokens, self._num_tokens)
        self._admission.num_queued_tokens -= done
        self._num_tokens -= done

    def release(self) -> None:
        """Subtracts the lease's share from the totals, unless that was done before."""
        self.remove_bytes(self.num_bytes)
        self.finish_prefill(self._num_tokens)
        self._admission.num_sequences -= self.num_sequences
        self.num_sequences = 0


@dataclass
class RequestTimes:
    """How many seconds the stages of a request took. For several sequences, the longest times are kept."""

    render_s: float | None = None
    """Time from decoding the body to the prompt's tokens, including the wait for a thread."""
    queue_s: float | None = None
    """Time in the engine's queue."""
    prefill_s: float | None = None
    """Time from the end of the queue to the first token, or to the pooled result."""
    decode_s: float | None = None
    """Time from the first token to the last token. Unknown when the headers of a stream are sent."""

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Times the block as rendering."""
        begin_s = time.perf_counter()
        try:
            yield
        finally:
            self.render_s = (self.render_s or 0.0) + time.perf_counter() - begin_s

    def record_prefill(self, *, queue_s: float, prefill_s: float) -> None:
        """Records the times of a sequence that has its first token."""
        self.queue_s = max(self.queue_s or 0.0, queue_s)
        self.prefill_s = max(self.prefill_s or 0.0, prefill_s)

    def record_decode(self, decode_s: float) -> None:
        """Records the time of a sequence that has its last token."""
        self.decode_s = max(self.decode_s or 0.0, decode_s)

    @property
    def server_timing(self) -> str:
        """The times so far in milliseconds, as the value of a Server-Timing header (W3C)."""
        named = (
            ("queue", self.queue_s),
            ("render", self.render_s),
            ("prefill", self.prefill_s),
            ("decode", self.decode_s),
        )
        return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in named if seconds is not None)


@dataclass
class RequestContext:
    """The state of one request, from its route to its response. Used on the event loop."""

    header_id: str | None
    """The client's X-Request-Id. None if the header is missing or not valid."""
    lease: Lease
    arrival_s: float = field(default_factory=time.perf_counter)
    """The time at which the headers had arrived, by `perf_counter`."""
    times: RequestTimes = field(default_factory=RequestTimes)
    is_small: bool = True
    """Whether work on body and response is small enough for the event loop, and needs no pool."""
    held: list[Any] = field(default_factory=list)
    """Large objects of the request, which the pool frees, because freeing a million of them takes 30 ms."""

    def hold(self, *created: Any) -> None:
        """Keeps possibly large objects until the response has ended."""
        if not self.is_small:
            self.held += created


class UnavailableError(ServerError):
    """No requests are accepted now. The response has status 503 and the attribute `body` as its body."""

    def __init__(self, body: UnavailableResponse) -> None:
        super().__init__(body.error.message)
        self.body = body


class Availability:
    """Decides whether requests are accepted now. Every probe and every request is checked with this class."""

    def __init__(self, lifecycle: Lifecycle, start: StartView) -> None:
        self._lifecycle = lifecycle
        self._start = start

    def check(self) -> None:
        """Raises UnavailableError if no requests are accepted."""
        if (problem := self.problem) is not None:
            raise UnavailableError(problem)

    @property
    def problem(self) -> UnavailableResponse | None:
        """The body of a response with status 503. None if requests are accepted."""
        lifecycle = self._lifecycle
        match lifecycle.state:
            case "ready":
                return None
            case "starting":
                return UnavailableResponse(
                    UnavailableInfo(message="Loading model"), "starting", **self._start.progress()
                )
            case "draining":
                return UnavailableResponse(UnavailableInfo(message="The server is shutting down"), "draining")
            case "dead":
                return dead_response(lifecycle)


def dead_response(lifecycle: Lifecycle) -> UnavailableResponse:
    """Returns the body of the 503 response of a server whose engine has died or hangs."""
    if lifecycle.is_hung:
        return UnavailableResponse(UnavailableInfo(message=f"The engine hangs: {lifecycle.reason}"), "hung")
    return UnavailableResponse(UnavailableInfo(message=f"The engine died: {lifecycle.reason}"), "dead")


class RunningRequests:
    """Running requests, on the event loop. /load counts them. The drain waits for them or cancels them."""

    def __init__(self) -> None:
        self.is_cancelled = False
        """Whether `cancel` was called. If so, a cancelled request does not mean that its client is gone."""
        self._running: set[asyncio.Task[Any]] = set()
        self._last_activity_s = -inf
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def quiet_s(self) -> float:
        """Seconds since a request last began, ended or was rejected."""
        return 0.0 if self.num_running else time.monotonic() - self._last_activity_s

    @contextmanager
    def hold(self) -> Iterator[asyncio.Task[Any]]:
        """Counts the current task's request as running within the block. Yields the task."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._idle.clear()
        try:
            yield task
        finally:
            self._last_activity_s = time.monotonic()
            self._running.discard(task)
            if not self._running:
                self._idle.set()

    def note_rejection(self) -> None:
        """Records that a request arrived and was rejected."""
        self._last_activity_s = time.monotonic()

    def cancel(self) -> None:
        """Cancels all running requests, including requests whose body has not arrived completely."""
        self.is_cancelled = True
        self.interrupt()

    def interrupt(self) -> None:
        """Cancels the tasks of all running requests. A task may still answer its client."""
        for task in self._running:
            task.cancel()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request runs. Returns False if a request still runs after the timeout."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
