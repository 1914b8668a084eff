"""The router's counts of requests, waits, refusals and starts, by model."""

import time
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from base.http_buckets import HTTP_BUCKETS
from base.lifecycle import StartInfo

UNKNOWN: Final = "unknown"
"""In place of a model: of requests that were passed to none. No text of a client becomes a label."""
CLIENT_GONE: Final = 499
"""The status of a request whose client has left."""
_MOST_REASONS: Final = 20
"""The reasons of starts that metrics distinguish. They depend on the machine and its files."""
_LONGEST_REASON: Final = 200


@dataclass(slots=True)
class RequestRecord:
    """The times and the end of one request; seconds of `time.perf_counter`."""

    begin_s: float = field(default_factory=time.perf_counter)
    first_byte_s: float | None = None
    """When the first byte of the model's answer was there."""
    model: str | None = None
    """None for a request that the router answers itself: it is not counted."""
    final_status: int = 0
    """Counts in place of the response's status: the error that ends a stream, or 101 of a WebSocket."""


class RouterMetrics:
    """Used on the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = self._counter("requests", "Requests to models, by class of status.", "status")
        self._duration = self._histogram("request_duration", "From a request's head to the end of its response.")
        self._first_byte = self._histogram(
            "time_to_first_byte", "From a request's head to the first byte of the model's answer."
        )
        self._wait = self._histogram("wait", "How long requests waited for their model, refused ones included.")
        self._refusals = self._counter("refusals", "Requests that got no model.", "reason")
        labels = ("outcome", *StartInfo._fields[:2])
        self._starts = self._counter("starts", "Starts of the model's server that have ended, and how.", *labels)
        self._reasons: set[str] = set()

    def note_request(self, record: RequestRecord, status: int) -> None:
        """A request has ended with this status, or with `CLIENT_GONE`."""
        if (model := record.model) is None:
            return
        status = record.final_status or status
        self._requests.labels(model, "abort" if status == CLIENT_GONE else f"{status // 100}xx").inc()
        if status >= 200:  # how long a WebSocket is open says nothing about the model
            self._duration.labels(model).observe(time.perf_counter() - record.begin_s)
        if record.first_byte_s is not None:
            self._first_byte.labels(model).observe(record.first_byte_s - record.begin_s)

    def note_wait(self, model: str, took_s: float, refusal: str = "") -> None:
        """A request was admitted to a model, or refused for this reason."""
        self._wait.labels(model).observe(took_s)
        if refusal:
            self._refusals.labels(model, refusal).inc()

    def note_start(self, model: str, outcome: str, info: StartInfo) -> None:
        """A model has become ready, or has failed or was stopped before."""
        reason = info.reason[:_LONGEST_REASON]
        if reason not in self._reasons and len(self._reasons) >= _MOST_REASONS:
            reason = "other"
        self._reasons.add(reason)
        self._starts.labels(model, outcome, info.start_mode, reason).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm_cli:router_{name}", text, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        name = f"vllm_cli:router_{name}_seconds"
        return Histogram(name, text, ("model",), buckets=HTTP_BUCKETS, registry=self.registry)
