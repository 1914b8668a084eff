"""GET / and GET /status.json: the status page and its figures; they contain no secrets."""

import os
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from base.status_page.page import read_page
from server.routes.info import json_response
from server.routes.parts import AppParts

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class StatusEndpoints:
    """Answer in every state; only the quantiles of the loop lag are computed (half a millisecond)."""

    def __init__(self, parts: AppParts) -> None:
        self._parts = parts
        self._whole_start: bytes | None = None
        """The timeline, once the start has ended."""

    async def page(self, request: Request) -> Response:
        """GET /."""
        page = read_page()
        return Response(page.body, headers=dict(page.headers), media_type="text/html; charset=utf-8")

    async def data(self, request: Request) -> Response:
        """GET /status.json."""
        body = {
            "status": self._parts.lifecycle.state,
            "model": self._parts.metrics.model_name,
            "version": self._parts.version,
            "error": self._parts.lifecycle.reason,
            "progress": self._parts.start.progress(),
            "start": msgspec.Raw(self._timeline()),
            "live": self._live() if self._parts.lifecycle.has_engine else None,
        }
        return json_response(body)

    def _timeline(self) -> bytes:
        if self._whole_start is not None:
            return self._whole_start
        report = self._parts.start.report()
        if self._parts.lifecycle.state != "starting":
            self._whole_start = report
        return report

    def _live(self) -> dict[str, Any]:
        stats, metrics, lag = (
            self._parts.engine.stats,
            self._parts.metrics.engine,
            self._parts.metrics.loop.heartbeat.lag,
        )
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
            "loop_lag_p50_s": lag.p50_s,
            "loop_lag_p99_s": lag.p99_s,
            "loop_lag_max_s": lag.max_s,
            "rss_bytes": _resident_bytes(os.getpid()),
            "engine_rss_bytes": _resident_bytes(self._parts.engine.info.pid),
        }


def _resident_bytes(pid: int | None) -> int | None:
    """Memory of a process; None if the system does not report it."""
    if pid is None:
        return None
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
