"""Prometheus metrics with vLLM's names, labels and buckets, in a registry of their own.

Everything is recorded on the API process's event loop; label children are bound once, so that
recording a token costs a few microseconds.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.types import EngineInfo, EngineStats, FinishReason

_LABELS = ("model_name", "engine")
_ENGINE = "0"
_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_INTER_TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES_BUCKETS = (1, 2, 5, 10, 20)
_HTTP_BUCKETS = (0.1, 0.5, 1)


_SHORT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class WaitingWork(Protocol):
    """A pool of threads."""

    @property
    def num_waiting(self) -> int:
        """Pieces of work that no thread has begun."""

    def subscribe_waits(self, on_wait: Callable[[float], None]) -> None:
        """Calls back, on any thread, with the seconds that a piece of work waited."""


class StartTimes(Protocol):
    """How long the start took, or has taken so far."""

    def elapsed_s(self) -> float:
        """In all."""

    def phase_seconds(self) -> Mapping[str, float]:
        """By phase."""


class PictureCache(Protocol):
    """What the renderer keeps of pictures, and how often it was of use; may be read from any thread."""

    num_queries: int
    num_hits: int
    num_bytes: int


class ServerMetrics:
    """All metrics of one server. The engine's families appear once `register_engine` has been called."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model_name: str, start: StartTimes) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_StartCollector(model_name, start))
        self._model_name = model_name
        self._engine: EngineMetrics | None = None
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.http = HttpMetrics(self.registry)
        self.loop = LoopMetrics(self.registry)

    def register_pools(self, pools: Mapping[str, WaitingWork]) -> None:
        """Adds the renderer's pools, by what they are for."""
        self.registry.register(_PoolDepthCollector(pools))
        waits = Histogram(
            "vllm_cli:renderer_queue_time_seconds",
            "How long work waited for a thread of the renderer's pool.",
            ("pool",),
            buckets=_SHORT_BUCKETS,
            registry=self.registry,
        )
        for name, pool in pools.items():
            pool.subscribe_waits(waits.labels(name).observe)

    def register_picture_cache(self, cache: PictureCache) -> None:
        """Adds what the renderer keeps of pictures."""
        self.registry.register(_PictureCacheCollector(self._model_name, cache))

    def register_engine(self, info: EngineInfo, read_stats: Callable[[], EngineStats]) -> "EngineMetrics":
        """Adds the engine's families, whose buckets depend on its context length; the first call counts."""
        if self._engine is None:
            self._engine = EngineMetrics(self.registry, self._model_name, info)
            self.registry.register(_EngineStateCollector(self._model_name, read_stats))
        return self._engine

    def render(self) -> bytes:
        """The text that /metrics answers with."""
        return bytes(generate_latest(self.registry))


class HttpMetrics:
    """Requests by route, as prometheus-fastapi-instrumentator counts them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("handler", "status", "method"),
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Latency by route, from the request's headers to the end of the response.",
            ("handler", "method"),
            buckets=_HTTP_BUCKETS,
            registry=registry,
        )

    def record(self, *, handler: str, method: str, status: int, duration_s: float) -> None:
        """Counts one finished request."""
        self._requests.labels(handler, f"{status // 100}xx", method).inc()
        self._duration.labels(handler, method).observe(duration_s)


class LoopMetrics:
    """How free the event loop is, and the work that is kept off it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._render_time = Histogram(
            "vllm_cli:request_render_time_seconds",
            "From a request's body to its prompt's tokens, the wait for a thread included.",
            buckets=_SHORT_BUCKETS,
            registry=registry,
        )
        self.record_lag = Histogram(
            "vllm_cli:event_loop_lag_seconds",
            "How late a timer that is due every 20 ms was.",
            buckets=_SHORT_BUCKETS,
            registry=registry,
        ).observe
        self._worst_lag = Gauge(
            "vllm_cli:event_loop_max_lag_seconds", "The latest timer of the last minute.", registry=registry
        )

    def record_render(self, seconds: float | None) -> None:
        """Takes note of one request that was rendered, or that never got so far."""
        if seconds is not None:
            self._render_time.observe(seconds)

    def watch_worst_lag(self, read: Callable[[], float]) -> None:
        """Where the worst lag is read when /metrics is scraped."""
        self._worst_lag.set_function(read)


class EngineMetrics:
    """What requests did, seen from the API process."""

    def __init__(self, registry: CollectorRegistry, model_name: str, info: EngineInfo) -> None:
        labels = (model_name, _ENGINE)

        def counter(name: str, documentation: str) -> Any:
            return Counter(name, documentation, _LABELS, registry=registry).labels(*labels)

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Any:
            return Histogram(name, documentation, _LABELS, buckets=buckets, registry=registry).labels(*labels)

        token_buckets = tuple(_one_two_five(info.max_model_len))
        self.prompt_tokens = counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self.prompt_tokens_cached = counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens.")
        self.generation_tokens = counter("vllm:generation_tokens", "Number of generation tokens processed.")
        success = Counter(
            "vllm:request_success", "Count of finished requests.", (*_LABELS, "finished_reason"), registry=registry
        )
        self.finished = {reason: success.labels(*labels, reason) for reason in _FINISH_REASONS}
        self.time_to_first_token = histogram("vllm:time_to_first_token_seconds", "Time to first token.", _TTFT_BUCKETS)
        self.inter_token_latency = histogram(
            "vllm:inter_token_latency_seconds", "Inter-token latency.", _INTER_TOKEN_BUCKETS
        )
        self.time_per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per output token.", _INTER_TOKEN_BUCKETS
        )
        self.queue_time = histogram("vllm:request_queue_time_seconds", "Time in the queue.", _REQUEST_BUCKETS)
        self.prefill_time = histogram(
            "vllm:request_prefill_time_seconds", "From the queue to the first token.", _REQUEST_BUCKETS
        )
        self.decode_time = histogram("vllm:request_decode_time_seconds", "First to last token.", _REQUEST_BUCKETS)
        self.inference_time = histogram(
            "vllm:request_inference_time_seconds", "From the queue to the last token.", _REQUEST_BUCKETS
        )
        self.e2e_latency = histogram("vllm:e2e_request_latency_seconds", "End-to-end latency.", _REQUEST_BUCKETS)
        self.request_prompt_tokens = histogram("vllm:request_prompt_tokens", "Prompt tokens.", token_buckets)
        self.request_generation_tokens = histogram("vllm:request_generation_tokens", "Output tokens.", token_buckets)
        self.request_prefill_tokens = histogram(
            "vllm:request_prefill_kv_computed_tokens", "Prompt tokens that were not in the cache.", token_buckets
        )
        self.max_generation_tokens = histogram(
            "vllm:request_max_num_generation_tokens", "Longest output of a request's choices.", token_buckets
        )
        self.params_max_tokens = histogram("vllm:request_params_max_tokens", "The max_tokens parameter.", token_buckets)
        self.params_n = histogram("vllm:request_params_n", "The n parameter.", _CHOICES_BUCKETS)
        self.iteration_tokens = histogram("vllm:iteration_tokens_total", "Tokens per engine step.", _ITERATION_BUCKETS)
        _set_cache_info(registry, info)

    def record_step(self, stats: EngineStats) -> None:
        """Takes note of one engine step; to be subscribed to the engine's statistics."""
        if stats.num_iteration_tokens:
            self.iteration_tokens.observe(stats.num_iteration_tokens)

    def record_request(self, *, num_choices: int, max_generation_tokens: int) -> None:
        """Takes note of one request that ended, all its choices together."""
        self.params_n.observe(num_choices)
        self.max_generation_tokens.observe(max_generation_tokens)


class _StartCollector:
    """Reads the start's times when /metrics is scraped."""

    def __init__(self, model_name: str, start: StartTimes) -> None:
        self._labels = (model_name, _ENGINE)
        self._start = start

    def collect(self) -> Iterator[Metric]:
        total = GaugeMetricFamily(
            "vllm:engine_startup_time_seconds", "From the process's start to its first token.", labels=_LABELS
        )
        total.add_metric(self._labels, self._start.elapsed_s())
        yield total
        phases = GaugeMetricFamily(
            "vllm_cli:startup_phase_seconds", "What the start waited for, by phase.", labels=("phase",)
        )
        for phase, seconds in self._start.phase_seconds().items():
            phases.add_metric((phase,), seconds)
        yield phases


class _PoolDepthCollector:
    """Reads how much work waits when /metrics is scraped."""

    def __init__(self, pools: Mapping[str, WaitingWork]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "vllm_cli:renderer_queue_depth", "Work that waits for a thread of the renderer's pool.", labels=("pool",)
        )
        for name, pool in self._pools.items():
            depth.add_metric((name,), pool.num_waiting)
        yield depth


class _PictureCacheCollector:
    """Reads the counters of the renderer's picture cache when /metrics is scraped."""

    def __init__(self, model_name: str, cache: PictureCache) -> None:
        self._labels = (model_name, _ENGINE)
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        counters = (
            ("vllm:mm_cache_queries", "Pictures looked up in the cache of processed ones.", self._cache.num_queries),
            ("vllm:mm_cache_hits", "Pictures found in the cache of processed ones.", self._cache.num_hits),
        )
        for name, documentation, value in counters:
            counter = CounterMetricFamily(name, documentation, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        size = GaugeMetricFamily(
            "vllm_cli:mm_cache_bytes", "Memory that processed pictures take in the cache.", labels=_LABELS
        )
        size.add_metric(self._labels, self._cache.num_bytes)
        yield size


class _EngineStateCollector:
    """Reads the scheduler's latest state when /metrics is scraped."""

    def __init__(self, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._labels = (model_name, _ENGINE)
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        gauges = (
            ("vllm:num_requests_running", "Number of requests in model execution batches.", stats.num_running),
            ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", stats.kv_cache_usage),
        )
        counters = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("vllm:num_preemptions", "Number of preemptions.", stats.num_preemptions),
        )
        for name, documentation, value in gauges:
            gauge = GaugeMetricFamily(name, documentation, labels=_LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, documentation, value in counters:
            counter = CounterMetricFamily(name, documentation, labels=_LABELS)
            counter.add_metric(self._labels, value)
            yield counter


def _set_cache_info(registry: CollectorRegistry, info: EngineInfo) -> None:
    """vLLM's block count times block size is the number of tokens; here each token is a block of its own."""
    facts = {
        "engine": _ENGINE,
        "block_size": "1",
        "num_gpu_blocks": str(info.kv_cache_tokens),
        "kv_cache_memory_bytes": str(info.kv_cache_bytes),
        "cache_dtype": info.dtype,
    }
    gauge = Gauge("vllm:cache_config_info", "Information of the KV cache.", tuple(facts), registry=registry)
    gauge.labels(**facts).set(1)


def _one_two_five(limit: int) -> Iterator[int]:
    """1, 2, 5, 10, 20, 50 … up to the limit."""
    decade = 1
    while True:
        for factor in (1, 2, 5):
            if factor * decade > limit:
                return
            yield factor * decade
        decade *= 10
