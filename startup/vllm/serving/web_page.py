"""The page at `/` of vLLM's server, and the data that the page polls, on vLLM's event loop."""

import asyncio
import time
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from base.machine.processes import family_pss_bytes
from base.status_page.page import DATA_PATH, read_page
from envs.registry import env
from startup.session.start_state import StartState

_SUMS: Final = {
    "num_running": "vllm:num_requests_running",
    "num_waiting": "vllm:num_requests_waiting",
    "prefix_cache_queries": "vllm:prefix_cache_queries_total",
    "prefix_cache_hits": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
}
"""The page's live figures, and the metrics of vLLM whose sum over all engines they are."""
_KV_CACHE_USAGE: Final = "vllm:kv_cache_usage_perc"


class WebPage:
    """Answers `/` and `/status.json` of one vLLM server."""

    def __init__(self, state: StartState, app: Any, client: Any) -> None:
        """`app` is vLLM's FastAPI application, and `client` its engine client."""
        arguments = getattr(app.state, "args", None)
        has_key = bool(getattr(arguments, "api_key", None) or env.VLLM_API_KEY.get())
        is_multimodal = getattr(client.vllm_config.model_config, "is_multimodal_model", False)
        self._state = state
        self._fixed = {"needs_key": has_key, "modalities": ["text", "image"] if is_multimodal else ["text"]}
        self._has_own_route = any(getattr(route, "path", None) == "/" for route in app.routes)
        """Whether vLLM, or a plugin, has a page of its own at `/`."""
        self._reading = asyncio.Lock()

    async def answer(self, method: str, path: str) -> Response | None:
        """The page or its data. None for all other requests, which are vLLM's."""
        if method not in ("GET", "HEAD"):
            return None
        if path == "/" and not self._has_own_route:
            page = read_page()
            return Response(page.body, media_type="text/html", headers=dict(page.headers))
        if path == DATA_PATH:
            live = await self._live()
            return JSONResponse({**self._state.status(), **self._fixed, "live": live})
        return None

    async def _live(self) -> dict[str, Any]:
        """The live figures. The event loop's delay is null, because nothing in vLLM measures it."""
        async with self._reading:  # reading the memory of all processes takes some milliseconds
            memory_bytes = await asyncio.to_thread(family_pss_bytes)
        lags = dict.fromkeys(("loop_lag_p50_s", "loop_lag_p99_s", "loop_lag_max_s"))
        times = {"time_s": time.monotonic(), "uptime_s": self._state.uptime_s()}
        return {**times, **_read_metrics(), **lags, "memory_bytes": memory_bytes}


def _read_metrics() -> dict[str, float]:
    """The figures in this process's metrics. With --disable-log-stats, vLLM records none, and all are 0."""
    from prometheus_client import REGISTRY  # noqa: PLC0415 - not in each environment of this package

    wanted = [*_SUMS.values(), _KV_CACHE_USAGE]
    values: dict[str, list[float]] = {name: [] for name in wanted}
    for metric in REGISTRY.restricted_registry(wanted).collect():
        for sample in metric.samples:
            values.get(sample.name, []).append(sample.value)
    figures = {figure: sum(values[name]) for figure, name in _SUMS.items()}
    return {**figures, "kv_cache_usage": max(values[_KV_CACHE_USAGE], default=0.0)}
