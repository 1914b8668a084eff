"""The load generators: a closed loop keeps a number of requests in flight, an open one follows a schedule."""

import asyncio
import math
import random
import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter_ns, process_time_ns
from typing import Final

import aiohttp

from vllm_cli.bench.request import EncodedRequest, RequestSample, send_request

_MOST_IN_FLIGHT: Final = 4096
_OTHER_FILES: Final = 64
"""Descriptors that this process uses for something else than connections."""


@dataclass(frozen=True)
class LoadSamples:
    """The samples of one round of load."""

    requests: list[RequestSample]
    duration_ns: int
    """From the first request's start to the last one's end."""
    client_cpu_ns: int
    """Processor time of this process during the round, which the server could not use."""
    delays_ns: list[int] = field(default_factory=list)
    """Open loop: how long after its due time each request was sent."""


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


async def generate_open_load(
    requests: Sequence[EncodedRequest], *, dues_ns: Sequence[int], timeout_s: float
) -> LoadSamples:
    """Sends each request when it is due, in nanoseconds from now, whether or not earlier ones are answered.

    A request for which there is no file descriptor is sent late, once another one has ended.
    """
    samples: list[RequestSample] = []
    delays_ns: list[int] = []
    async with open_session(timeout_s) as session:
        room = asyncio.Semaphore(_most_in_flight())
        begin_ns, cpu_begin_ns = perf_counter_ns(), process_time_ns()

        async def send(request: EncodedRequest, due_ns: int) -> None:
            sample = await send_request(session, request)
            room.release()
            samples.append(sample)
            delays_ns.append(sample.start_ns - due_ns)

        async with asyncio.TaskGroup() as running:
            for request, due_ns in zip(requests, dues_ns, strict=True):
                await asyncio.sleep((begin_ns + due_ns - perf_counter_ns()) / 1e9)
                await room.acquire()
                running.create_task(send(request, begin_ns + due_ns))
        return LoadSamples(samples, perf_counter_ns() - begin_ns, process_time_ns() - cpu_begin_ns, delays_ns)


def draw_arrivals(num_requests: int, request_rate: float, *, seed: str) -> list[int]:
    """Due times in nanoseconds of a Poisson process; with the rate `inf`, all requests are due at once.

    As in vLLM, the times are scaled so that the last one is the number divided by the rate.
    """
    if math.isinf(request_rate):
        return [0] * num_requests
    source = random.Random(seed)
    times = list(accumulate(source.expovariate(1.0) for _ in range(num_requests)))
    return [round(time / times[-1] * num_requests / request_rate * 1e9) for time in times]


def _most_in_flight() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_IN_FLIGHT if soft == resource.RLIM_INFINITY else max(min(_MOST_IN_FLIGHT, soft - _OTHER_FILES), 1)


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
