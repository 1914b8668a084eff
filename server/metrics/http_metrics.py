"""Requests by route, in the metric families of vLLM's instrumentation library."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

_BUCKETS = (0.1, 0.5, 1)
_FINE_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60,
)  # fmt: skip


class HttpMetrics:
    """Counts, sizes and durations of requests; used on the event loop only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("handler", "status", "method"),
            registry=registry,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes",
            "Announced content length of requests by handler; 0 where none is announced.",
            ("handler",),
            registry=registry,
        )
        self._response_bytes = Summary(
            "http_response_size_bytes",
            "Announced content length of answers by handler; 0 for streams.",
            ("handler",),
            registry=registry,
        )
        self._fine_duration = Histogram(
            "http_request_duration_highr_seconds",
            "Latency of all routes together, in many buckets.",
            buckets=_FINE_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Latency by route, from the request's headers to the end of the response.",
            ("handler", "method"),
            buckets=_BUCKETS,
            registry=registry,
        )

    def record(self, *, handler: str, method: str, status: int, duration_s: float) -> None:
        """Counts one finished request."""
        self._requests.labels(handler, f"{status // 100}xx", method).inc()
        self._duration.labels(handler, method).observe(duration_s)
        self._fine_duration.observe(duration_s)

    def record_sizes(self, *, handler: str, request_bytes: int, response_bytes: int) -> None:
        """Records the announced sizes of one finished request and its response."""
        self._request_bytes.labels(handler).observe(request_bytes)
        self._response_bytes.labels(handler).observe(response_bytes)
