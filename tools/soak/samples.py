"""What a server uses: memory, files and threads of its processes by role, and unfinished work in /metrics."""

import contextlib
from collections.abc import Iterator
from typing import Final

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tools.soak.results import Gauges, GroupSample
from vllm_cli.bench.readiness import NotReadyError, get

_ROLES: Final = (
    ("multiprocessing.resource_tracker", "resource tracker"),
    ("multiprocessing.forkserver", "forkserver"),
    ("multiprocessing.spawn", "spawned"),
)
"""Words of a command line, and the role of such a process."""
_CHILD_OF: Final = {"forkserver": "engine"}
"""A forked child has its parent's command line."""
_RUNNING, _WAITING, _USAGE = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"


def sample_processes(root_pid: int) -> dict[str, GroupSample]:
    """The descendants of a process, added up by role, so that one process may replace another.

    Leaves out processes that exit meanwhile.
    """
    samples: dict[str, GroupSample] = {}
    for process, role in _walk(root_pid):
        with contextlib.suppress(psutil.NoSuchProcess), process.oneshot():
            sample = GroupSample(process.memory_info().rss, process.num_fds(), process.num_threads(), 1)
            samples[role] = samples[role].plus(sample) if role in samples else sample
    return samples


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


def _walk(root_pid: int) -> Iterator[tuple[psutil.Process, str]]:
    roles: dict[int, str] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root_pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                roles[process.pid] = role = _find_role(process, roles.get(process.ppid()))
                yield process, role


def _find_role(process: psutil.Process, parent_role: str | None) -> str:
    if parent_role is None:
        return "server"
    words = " ".join(process.cmdline())
    role = next((role for word, role in _ROLES if word in words), process.name())
    return _CHILD_OF.get(role, role) if role == parent_role else role
