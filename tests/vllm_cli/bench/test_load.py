"""The load generator, against a real server."""

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from vllm_cli.bench import load as load_module
from vllm_cli.bench.config import CompletionConfig
from vllm_cli.bench.load import LoadSamples, draw_arrivals, generate_load, generate_open_load
from vllm_cli.bench.request_format import Destination, RequestFormat, build_prompt

MS = 10**6


def load_server(
    url: str,
    *,
    num_requests: int,
    concurrency: int | None = None,
    dues_ms: Sequence[int] = (),
    max_tokens: int = 5,
    timeout_s: float = 120,
) -> LoadSamples:
    """In a closed loop with a concurrency, else at the due times."""
    config = CompletionConfig(targets=())
    destination = Destination(base_url=url, model="tiny", api_key=None)
    usage = {"stream_options": {"include_usage": True}}
    request_format = RequestFormat(destination=destination, config=config, optional=usage)
    prompts = (build_prompt(12, seed=str(index)) for index in range(num_requests))
    requests = [request_format.encode(prompt, max_tokens=max_tokens) for prompt in prompts]
    if concurrency is not None:
        return asyncio.run(generate_load(requests, concurrency=concurrency, timeout_s=timeout_s))
    return asyncio.run(generate_open_load(requests, dues_ns=[due * MS for due in dues_ms], timeout_s=timeout_s))


def test_every_request_is_sent_once_within_the_concurrency(tiny_server):
    server = tiny_server("--first-ms", 200)
    load = load_server(server.url, num_requests=10, concurrency=3)
    seen = server.seen
    assert len(load.requests) == len(seen["bodies"]) == 10
    assert len({body["prompt"] for body in seen["bodies"]}) == 10
    assert seen["max_running"] == 3
    assert all(sample.error is None for sample in load.requests)
    assert [sample.num_output_tokens for sample in load.requests] == [5] * 10


def test_latencies_are_at_least_the_delays_of_the_server(tiny_server):
    server = tiny_server("--first-ms", 80, "--gap-ms", 20)
    load = load_server(server.url, num_requests=4, concurrency=2)
    for sample in load.requests:
        assert sample.ttft_ns is not None
        assert sample.ttft_ns >= 80 * MS
        assert len(sample.gaps_ns) == 4
        assert sample.ttft_ns + sum(sample.gaps_ns) >= 160 * MS
        assert sample.e2e_ns >= 160 * MS
    assert load.duration_ns >= 2 * 160 * MS


def test_usage_counts_more_than_chunks_where_a_chunk_holds_several_tokens(tiny_server):
    server = tiny_server("--tokens-per-chunk", 3)
    (sample,) = load_server(server.url, num_requests=1, concurrency=1).requests
    assert (sample.num_chunks, sample.num_output_tokens) == (5, 15)


def test_rejected_requests_are_errors_with_the_servers_message(tiny_server):
    server = tiny_server("--fails-every", 2)
    load = load_server(server.url, num_requests=6, concurrency=1)
    errors = [sample.error for sample in load.requests if sample.error]
    assert len(errors) == 3
    assert all("HTTP 400" in error and "deliberate error" in error for error in errors)


def test_an_aborted_stream_is_an_error(tiny_server):
    server = tiny_server("--aborts-streams")
    (sample,) = load_server(server.url, num_requests=1, concurrency=1).requests
    assert sample.error is not None


def test_a_request_beyond_its_time_out_is_an_error(tiny_server):
    server = tiny_server("--first-ms", 5000)
    (sample,) = load_server(server.url, num_requests=1, concurrency=1, timeout_s=0.3).requests
    assert sample.error is not None
    assert "Timeout" in sample.error


@pytest.mark.parametrize("when", [{"concurrency": 2}, {"dues_ms": [0, 10, 20]}], ids=["closed", "open"])
def test_a_server_that_has_exited_gives_errors_and_no_exception(when, tiny_server):
    server = tiny_server()
    server.process.kill()
    server.process.wait()
    load = load_server(server.url, num_requests=3, **when)
    assert [bool(sample.error) for sample in load.requests] == [True] * 3


def test_an_open_loop_does_not_wait_for_answers(tiny_server):
    server = tiny_server("--first-ms", 1000)
    load = load_server(server.url, num_requests=6, dues_ms=[0, 0, 0, 40, 40, 80])
    assert server.seen["max_running"] == 6
    assert all(sample.error is None for sample in load.requests)
    assert len(load.requests) == len(load.delays_ns) == 6
    assert all(delay_ns > -MS for delay_ns in load.delays_ns)  # clocks are rounded to milliseconds
    begins = sorted(sample.start_ns for sample in load.requests)
    assert begins[-1] - begins[0] >= 79 * MS - max(load.delays_ns)


def test_requests_beyond_the_limit_of_connections_are_sent_late(tiny_server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_module, "_MOST_IN_FLIGHT", 2)
    server = tiny_server("--first-ms", 100)
    load = load_server(server.url, num_requests=6, dues_ms=[0] * 6)
    assert server.seen["max_running"] == 2
    assert max(load.delays_ns) >= 2 * 99 * MS


def test_arrivals_are_a_poisson_process_that_the_seed_determines():
    dues_ns = draw_arrivals(20_000, 50.0, seed="a")
    assert dues_ns == sorted(dues_ns)
    assert dues_ns[-1] == pytest.approx(20_000 / 50 * 1e9)
    gaps = [later - earlier for earlier, later in pairwise(dues_ns)]
    assert pstdev(gaps) == pytest.approx(fmean(gaps), rel=0.05)  # of an exponential distribution
    assert draw_arrivals(3, 50.0, seed="b") == draw_arrivals(3, 50.0, seed="b") != dues_ns[:3]


def test_all_requests_of_an_infinite_rate_are_due_at_once():
    assert draw_arrivals(3, math.inf, seed="a") == [0, 0, 0]
