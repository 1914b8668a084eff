"""Prometheus metrics with vLLM's names, labels and buckets, in a registry of their own.

The metrics are recorded on the API process's event loop. Each child of a labelled metric is looked up only
once, so that recording a token takes a few microseconds.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from base.http_requests import HTTP_BUCKETS
from base.lifecycle import Lifecycle, StartView
from server.operation.engine_watchdog import SILENCE_METRIC
from server.operation.metrics.collectors import (
    ENGINE,
    LABELS,
    Collector,
    engine_families,
    image_families,
    pool_families,
    rejection_families,
    start_families,
)
from server.terms.types import EngineInfo, EngineStats, FinishReason
from server.text.renderers.renderer import Renderer

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
"""The media type of Prometheus's text format."""

_SHORT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_TTFT_BUCKETS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
    2560.0,
)
_INTER_TOKEN_BUCKETS = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_REQUEST_BUCKETS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
    7680.0,
)
_ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES_BUCKETS = (1, 2, 5, 10, 20)
_PROMPT_SOURCES = ("local_compute", "local_cache_hit")
_PREEMPTION_BUCKETS = (1, 2, 3, 4, 5, 10, 20)

INTERVAL_S = 0.02
WINDOW_S = 60.0


class ServerMetrics:
    """All metrics of one server. The engine's metrics appear once `register_engine` has been called."""

    def __init__(
        self,
        model_name: str,
        start: StartView,
        renderer: Renderer,
        lifecycle: Lifecycle,
        num_rejected: Mapping[str, int],
    ) -> None:
        """`num_rejected` maps the name of a limit to the number of requests that it has rejected."""
        self.registry = registry = CollectorRegistry()
        self.model_name = model_name
        self._engine: EngineMetrics | None = None
        Collector(registry, lambda: start_families(model_name, start))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.http = HttpMetrics(registry)
        lags = Histogram(
            "vllm_cli:event_loop_lag_seconds",
            "How late a timer that is due every 20 ms was.",
            buckets=_SHORT_BUCKETS,
            registry=registry,
        )
        self.heartbeat = LoopHeartbeat(lags.observe)
        worst = Gauge("vllm_cli:event_loop_max_lag_seconds", "The latest timer of the last minute.", registry=registry)
        worst.set_function(lambda: self.heartbeat.lag.max_s)
        self.render_time = Histogram(
            "vllm_cli:request_render_time_seconds",
            "From a request's body to its prompt's tokens, the wait for a thread included.",
            buckets=_SHORT_BUCKETS,
            registry=registry,
        )
        is_up = Gauge("vllm_cli:engine_up", "1 while the engine takes requests, else 0.", registry=registry)
        is_up.set_function(lambda: lifecycle.has_engine)
        self._silence = Gauge(*SILENCE_METRIC, registry=registry)
        self.engine_silence_s: Callable[[], float] = lambda: 0.0
        Collector(registry, lambda: pool_families(renderer.pools.owned))
        Collector(registry, lambda: image_families(model_name, renderer.mm_cache))
        Collector(registry, lambda: rejection_families(model_name, num_rejected))
        waits = Histogram(
            "vllm_cli:renderer_queue_time_seconds",
            "How long work waited for a thread of the renderer's pool.",
            ("pool",),
            buckets=_SHORT_BUCKETS,
            registry=registry,
        )
        for name, pool in renderer.pools.owned.items():
            pool.on_wait = waits.labels(name).observe

    def read_silence_from(self, read: Callable[[], float]) -> None:
        """Sets the function that returns how many seconds the engine has been silent."""
        self.engine_silence_s = read
        self._silence.set_function(read)

    def register_engine(self, info: EngineInfo, read_stats: Callable[[], EngineStats]) -> None:
        """Adds the engine's metrics. Their buckets depend on the length of the model's context."""
        self._engine = EngineMetrics(self.registry, self.model_name, info)
        Collector(self.registry, lambda: engine_families(self.model_name, read_stats()))

    @property
    def engine(self) -> "EngineMetrics":
        """The engine's metrics. They exist once the engine has loaded the model."""
        assert self._engine is not None
        return self._engine

    def render(self) -> bytes:
        """Returns the body of /metrics, of type `CONTENT_TYPE`."""
        body: bytes = generate_latest(self.registry)
        return body


class HttpMetrics:
    """Counters of requests by route, as of vLLM's instrumentation library. Used on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ("handler", "status", "method"),
            registry=registry,
        )
        self.request_bytes = Summary(
            "http_request_size_bytes",
            "Announced content length of requests by handler, 0 where none is announced.",
            ("handler",),
            registry=registry,
        )
        self.response_bytes = Summary(
            "http_response_size_bytes",
            "Announced content length of answers by handler, 0 for streams.",
            ("handler",),
            registry=registry,
        )
        self.fine_duration = Histogram(
            "http_request_duration_highr_seconds",
            "Latency of all routes together, in many buckets.",
            buckets=HTTP_BUCKETS,
            registry=registry,
        )
        self.duration = Histogram(
            "http_request_duration_seconds",
            "Latency by route, from the request's headers to the end of the response.",
            ("handler", "method"),
            buckets=(0.1, 0.5, 1),
            registry=registry,
        )


class EngineMetrics:
    """Counters and histograms of requests, as the API process measures them."""

    def __init__(self, registry: CollectorRegistry, model_name: str, info: EngineInfo) -> None:
        labels = (model_name, ENGINE)

        def counter(name: str, documentation: str) -> Any:
            return Counter(name, documentation, LABELS, registry=registry).labels(*labels)

        def histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Any:
            return Histogram(name, documentation, LABELS, buckets=buckets, registry=registry).labels(*labels)

        # 1, 2, 5, 10, 20, 50 …
        decades = range(len(str(info.max_model_len)))
        bounds = [factor * 10**decade for decade in decades for factor in (1, 2, 5)]
        token_buckets = tuple(bound for bound in bounds if bound <= info.max_model_len)
        self._prompt_tokens = counter("vllm:prompt_tokens", "Number of prefill tokens processed.")
        self._prompt_tokens_cached = counter("vllm:prompt_tokens_cached", "Number of cached prompt tokens.")
        by_source = Counter(
            "vllm:prompt_tokens_by_source", "Prompt tokens by source.", (*LABELS, "source"), registry=registry
        )
        self._computed, self._cached = (by_source.labels(*labels, source) for source in _PROMPT_SOURCES)
        self._generation_tokens = counter("vllm:generation_tokens", "Number of generation tokens processed.")
        self.num_computed_prompt_tokens = 0
        self.num_generation_tokens = 0
        success = Counter(
            "vllm:request_success", "Count of finished requests.", (*LABELS, "finished_reason"), registry=registry
        )
        self.finished = {reason: success.labels(*labels, reason) for reason in get_args(FinishReason)}
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
        self.num_preemptions = histogram(
            "vllm:request_num_preemptions", "How often a request was preempted.", _PREEMPTION_BUCKETS
        )
        self.params_n = histogram("vllm:request_params_n", "The n parameter.", _CHOICES_BUCKETS)
        self.iteration_tokens = histogram("vllm:iteration_tokens_total", "Tokens per engine step.", _ITERATION_BUCKETS)
        _set_cache_info(registry, info)

    def count_prompt(self, num_tokens: int, *, num_cached: int = 0) -> None:
        """Counts a computed prompt. `num_cached` of its tokens came from the prefix cache."""
        self._prompt_tokens.inc(num_tokens)
        self._prompt_tokens_cached.inc(num_cached)
        self._computed.inc(num_tokens - num_cached)
        self._cached.inc(num_cached)
        self.num_computed_prompt_tokens += num_tokens - num_cached

    def count_generated(self, num_tokens: int) -> None:
        self._generation_tokens.inc(num_tokens)
        self.num_generation_tokens += num_tokens

    def record_step(self, stats: EngineStats) -> None:
        """Records one step of the engine. Called for all stats that the engine sends."""
        if stats.num_iteration_tokens:
            self.iteration_tokens.observe(stats.num_iteration_tokens)

    def record_request(self, *, num_choices: int, max_generation_tokens: int) -> None:
        self.params_n.observe(num_choices)
        self.max_generation_tokens.observe(max_generation_tokens)


def _set_cache_info(registry: CollectorRegistry, info: EngineInfo) -> None:
    """Sets the facts about the cache. vLLM's metric counts blocks. Here, a block has one token."""
    facts = {
        "engine": ENGINE,
        "block_size": "1",
        "num_gpu_blocks": str(info.kv_cache_tokens),
        "kv_cache_size_tokens": str(info.kv_cache_tokens),
        "kv_cache_max_concurrency": str(info.kv_cache_tokens / info.max_model_len),
        "kv_cache_memory_bytes": str(info.kv_cache_bytes),
        "cache_dtype": info.dtype,
    }
    gauge = Gauge("vllm:cache_config_info", "Information of the KV cache.", tuple(facts), registry=registry)
    gauge.labels(**facts).set(1)


class LoopLag(NamedTuple):
    """Quantiles of the loop lag in seconds, over about the last minute."""

    p50_s: float
    p99_s: float
    max_s: float


class LoopHeartbeat:
    """Measures the loop lag with a timer that is due every 20 ms on the event loop."""

    def __init__(self, on_lag: Callable[[float], None]) -> None:
        """`on_lag` is called at each beat with the lag in seconds."""
        self._on_lag = on_lag
        self._on_beat: Callable[[], None]
        self._handle: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._recent: deque[float] = deque(maxlen=int(WINDOW_S / INTERVAL_S))

    @property
    def lag(self) -> LoopLag:
        """The quantiles of the lag. May be read on any thread. Takes half a millisecond."""
        lags = sorted(self._recent) or [0.0]
        return LoopLag(lags[len(lags) // 2], lags[len(lags) * 99 // 100], lags[-1])

    def start(self, on_beat: Callable[[], None] = lambda: None) -> None:
        """Starts the timer on the running loop. `on_beat` is called 50 times a second."""
        self._on_beat = on_beat
        self._wait(asyncio.get_running_loop())

    def close(self) -> None:
        """Stops the timer. Called before the loop ends."""
        if self._handle is not None:
            self._handle.cancel()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        lag_s = max(0.0, loop.time() - self._due_s)
        self._recent.append(lag_s)
        self._on_lag(lag_s)
        self._on_beat()
        self._wait(loop)
