"""The server's load in a response header, for load balancers (ORCA), with vLLM's names of metrics.

A request asks for it with the header `endpoint-load-metrics-format: TEXT` or `JSON`.
"""

import json

from server.routes.messages import Headers
from server.types import EngineStats

FORMAT_HEADER = b"endpoint-load-metrics-format"


class LoadReport:
    """Remembers the engine's last state; one per server, used on the event loop."""

    def __init__(self) -> None:
        self._stats = EngineStats()

    def record(self, stats: EngineStats) -> None:
        """Called after every step of the engine."""
        self._stats = stats

    def headers(self, format_name: str | None) -> Headers:
        """The header in the requested format; none if none was requested, or an unknown one."""
        if format_name is None:
            return ()
        metrics = {
            "kv_cache_usage_perc": float(self._stats.kv_cache_usage),
            "num_requests_waiting": float(self._stats.num_waiting),
        }
        match format_name.lower():
            case "text":
                report = "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in metrics.items())
            case "json":
                report = "JSON " + json.dumps({"named_metrics": metrics})
            case _:
                return ()
        return ((b"endpoint-load-metrics", report.encode()),)
