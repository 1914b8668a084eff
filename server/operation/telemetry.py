"""Observes a running server: the event loop's lag, a log line of figures, the access log's filters."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from server.access_log import set_up_access_log
from server.engine.process_link.client import EngineClient
from server.metrics.server_metrics import ServerMetrics
from server.server_config import LoggingConfig

logger = logging.getLogger(__name__)

INTERVAL_S = 0.02
WINDOW_S = 60.0


class Telemetry:
    """One run of the event loop; every method is called there."""

    def __init__(
        self,
        config: LoggingConfig,
        engine: EngineClient,
        metrics: ServerMetrics,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_beat` is called 50 times a second."""
        self._loop_metrics = metrics.loop
        self._on_beat = on_beat
        self._heartbeat = LoopHeartbeat(self._beat)
        self._stats = None if config.disable_log_stats else StatsLine(engine, metrics, config.log_stats_interval_s)
        metrics.loop.watch(self._heartbeat)
        set_up_access_log(config.disable_access_log_for_endpoints)

    def start(self) -> None:
        """Starts the heartbeat; called once the loop runs."""
        self._heartbeat.start()

    def start_stats(self) -> None:
        """Starts the log line of figures, if it is wanted; called once the engine is ready."""
        if self._stats is not None:
            self._stats.start()

    def close(self) -> None:
        """Stops both; called before the loop ends."""
        self._heartbeat.close()
        if self._stats is not None:
            self._stats.close()

    def _beat(self, lag_s: float) -> None:
        self._loop_metrics.record_lag(lag_s)
        self._on_beat()


class LoopLag(NamedTuple):
    """How late the beats of about the last minute were, in seconds."""

    p50_s: float
    p99_s: float
    max_s: float


class LoopHeartbeat:
    """Measures the loop lag: how late a timer fires that is due every 20 ms on the event loop.

    `start` it on that loop, `close` it before the loop ends.
    """

    def __init__(self, on_beat: Callable[[float], None]) -> None:
        """`on_beat` is called with the lateness in seconds."""
        self._on_beat = on_beat
        self._handle: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._worst: deque[tuple[float, float]] = deque()
        """Time and lateness of beats, in descending lateness: the first is the worst of the window."""
        self._recent: deque[float] = deque(maxlen=int(WINDOW_S / INTERVAL_S))

    @property
    def worst_lag_s(self) -> float:
        """The longest lateness of the last minute; may be read from any thread."""
        try:
            return self._worst[0][1]
        except IndexError:
            return 0.0

    @property
    def lag(self) -> LoopLag:
        """The quantiles of the lag; sorts three thousand numbers, so it is for the status page only."""
        lags = sorted(self._recent) or [0.0]
        return LoopLag(lags[len(lags) // 2], lags[len(lags) * 99 // 100], lags[-1])

    def start(self) -> None:
        """Starts the timer on the running loop."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def close(self) -> None:
        """Stops the timer."""
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        lag_s = max(0.0, now_s - self._due_s)
        self._note(now_s, lag_s)
        self._on_beat(lag_s)
        self._due_s = now_s + INTERVAL_S
        self._handle = loop.call_at(self._due_s, self._beat, loop)

    def _note(self, now_s: float, lag_s: float) -> None:
        self._recent.append(lag_s)
        while self._worst and self._worst[-1][1] <= lag_s:
            self._worst.pop()
        self._worst.append((now_s, lag_s))
        while self._worst[0][0] < now_s - WINDOW_S:
            self._worst.popleft()


class StatsLine:
    """Logs one line of figures every ten seconds, with vLLM's text; at level DEBUG while the server is idle.

    `start` it on the event loop, `close` it before the loop ends.
    """

    def __init__(self, engine: EngineClient, metrics: ServerMetrics, interval_s: float) -> None:
        self._engine = engine
        self._metrics = metrics
        self._interval_s = interval_s
        self._handle: asyncio.TimerHandle | None = None
        self._last_s = 0.0
        self._num_prompt_tokens = self._num_generation_tokens = 0
        self._was_idle = True

    def start(self) -> None:
        """Logs the first line one interval from now; called once the engine is ready."""
        metrics = self._metrics.engine
        self._last_s = monotonic()
        self._num_prompt_tokens = metrics.num_computed_prompt_tokens
        self._num_generation_tokens = metrics.num_generation_tokens
        self._wait()

    def close(self) -> None:
        """Stops logging."""
        if self._handle is not None:
            self._handle.cancel()

    def _wait(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(self._interval_s, self._write)

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
