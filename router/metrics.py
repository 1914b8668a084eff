"""The router's counts of requests, waits, refusals and starts, by model."""

import itertools
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from base.http_requests import CLIENT_GONE, HTTP_BUCKETS
from base.lifecycle import StartInfo

UNKNOWN: Final = "unknown"
"""The label `model` for requests that were passed to no model, so that clients' texts never become labels."""
_MOST_REASONS: Final = 20
"""The most reasons of failed starts that become labels. Further reasons share one label, to bound memory."""
_LONGEST_REASON: Final = 200


@dataclass(slots=True)
class RequestRecord:
    """The times and the result of one request. Times are seconds of `time.perf_counter`."""

    begin_s: float = field(default_factory=time.perf_counter)
    first_byte_s: float | None = None
    """When the first byte of the model's answer arrived. None before that."""
    model: str | None = None
    """The model's name. None if the router answers the request itself. Such a request is not counted."""
    final_status: int = 0
    """The status to count if a stream ends with an error, or for a WebSocket. 0: the response's status."""


class Durations:
    """A histogram of durations. The Prometheus library's histogram takes four times as long."""

    def __init__(self) -> None:
        self._counts = [0] * (len(HTTP_BUCKETS) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(HTTP_BUCKETS, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, int]]:
        """Returns pairs of an upper bound and the number of durations up to it."""
        bounds = [*map(str, map(float, HTTP_BUCKETS)), "+Inf"]
        return [*zip(bounds, itertools.accumulate(self._counts), strict=True)]


class RouterMetrics:
    """Counts requests, waits, refusals and starts. Used on the event loop."""

    def __init__(self) -> None:
        self._requests = Counter[tuple[str, ...]]()
        self._refusals = Counter[tuple[str, ...]]()
        self._starts = Counter[tuple[str, ...]]()
        self._durations = defaultdict[str, Durations](Durations)
        self._first_bytes = defaultdict[str, Durations](Durations)
        self._waits = defaultdict[str, Durations](Durations)
        self._reasons: set[str] = set()

    def note_request(self, record: RequestRecord, status: int) -> None:
        """Counts a request that has ended with this status, or with CLIENT_GONE if its client has left."""
        if (model := record.model) is None:
            return
        status = record.final_status or status
        self._requests[model, "abort" if status == CLIENT_GONE else f"{status // 100}xx"] += 1
        if status >= 200:  # how long a WebSocket is open says nothing about the model
            self._durations[model].add(time.perf_counter() - record.begin_s)
        if record.first_byte_s is not None:
            self._first_bytes[model].add(record.first_byte_s - record.begin_s)

    def note_wait(self, model: str, took_s: float, refusal: str = "") -> None:
        """Counts the wait of a request for its model. `refusal` is the reason for refusing the request."""
        self._waits[model].add(took_s)
        if refusal:
            self._refusals[model, refusal] += 1

    def note_start(self, model: str, outcome: str, info: StartInfo) -> None:
        """Counts a start. `outcome` is `ready`, `failed` or `stopped`. `info` has the code of a failure."""
        reason = info.reason[:_LONGEST_REASON]
        if reason not in self._reasons and len(self._reasons) >= _MOST_REASONS:
            reason = "other"
        self._reasons.add(reason)
        self._starts[model, outcome, info.start_mode, reason] += 1

    def collect(self) -> Iterator[Metric]:
        """Yields the metric families. The Prometheus library's registry calls this method."""
        yield counter("router_requests", "Ended requests to models, by class of status.", self._requests, "status")
        yield _histogram("request_duration", "From a request's head to the end of its response.", self._durations)
        text = "From a request's head to the first byte of the model's answer."
        yield _histogram("time_to_first_byte", text, self._first_bytes)
        yield _histogram("wait", "How long requests waited for their model, refused ones included.", self._waits)
        yield counter("router_refusals", "Requests that got no model.", self._refusals, "reason")
        labels = ("outcome", "start_mode", "reason")
        text = "Ended starts of the model's server, and how they were made."
        yield counter("router_starts", text, self._starts, *labels)


def counter(name: str, text: str, counts: Mapping[Any, float], *labels: str) -> Metric:
    """A counter by model. `counts`: values of the labels -> count."""
    family = CounterMetricFamily(f"vllm_cli:{name}", text, labels=("model", *labels))
    for values, number in counts.items():
        family.add_metric(values, number)
    return family


def _histogram(name: str, text: str, durations: Mapping[str, Durations]) -> Metric:
    family = HistogramMetricFamily(f"vllm_cli:router_{name}_seconds", text, labels=("model",))
    for model, each in durations.items():
        family.add_metric((model,), each.buckets(), each.sum_s)
    return family
