"""Reads delays of the event loop from a server's `/metrics`."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from vllm_cli.bench.readiness import NotReadyError, get
from vllm_cli.bench.request_format import Destination

_HISTOGRAM = "vllm_cli:event_loop_lag_seconds"
"""The delay of each heartbeat."""
_GAUGE = "vllm_cli:event_loop_max_lag_seconds"
"""The longest delay of the last minute."""


@dataclass(frozen=True)
class LoopLag:
    """One reading of the metrics; empty if the server has none of them."""

    max_s: float | None = None
    cumulative: dict[float, float] = field(default_factory=dict)
    """Number of heartbeats so far with at most this delay in seconds."""


@dataclass(frozen=True)
class LoopDelays:
    """The delays between two readings; None: unknown."""

    max_s: float | None = None
    is_bound: bool = False
    """Whether it is only the bound of the histogram bucket of the longest delay."""
    num_late: dict[float, int] = field(default_factory=dict)
    """Number of heartbeats with a longer delay in seconds, for each bound of the histogram."""


async def read_loop_lag(session: aiohttp.ClientSession, server: Destination) -> LoopLag:
    """Reads the metrics once."""
    try:
        status, body = await get(session, server.base_url + "/metrics", server.headers)
    except NotReadyError:
        return LoopLag()
    return parse_loop_lag(body.decode(errors="replace")) if status == 200 else LoopLag()


def parse_loop_lag(text: str) -> LoopLag:
    """Parses the two metric families from Prometheus's text format."""
    gauges: list[float] = []
    cumulative: Counter[float] = Counter()
    wanted = "\n".join(line for line in text.splitlines() if _HISTOGRAM in line or _GAUGE in line) + "\n"
    try:
        samples = [sample for family in text_string_to_metric_families(wanted) for sample in family.samples]
    except ValueError:
        return LoopLag()
    for sample in samples:
        if sample.name == _GAUGE:
            gauges.append(sample.value)
        elif sample.name == _HISTOGRAM + "_bucket":
            cumulative[float(sample.labels["le"])] += sample.value
    return LoopLag(max(gauges, default=None), dict(cumulative))


def find_loop_delays(before: LoopLag, after: LoopLag) -> LoopDelays:
    """The delays between two readings.

    The gauge covers a fixed time, which may be shorter than the time between the readings, or longer: then it
    includes, for example, a freeze of the server before the first reading. The histogram counts exactly what
    happened between them, so its bucket of the longest delay bounds the gauge.
    """
    if after.max_s is None:
        return LoopDelays()
    counted = {bound: after.cumulative[bound] - before.cumulative.get(bound, 0) for bound in sorted(after.cumulative)}
    num_beats = counted.get(inf, 0)
    bounds = [0.0, *counted]
    late = [(low, high) for low, high in pairwise(bounds) if counted[high] > counted.get(low, 0)]
    low, high = late[-1] if late else (0.0, inf)
    num_late = {bound: int(num_beats - count) for bound, count in counted.items() if bound < inf}
    max_s = min(max(after.max_s, low), high)
    return LoopDelays(max_s, max_s != after.max_s, num_late)
