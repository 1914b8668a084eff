"""The closed-loop load generator: keeps a fixed number of requests in flight."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns

import aiohttp

from vllm_cli.bench.request import EncodedRequest, RequestSample, send_request


@dataclass(frozen=True)
class LoadSamples:
    """The samples of one round of load."""

    requests: list[RequestSample]
    duration_ns: int
    """From the first request's start to the last one's end."""
    client_cpu_ns: int
    """Processor time of this process during the round, which the server could not use."""


async def generate_load(requests: Iterable[EncodedRequest], *, concurrency: int, timeout_s: float) -> LoadSamples:
    """Sends all requests over new keep-alive connections, `concurrency` of them in flight, and times each."""
    async with open_session(timeout_s) as session:
        samples: list[RequestSample] = []
        remaining = iter(requests)
        start_ns, cpu_start_ns = perf_counter_ns(), process_time_ns()
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(_work(session, remaining, samples))
        return LoadSamples(samples, perf_counter_ns() - start_ns, process_time_ns() - cpu_start_ns)


def open_session(timeout_s: float, *, keepalive_s: float = 15.0) -> aiohttp.ClientSession:
    """A session without connection limits and without cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )


async def _work(
    session: aiohttp.ClientSession, remaining: Iterator[EncodedRequest], samples: list[RequestSample]
) -> None:
    for request in remaining:
        samples.append(await send_request(session, request))
