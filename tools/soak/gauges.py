"""Reads the running and waiting requests and the KV cache usage from a server's /metrics."""

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tools.soak.results import Gauges
from vllm_cli.bench.readiness import NotReadyError, get

_RUNNING, _WAITING, _USAGE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"


async def read_gauges(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> Gauges:
    """Reads the metrics once; missing ones are None."""
    try:
        status, body = await get(session, base_url + "/metrics", headers)
    except NotReadyError:
        status, body = 0, b""
    return parse_gauges(body.decode(errors="replace")) if status == 200 else parse_gauges("")


def parse_gauges(text: str) -> Gauges:
    """Parses the three metric families from Prometheus's text format; adds up several engines."""
    names = (_RUNNING, _WAITING, _USAGE)
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(names)) + "\n"
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return Gauges(num_running=sums.get(_RUNNING), num_waiting=sums.get(_WAITING), kv_cache_usage=sums.get(_USAGE))
