"""The regular log line with figures of the engine."""

import asyncio
import logging
from time import monotonic

from base.server_settings import LoggingConfig
from server.engine.process_link.client import EngineClient
from server.operation.metrics.server_metrics import ServerMetrics

logger = logging.getLogger(__name__)


class StatsLine:
    """Logs a line of figures with vLLM's text, every ten seconds by default. Logs at DEBUG on an idle server.

    Call `start` on the event loop, and `close` before the loop ends.
    """

    def __init__(self, config: LoggingConfig, engine: EngineClient, metrics: ServerMetrics) -> None:
        self._config = config
        self._engine = engine
        self._metrics = metrics
        self._handle: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        self._num_prompt_tokens = self._num_generation_tokens = 0
        self._was_idle = True

    def start(self) -> None:
        """Starts logging if it is enabled, with the first line after one interval. Needs a ready engine."""
        if self._config.disable_log_stats:
            return
        metrics = self._metrics.engine
        self._last_s = monotonic()
        self._num_prompt_tokens = metrics.num_computed_prompt_tokens
        self._num_generation_tokens = metrics.num_generation_tokens
        self._wait()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _wait(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(self._config.log_stats_interval_s, self._write)

    def _write(self) -> None:
        metrics, stats = self._metrics.engine, self._engine.stats
        now_s = monotonic()
        took_s = now_s - self._last_s
        prompt = metrics.num_computed_prompt_tokens - self._num_prompt_tokens
        generation = metrics.num_generation_tokens - self._num_generation_tokens
        is_idle = not (prompt or generation or stats.num_running or stats.num_waiting)
        logger.log(
            logging.DEBUG if is_idle and self._was_idle else logging.INFO,
            "Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
            "Running: %d reqs, Waiting: %d reqs, KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
            prompt / took_s,
            generation / took_s,
            stats.num_running,
            stats.num_waiting,
            100 * stats.kv_cache_usage,
            100 * stats.prefix_cache_hits / max(stats.prefix_cache_queries, 1),
        )
        self._last_s, self._was_idle = now_s, is_idle
        self._num_prompt_tokens += prompt
        self._num_generation_tokens += generation
        self._wait()
