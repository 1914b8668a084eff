"""The routes without a JSON body: probes, status page, data about server and model."""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

import msgspec

from base.errors import RequestError
from base.http_requests import query_value
from base.machine.processes import family_pss_bytes
from base.status_page.page import read_page
from server.http.routes.endpoint import AppParts
from server.http.transport.http_request import Request
from server.operation.admission import Availability
from server.operation.metrics.server_metrics import CONTENT_TYPE
from server.terms.http_body.response_body import Answer, json_answer, unavailable_answer

_MAX_SHOWN = 100
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)
_Read = TypeVar("_Read")
_EMPTY = Answer()


def health_answer(availability: Availability) -> Answer:
    """A 200 if requests are accepted, or else a 503 with the reason. Uses no lock and no I/O."""
    problem = availability.problem
    return _EMPTY if problem is None else unavailable_answer(problem)


class InfoEndpoints:
    """Routes with data about server and models. Only those for models and caches need a running engine."""

    def __init__(self, parts: AppParts) -> None:
        self._parts = parts
        self._scraping = asyncio.Lock()
        self._whole_start: bytes | None = None
        """The whole timeline as JSON. None until the start has ended."""

    async def health(self, request: Request) -> Answer:
        return health_answer(self._parts.availability)

    async def version(self, request: Request) -> Answer:
        return json_answer({"version": self._parts.version})

    async def load(self, request: Request) -> Answer:
        """GET /load: the number of running requests."""
        return json_answer({"server_load": self._parts.running.num_running})

    async def metrics(self, request: Request) -> Answer:
        """GET /metrics."""
        body = await self._on_a_thread(self._parts.metrics.render)
        return Answer(body, headers=((b"content-type", CONTENT_TYPE.encode()),))

    async def livez(self, request: Request) -> Answer:
        """GET /livez: 200 unless the server is dead."""
        return Answer(status=503 if self._parts.lifecycle.state == "dead" else 200)

    async def startupz(self, request: Request) -> Answer:
        """GET /startupz: the timeline of the start so far."""
        return json_answer(self._parts.start.report())

    async def list_models(self, request: Request) -> Answer:
        self._parts.availability.check()
        return json_answer(self._parts.models.list())

    async def get_model(self, request: Request) -> Answer:
        self._parts.availability.check()
        return json_answer(self._parts.models.get(request.path_argument))

    async def reset_prefix_cache(self, request: Request) -> Answer:
        """POST /reset_prefix_cache?reset_running_requests=false. There is no external cache to reset."""
        self._parts.availability.check()
        interrupts = _read_boolean(request, "reset_running_requests")
        return json_answer({"success": await self._parts.engine.reset_prefix_cache(interrupts=interrupts)})

    async def reset_mm_cache(self, request: Request) -> Answer:
        """POST /reset_mm_cache: drops the processed images."""
        self._parts.availability.check()
        await self._parts.renderer.clear_mm_cache_async()
        return _EMPTY

    async def status_page(self, request: Request) -> Answer:
        page = read_page()
        headers = [(name.lower().encode(), value.encode()) for name, value in page.headers]
        return Answer(page.body, headers=((b"content-type", b"text/html; charset=utf-8"), *headers))

    async def status_data(self, request: Request) -> Answer:
        """GET /status.json, in every state. The event loop computes only its lag's quantiles, in 0.5 ms."""
        body = {
            "status": self._parts.lifecycle.state,
            "model": self._parts.metrics.model_name,
            "version": self._parts.version,
            "needs_key": bool(len(self._parts.api_keys)),
            "modalities": ["text", "image"] if self._parts.renderer.image_token else ["text"],
            "error": self._parts.lifecycle.reason,
            "progress": self._parts.start.progress(),
            "start": msgspec.Raw(self._timeline()),
            "live": await self._live() if self._parts.lifecycle.has_engine else None,
        }
        return json_answer(body)

    def _timeline(self) -> bytes:
        if self._whole_start is not None:
            return self._whole_start
        report = self._parts.start.report()
        if self._parts.lifecycle.state != "starting":
            self._whole_start = report
        return report

    async def _live(self) -> dict[str, Any]:
        stats, metrics = self._parts.engine.stats, self._parts.metrics.engine
        lag = self._parts.metrics.heartbeat.lag
        return {
            "time_s": monotonic(),
            "uptime_s": self._parts.start.uptime_s(),
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
            "kv_cache_usage": stats.kv_cache_usage,
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "prompt_tokens": metrics.num_computed_prompt_tokens,
            "generation_tokens": metrics.num_generation_tokens,
            "engine_silence_s": self._parts.metrics.engine_silence_s(),
            "loop_lag_p50_s": lag.p50_s,
            "loop_lag_p99_s": lag.p99_s,
            "loop_lag_max_s": lag.max_s,
            "memory_bytes": await self._on_a_thread(family_pss_bytes),
        }

    async def _on_a_thread(self, read: Callable[[], _Read]) -> _Read:
        """Runs what takes some milliseconds, one call after the other."""
        async with self._scraping:
            return await asyncio.to_thread(read)


def _read_boolean(request: Request, name: str) -> bool:
    """Returns a boolean parameter of the query, false by default. Raises RequestError."""
    given = query_value(request.query, name)
    if given is None:
        return False
    if (value := _BOOLEANS.get(given.lower())) is None:
        shown = repr(given[:_MAX_SHOWN])
        raise RequestError(f"Invalid value for `{name}`: expected true or false, got {shown}.", param=name)
    return value
