"""Metric families whose values other objects hold: read when /metrics is scraped, on any thread."""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from server.metrics.sources import ImageCache, StartTimes, WaitingWork
from server.types import EngineStats

LABELS = ("model_name", "engine")
ENGINE = "0"
"""The value of the label `engine`."""

_CACHE_SOURCES = ("device", "host", "p2p", "disk", "external_unspecified")
_REJECTIONS = ("max_num_queued_reqs", "max_num_queued_tokens")


class StartCollector:
    """The durations of the start and its phases."""

    def __init__(self, model_name: str, start: StartTimes) -> None:
        self._labels = (model_name, ENGINE)
        self._start = start

    def collect(self) -> Iterator[Metric]:
        total = GaugeMetricFamily(
            "vllm:engine_startup_time_seconds", "From the process's start to its first token.", labels=LABELS
        )
        total.add_metric(self._labels, self._start.elapsed_s())
        yield total
        phases = GaugeMetricFamily(
            "vllm_cli:startup_phase_seconds", "What the start waited for, by phase.", labels=("phase",)
        )
        for phase, seconds in self._start.phase_seconds().items():
            phases.add_metric((phase,), seconds)
        yield phases


class PoolDepthCollector:
    """The queue depth of the renderer's pools."""

    def __init__(self, pools: Mapping[str, WaitingWork]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily(
            "vllm_cli:renderer_queue_depth", "Work that waits for a thread of the renderer's pool.", labels=("pool",)
        )
        for name, pool in self._pools.items():
            depth.add_metric((name,), pool.num_waiting)
        yield depth


class RejectionCollector:
    """The number of requests rejected by admission control."""

    def __init__(self, model_name: str, num_rejected: Mapping[str, int]) -> None:
        self._model_name = model_name
        self._num_rejected = num_rejected

    def collect(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(
            "vllm:admission_rejections", "Requests rejected by a limit, by reason.", labels=("model_name", "reason")
        )
        for reason, number in (dict.fromkeys(_REJECTIONS, 0) | dict(self._num_rejected)).items():
            counter.add_metric((self._model_name, reason), number)
        yield counter


class ImageCacheCollector:
    """The counters of the renderer's image cache."""

    def __init__(self, model_name: str, cache: ImageCache) -> None:
        self._labels = (model_name, ENGINE)
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        counters = (
            ("vllm:mm_cache_queries", "Images looked up in the cache of processed ones.", self._cache.num_queries),
            ("vllm:mm_cache_hits", "Images found in the cache of processed ones.", self._cache.num_hits),
        )
        for name, documentation, value in counters:
            counter = CounterMetricFamily(name, documentation, labels=LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        size = GaugeMetricFamily(
            "vllm_cli:mm_cache_bytes", "Memory that processed images take in the cache.", labels=LABELS
        )
        size.add_metric(self._labels, self._cache.num_bytes)
        yield size


class EngineStateCollector:
    """The scheduler's latest state."""

    def __init__(self, model_name: str, read_stats: Callable[[], EngineStats]) -> None:
        self._labels = (model_name, ENGINE)
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        gauges = (
            ("vllm:num_requests_running", "Number of requests in model execution batches.", stats.num_running),
            ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", stats.kv_cache_usage),
            ("vllm:gpu_cache_usage_perc", "Former name of vllm:kv_cache_usage_perc.", stats.kv_cache_usage),
            ("vllm_cli:engine_threads", "Threads that compute a step.", stats.num_threads),
        )
        counters = (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
            ("vllm:num_preemptions", "Number of preemptions.", stats.num_preemptions),
        )
        for name, documentation, value in gauges:
            gauge = GaugeMetricFamily(name, documentation, labels=LABELS)
            gauge.add_metric(self._labels, value)
            yield gauge
        for name, documentation, value in counters:
            counter = CounterMetricFamily(name, documentation, labels=LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        yield self._waiting_by_reason(stats.num_waiting)
        yield self._cached_by_source(stats.prefix_cache_hits)

    def _waiting_by_reason(self, num_waiting: int) -> Metric:
        gauge = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason.", labels=(*LABELS, "reason")
        )
        gauge.add_metric((*self._labels, "capacity"), num_waiting)
        gauge.add_metric((*self._labels, "deferred"), 0)
        return gauge

    def _cached_by_source(self, num_hits: int) -> Metric:
        counter = CounterMetricFamily(
            "vllm:prompt_tokens_cached_by_source",
            "Prompt tokens found in the prefix cache, by the memory that held them.",
            labels=(*LABELS, "source"),
        )
        for source in _CACHE_SOURCES:
            counter.add_metric((*self._labels, source), num_hits if source == "device" else 0)
        return counter


class AdapterCollector:
    """The LoRA adapters of running and of waiting requests; the value is the time, as in vLLM."""

    def __init__(self, max_loras: int, read_stats: Callable[[], EngineStats]) -> None:
        self._max_loras = str(max_loras)
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        info = GaugeMetricFamily("vllm:lora_requests_info", "Running stats on lora requests.", labels=labels)
        adapters = (",".join(stats.waiting_adapters), ",".join(stats.running_adapters))
        info.add_metric((self._max_loras, *adapters), datetime.now(UTC).timestamp())
        yield info


class ConstantCollector:
    """vLLM's families of features that this engine lacks: constant, so that dashboards find their series."""

    def __init__(self, model_name: str, *, has_image_cache: bool) -> None:
        labels = (model_name, ENGINE)
        zeros = [
            ("vllm:external_prefix_cache_queries", "Prompt tokens looked up in another server's cache."),
            ("vllm:external_prefix_cache_hits", "Prompt tokens found in another server's cache."),
        ]
        if not has_image_cache:
            zeros += [
                ("vllm:mm_cache_queries", "Images looked up in the cache of processed ones."),
                ("vllm:mm_cache_hits", "Images found in the cache of processed ones."),
            ]
        self._families: list[Metric] = []
        for name, documentation in zeros:
            counter = CounterMetricFamily(name, documentation, labels=LABELS)
            counter.add_metric(labels, 0)
            self._families.append(counter)
        sleep = GaugeMetricFamily("vllm:engine_sleep_state", "Engine sleep state.", labels=(*LABELS, "sleep_state"))
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.add_metric((*labels, state), float(state == "awake"))
        self._families.append(sleep)

    def collect(self) -> Iterator[Metric]:
        yield from self._families
