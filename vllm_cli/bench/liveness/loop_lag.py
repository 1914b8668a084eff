"""What a server itself tells at `/metrics` about delays of its event loop."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from vllm_cli.bench.readiness import NotReadyError, get

_HISTOGRAM = "vllm_cli:event_loop_lag_seconds"
"""How late each heartbeat of the loop was."""
_GAUGE = "vllm_cli:event_loop_max_lag_seconds"
"""The latest one of the last minute."""


@dataclass(frozen=True)
class LoopLag:
    """One look at the metrics; empty where the server has none of them."""

    max_s: float | None = None
    cumulative: dict[float, float] = field(default_factory=dict)
    """Heartbeats so far that were late by at most this many seconds."""


@dataclass(frozen=True)
class LoopDelays:
    """What happened between two looks; None is not known."""

    max_s: float | None = None
    is_bound: bool = False
    """Whether that is only the bound of the bucket in which the latest heartbeat was."""
    num_late: dict[float, int] = field(default_factory=dict)
    """Heartbeats that were later than this many seconds, for each of the histogram's bounds."""


async def read_loop_lag(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> LoopLag:
    """Ask once."""
    try:
        status, body = await get(session, base_url + "/metrics", headers)
    except NotReadyError:
        return LoopLag()
    return parse_loop_lag(body.decode(errors="replace")) if status == 200 else LoopLag()


def parse_loop_lag(text: str) -> LoopLag:
    """Take the two families out of Prometheus's text format."""
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
    """What the loop went through meanwhile.

    The gauge looks back a fixed time, which may be longer than the time between the looks (and then holds, for one,
    that the server was frozen before), or shorter. The histogram counted just what happened between them, and so holds
    the gauge to the bounds of the latest heartbeat's bucket.
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
