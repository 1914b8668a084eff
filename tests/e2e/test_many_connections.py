"""Ten thousand idle connections do not slow down other clients.

Prints the latencies of probes: `make test-slow ARGS="-k ten_thousand -s"`.
"""

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import quantiles
from time import perf_counter

import pytest

from tests.e2e.raw_client import RawClient
from tests.e2e.server_process import ServerProcess

NUM_CONNECTIONS = 10_000
NUM_PROBES = 1000
PROBE = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


@contextmanager
def many_files(num: int) -> Iterator[None]:
    """Allows this process, and the server that it starts, `num` open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < num:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, num), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_idle_connections_are_held(tiny_llama):
    arguments = [str(tiny_llama), "--http-header-timeout", "1800", "--disable-uvicorn-access-log"]
    with many_files(NUM_CONNECTIONS + 1000), ServerProcess(arguments) as server, ExitStack() as stack:
        idle = [stack.enter_context(RawClient(server.port)) for _ in range(NUM_CONNECTIONS)]
        seconds = sorted(probe_all(server.port))
        with RawClient(server.port) as client:
            assert client.post("/v1/completions", {"prompt": "a", "max_tokens": 4}).read().status == 200
        for client in idle[:: NUM_CONNECTIONS // 100]:
            assert client.send(PROBE).read().status == 200
        percent = quantiles(seconds, n=100)
        print(f"{NUM_CONNECTIONS} idle: p50 {percent[49] * 1000:.2f} ms, p99 {percent[98] * 1000:.2f} ms")


def probe_all(port: int) -> Iterator[float]:
    """The seconds of each probe; half of them open a new connection."""
    with RawClient(port) as kept:
        for number in range(NUM_PROBES):
            begin_s = perf_counter()
            if number % 2:
                assert kept.send(PROBE).read().status == 200
            else:
                with RawClient(port) as client:
                    assert client.send(PROBE).read().status == 200
            yield perf_counter() - begin_s
