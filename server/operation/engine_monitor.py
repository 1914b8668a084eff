"""Makes the engine ready for requests, logs its figures, and detects when the engine ends or hangs."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Protocol

from base.errors import EngineDeadError, EngineError, EngineStartError
from base.lifecycle import Lifecycle
from base.server_settings import LoggingConfig
from server.engine.process_link.client import EngineClient
from server.operation.admission import RunningRequests
from server.operation.engine_watchdog import EngineWatchdog
from server.operation.metrics.server_metrics import ServerMetrics
from server.operation.models import Inference
from server.terms.types import EngineInfo, EnginePrompt, PoolingParams, SamplingParams
from server.text.renderers.prompts import TextOptions
from server.text.renderers.renderer import Renderer

logger = logging.getLogger(__name__)

_REQUEST_ID = "warm-up"
_END_S = 1.0
"""The longest wait, in seconds, for the kernel to report how the engine's process ended."""
_POLL_S = 0.01


class EngineHandle(Protocol):
    """The engine's process. The launcher passes it to the server."""

    @property
    def connection(self) -> socket.socket:
        """The API process's end of the socket pair."""

    def is_exiting(self) -> bool:
        """Whether the process has begun to end. Its socket may close much later. Does not block."""

    def describe_end(self) -> str | None:
        """Returns how the process was killed. None if it still runs or exited by itself."""


async def make_ready(
    parts: Inference, span: Callable[..., AbstractContextManager[None]], *, timeout_s: float
) -> EngineInfo:
    """Waits until the engine has loaded the model. Then configures the server, and runs a first request.

    Raises:
        EngineStartError: the engine failed, died, exceeded the timeout or generated no token.
    """
    engine = parts.engine
    with span("wait_for_engine", waits_for="engine"):
        info = await engine.wait_loaded(timeout_s)
    parts.renderer.configure(info)
    parts.metrics.register_engine(info, lambda: engine.stats)
    with span("first_token"):
        await warm_up(engine, parts.renderer)
    if engine.error is not None:  # the engine died right after its token
        raise EngineStartError(engine.error)
    return info


async def warm_up(engine: EngineClient, renderer: Renderer) -> None:
    """Generates one token, or pools one prompt. Raises EngineStartError if the engine failed or died."""
    info = engine.info
    prompt = await renderer.pools.run(renderer.prompts.render, "Hello", TextOptions())
    if info.pooling is not None:
        params = PoolingParams(task=info.pooling.task)
        try:
            await engine.pool(_REQUEST_ID, prompt.token_ids[: info.max_model_len], params)
        except EngineError as err:
            raise EngineStartError(f"the first prompt could not be pooled: {err}") from err
        return
    detokenizer = renderer.create_detokenizer()
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    try:
        async for output in engine.generate(_REQUEST_ID, [EnginePrompt(prompt.token_ids, sampling)]):
            detokenizer.append(output.token_ids)
            if output.error is not None:
                raise EngineStartError(f"the first token could not be generated: {output.error}")
    except EngineDeadError as err:
        raise EngineStartError(str(err)) from err


class PingedEngine:
    """The embedded engine with the interfaces that the watchdog needs (`AskedEngine`, `WatchedServer`).

    An engine that still loads counts as answering, because loading has its own time limit.
    """

    def __init__(self, engine: EngineClient, lifecycle: Lifecycle, running: RunningRequests) -> None:
        self._running = running
        self._engine = engine
        self._lifecycle = lifecycle
        self._was_asked = False

    @property
    def num_running(self) -> int:
        return self._running.num_running

    @property
    def is_on_processor(self) -> bool:
        return self._engine.info.device == "cpu"

    def has_answered(self) -> bool:
        is_loading = not self._lifecycle.has_engine and self._lifecycle.reason is None
        if self._was_asked and not self._engine.has_received and not is_loading:
            return False
        self._was_asked, self._engine.has_received = True, False
        self._engine.ping()
        return True

    def engine_hangs(self, reason: str) -> None:
        self._lifecycle.engine_hangs(reason)
        self._engine.give_up(reason)


class EngineMonitor:
    """Watches the engine on the event loop, beside the HTTP server. `run` is its only task."""

    def __init__(
        self, engine: EngineClient, handle: EngineHandle, lifecycle: Lifecycle, watchdog: EngineWatchdog
    ) -> None:
        self._engine = engine
        self._handle = handle
        self._lifecycle = lifecycle
        self._watchdog = watchdog

    async def run(self) -> None:
        """Returns when the engine has ended. The lifecycle is then `dead`, with the reason."""
        await self._wait_dead()
        self._lifecycle.engine_ended(await self._find_reason())

    def poll(self) -> None:
        """Called on each heartbeat, so that probes report an ending engine before its socket closes."""
        if self._lifecycle.state != "dead" and self._handle.is_exiting():
            self._lifecycle.engine_ended("its process is ending")

    async def _wait_dead(self) -> None:
        """Returns when the engine's connection has closed or the watchdog has ended the engine."""
        watching = asyncio.create_task(self._watchdog.run(), name="engine-watchdog")
        try:
            await self._engine.dead.wait()
            if self._lifecycle.is_hung:
                await watching
        finally:
            watching.cancel()

    async def _find_reason(self) -> str:
        """Returns the engine's last error, or else the kernel's report, which may arrive a little later."""
        reason = self._engine.error or "it is gone"
        if not self._engine.ended_silently:
            return reason
        for _ in range(int(_END_S / _POLL_S)):
            if (end := self._handle.describe_end()) is not None:
                return end
            await asyncio.sleep(_POLL_S)
        return reason


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
