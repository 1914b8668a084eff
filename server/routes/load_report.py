"""The server's load in a response header, for load balancers (ORCA), with vLLM's names of metrics.

A request asks for it with the header `endpoint-load-metrics-format: TEXT` or `JSON`.
"""

import json
from collections.abc import Callable

from server.routes.messages import Headers
from server.types import EngineStats

FORMAT_HEADER = b"endpoint-load-metrics-format"


class LoadReport:
    """One per server; used on the event loop."""

    def __init__(self, read_stats: Callable[[], EngineStats]) -> None:
        self._read_stats = read_stats

    def headers(self, format_name: str | None) -> Headers:
        """The header in the requested format; none if none was requested, or an unknown one."""
        if format_name is None:
            return ()
        stats = self._read_stats()
        metrics = {
            "kv_cache_usage_perc": float(stats.kv_cache_usage),
            "num_requests_waiting": float(stats.num_waiting),
        }
        match format_name.lower():
            case "text":
                report = "TEXT " + ", ".join(f"named_metrics.{name}={value}" for name, value in metrics.items())
            case "json":
                report = "JSON " + json.dumps({"named_metrics": metrics})
            case _:
                return ()
        return ((b"endpoint-load-metrics", report.encode()),)
