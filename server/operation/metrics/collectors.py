"""Metrics whose values are in other objects. Each scrape of /metrics reads the values, on any thread."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from base.lifecycle import START_INFO, START_PHASES, StartInfo, StartView
from server.terms.bounded_cache import BoundedCache
from server.terms.types import EngineStats

if TYPE_CHECKING:
    from server.text.renderers.pools import RendererPool

LABELS = ("model_name", "engine")
ENGINE = "0"
"""The value of the label `engine`."""

_REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")

Values = Mapping[tuple[str, ...], float]
"""Labels of a series -> its value."""


class Collector:
    """At each scrape, calls a function that returns metrics."""

    def __init__(self, registry: CollectorRegistry, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect
        registry.register(self)


def start_families(model_name: str, start: StartView) -> Iterator[Metric]:
    """Yields the durations of the start and of its phases, and whether the start was warm."""
    total_s: Values = {(model_name, ENGINE): start.elapsed_s()}
    yield _gauge("vllm:engine_startup_time_seconds", "From the process's start to its first token.", total_s)
    phases: Values = {(phase,): seconds for phase, seconds in start.phase_seconds().items()}
    yield _gauge(*START_PHASES, phases, ("phase",))
    yield _gauge(*START_INFO, {start.info(): 1.0}, StartInfo._fields)


def pool_families(pools: Mapping[str, "RendererPool"]) -> Iterator[Metric]:
    """Yields the number of waiting work items in each of the renderer's pools."""
    depths: Values = {(name,): pool.num_waiting for name, pool in pools.items()}
    yield _gauge(
        "vllm_cli:renderer_queue_depth", "Work that waits for a thread of the renderer's pool.", depths, ("pool",)
    )


def rejection_families(model_name: str, num_rejected: Mapping[str, int]) -> Iterator[Metric]:
    """Yields the number of requests that admission control has rejected."""
    numbers = dict.fromkeys(_REJECTIONS, 0) | dict(num_rejected)
    values: Values = {(model_name, reason): number for reason, number in numbers.items()}
    yield _counter(
        "vllm:admission_rejections", "Requests rejected by a limit, by reason.", values, ("model_name", "reason")
    )


def image_families(model_name: str, cache: BoundedCache[Any, Any] | None) -> Iterator[Metric]:
    """Yields the counters of the renderer's image cache. They are 0 if the model accepts no images."""
    labels = (model_name, ENGINE)
    num_queries, num_hits = (0, 0) if cache is None else (cache.num_queries, cache.num_hits)
    yield _counter("vllm:mm_cache_queries", "Images looked up in the cache of processed ones.", {labels: num_queries})
    yield _counter("vllm:mm_cache_hits", "Images found in the cache of processed ones.", {labels: num_hits})
    if cache is not None:
        description = "Memory that processed images take in the cache."
        yield _gauge("vllm_cli:mm_cache_bytes", description, {labels: cache.num_bytes})


def engine_families(model_name: str, stats: EngineStats) -> Iterator[Metric]:
    """Yields the scheduler's latest state."""
    labels = (model_name, ENGINE)
    for name, documentation, value in (
        ("vllm:num_requests_running", "Number of requests in model execution batches.", stats.num_running),
        ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", stats.num_waiting),
        ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", stats.kv_cache_usage),
        ("vllm:gpu_cache_usage_perc", "Former name of vllm:kv_cache_usage_perc.", stats.kv_cache_usage),
        ("vllm_cli:engine_threads", "Threads that compute a step.", stats.num_threads),
    ):
        yield _gauge(name, documentation, {labels: value})
    by_reason = {"capacity": stats.num_waiting - stats.num_deferred, "deferred": stats.num_deferred}
    waiting: Values = {(*labels, reason): number for reason, number in by_reason.items()}
    description = "Number of waiting requests by reason: no room in the batch, or no compiled grammar yet."
    yield _gauge("vllm:num_requests_waiting_by_reason", description, waiting, (*LABELS, "reason"))
    for name, documentation, value in (
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
        ("vllm:num_preemptions", "Number of preemptions.", stats.num_preemptions),
    ):
        yield _counter(name, documentation, {labels: value})


def _gauge(name: str, documentation: str, values: Values, labels: tuple[str, ...] = LABELS) -> Metric:
    return _filled(GaugeMetricFamily(name, documentation, labels=labels), values)


def _counter(name: str, documentation: str, values: Values, labels: tuple[str, ...] = LABELS) -> Metric:
    return _filled(CounterMetricFamily(name, documentation, labels=labels), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
