"""GET / and GET /status.json: how the server is doing, for people; nothing of it is secret."""

import os
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.routes.info import json_response
from server.serving.services import Services
from server.status_page.page import read_page

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class StatusEndpoints:
    """Answer at any time; the figures are read, not computed, but for the loop's quantiles (half a millisecond)."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._whole_start: bytes | None = None
        """The timeline, once nothing is added to it any more."""

    async def page(self, request: Request) -> Response:
        """GET /."""
        page = read_page()
        return Response(page.body, headers=dict(page.headers), media_type="text/html; charset=utf-8")

    async def data(self, request: Request) -> Response:
        """GET /status.json."""
        services = self._services
        body = {
            "status": services.status,
            "model": services.config.served_model_names[0],
            "version": services.version,
            "error": services.engine.error,
            "progress": services.start.progress(),
            "start": msgspec.Raw(self._start()),
            "live": self._live() if services.status in ("ready", "draining") else None,
        }
        return json_response(body)

    def _start(self) -> bytes:
        if self._whole_start is not None:
            return self._whole_start
        report = self._services.start.report()
        if self._services.status != "starting":
            self._whole_start = report
        return report

    def _live(self) -> dict[str, Any]:
        services = self._services
        stats, metrics, heartbeat = services.engine.stats, services.engine_metrics, services.metrics.loop.heartbeat
        lag = heartbeat.lag if heartbeat is not None else None
        return {
            "time_s": monotonic(),
            "uptime_s": services.start.uptime_s(),
            "num_running": stats.num_running,
            "num_waiting": stats.num_waiting,
            "kv_cache_usage": stats.kv_cache_usage,
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "prompt_tokens": metrics.num_computed_prompt_tokens,
            "generation_tokens": metrics.num_generation_tokens,
            "loop_lag_p50_s": lag.p50_s if lag else 0.0,
            "loop_lag_p99_s": lag.p99_s if lag else 0.0,
            "loop_lag_max_s": lag.max_s if lag else 0.0,
            "rss_bytes": _resident_bytes(os.getpid()),
            "engine_rss_bytes": _resident_bytes(services.engine.info.pid),
        }


def _resident_bytes(pid: int | None) -> int | None:
    """Memory of a process; None where the system does not tell."""
    if pid is None:
        return None
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
