"""The regular log line with figures of the engine."""

import asyncio
import logging
from time import monotonic

from base.server_settings import LoggingConfig
from server.engine.process_link.client import EngineClient
from server.operation.metrics.server_metrics import ServerMetrics

logger = logging.getLogger(__name__)


async def log_stats(config: LoggingConfig, engine: EngineClient, metrics: ServerMetrics) -> None:
    """Logs a line of figures with vLLM's text, every ten seconds by default. Logs at DEBUG on an idle server.

    Needs a ready engine. Runs until it is cancelled, or returns at once if the line is disabled.
    """
    if config.disable_log_stats:
        return
    counts = metrics.engine
    last_s, was_idle = monotonic(), True
    num_prompt_tokens, num_generation_tokens = counts.num_computed_prompt_tokens, counts.num_generation_tokens
    while True:
        await asyncio.sleep(config.log_stats_interval_s)
        stats, now_s = engine.stats, monotonic()
        prompt = counts.num_computed_prompt_tokens - num_prompt_tokens
        generation = counts.num_generation_tokens - num_generation_tokens
        is_idle = not (prompt or generation or stats.num_running or stats.num_waiting)
        logger.log(
            logging.DEBUG if is_idle and was_idle else logging.INFO,
            "Engine 000: Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
            "Running: %d reqs, Waiting: %d reqs, KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
            prompt / (now_s - last_s),
            generation / (now_s - last_s),
            stats.num_running,
            stats.num_waiting,
            100 * stats.kv_cache_usage,
            100 * stats.prefix_cache_hits / max(stats.prefix_cache_queries, 1),
        )
        last_s, was_idle = now_s, is_idle
        num_prompt_tokens += prompt
        num_generation_tokens += generation
