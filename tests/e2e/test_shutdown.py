"""How servers end: drains after SIGTERM, drains that are cut short, and starts that fail or are stopped.

Every request gets a response. Running requests finish, and new requests get a 503. Kills are tested in
`test_killed_processes.py`.
"""

import json
import signal

import pytest

from tests.e2e.server_process import wait_process
from tests.e2e.stop_point import ENGINE_LOADS, FORKSERVER_IMPORTS, StopPoint
from tests.support.folders import short_folder
from tests.support.http_client import SOON_REFUSALS, RawClient, StreamReader, count_refusals, request_bytes
from tests.support.waiting import GONE_S, wait_until

_BODY = {"prompt": "Once", "max_tokens": 1}


def test_stream_that_outlasts_the_drain_ends_with_an_error_event(start_server):
    with start_server("--shutdown-timeout", "0.5") as server:
        reader = StreamReader(server.url, 4000)
        assert server.terminate() == 0
        events = reader.finish()
        assert "1 requests may run for 0.5 s more" in server.log
        assert "1 requests are ended with an error" in server.log
    assert any(e and "error" in e for e in events)
    assert events[-1] is None


def test_second_signal_ends_the_drain_at_once(start_server):
    with start_server("--shutdown-timeout", "600") as server:
        reader = StreamReader(server.url, 6000)
        server.process.send_signal(signal.SIGINT)
        server.wait_logged("shutting down: 1 requests")
        server.signal_again(signal.SIGINT)
        assert server.process.wait(GONE_S) == 0
        assert "the server was stopped" in str(reader.finish()[-2:])


@pytest.mark.parametrize(
    ("point", "number", "code", "to"),
    [
        (FORKSERVER_IMPORTS, signal.SIGTERM, -signal.SIGTERM, "process"),
        (ENGINE_LOADS, signal.SIGINT, 130, "group"),
        (ENGINE_LOADS, signal.SIGQUIT, -signal.SIGQUIT, "group"),
    ],
    ids=["imports SIGTERM", "load SIGINT group", "load SIGQUIT group"],
)
def test_a_stopped_start_ends_with_one_line_and_leaves_nothing(start_tiny_server, tmp_path, point, number, code, to):
    waiting = StopPoint(tmp_path, *point)
    with (
        short_folder() as temp,
        start_tiny_server(wait=False, environment={**waiting.environment, "TMPDIR": str(temp)}) as server,
    ):
        waiting.wait_stopped()
        wait_until(server.health)
        server.family()
        (server.signal_all if to == "group" else server.process.send_signal)(number)
        assert server.process.wait(GONE_S) == code
        name = signal.Signals(number).name
        assert server.log.count(f"stopped by {name} during the start, in phase ") == 1, server.log
        assert not any(word in server.log for word in ("Error", "Cause:"))
        assert list(temp.iterdir()) == []


def test_engine_that_is_killed_while_it_loads_fails_the_start(start_tiny_server, tmp_path):
    loading = StopPoint(tmp_path, *ENGINE_LOADS)
    with start_tiny_server(wait=False, environment=loading.environment) as server:
        loading.wait_stopped().kill()
        assert server.process.wait(GONE_S) == 3
        assert "Error: " in server.log


def test_port_stays_open_for_the_grace_and_answers_503_with_retry_after(start_tiny_server):
    with start_tiny_server("--drain-grace", "600", environment={"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600"}) as server:
        kept = RawClient(server.port)
        assert "connection" not in kept.get("/health").read().headers
        server.process.send_signal(signal.SIGTERM)
        for method, path in (("GET", "/readyz"), ("GET", "/health"), ("POST", "/v1/completions")):
            server.wait_unready()
            with RawClient(server.port) as fresh:
                rejected = fresh.send(request_bytes(path, b"{}" * (method == "POST"), method=method)).read()
                assert (rejected.status, rejected.headers["retry-after"]) == (503, "1")
                assert rejected.headers["connection"] == "close"
        rejected = kept.post("/v1/completions", _BODY).read()
        assert (rejected.status, rejected.headers["connection"]) == (503, "close")
        assert kept.is_closed()
        kept.close()
        assert server.ask("/livez").status == 200
        server.signal_again()
        assert server.process.wait(GONE_S) == 0


def test_an_idle_server_closes_its_port_although_a_client_goes_on_asking(start_tiny_server):
    with start_tiny_server() as server:
        assert count_refusals(server.url, server.process.terminate) <= SOON_REFUSALS
        assert server.process.wait(GONE_S) == 0


_SLOW = request_bytes("/v1/completions", json.dumps(_BODY).encode())


@pytest.mark.smoke
def test_request_whose_body_is_still_being_sent_is_answered(start_tiny_server):
    with start_tiny_server("--shutdown-timeout", "200") as server, RawClient(server.port) as slow:
        slow.send(_SLOW[:-10])
        server.wait_load(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_unready()
        answer = slow.send(_SLOW[-10:]).read()
        assert answer.status == 200
        assert answer.json["choices"]
        assert server.process.wait(GONE_S) == 0


@pytest.mark.parametrize(
    ("timeout_s", "num_signals"),
    [pytest.param("0.5", 1, id="time-out"), pytest.param("100000", 2, id="second signal", marks=pytest.mark.slow)],
)
def test_request_whose_body_never_ends_gets_a_503_and_does_not_delay_the_exit(
    start_tiny_server, timeout_s, num_signals
):
    words = ("--shutdown-timeout", timeout_s, "--http-body-timeout", "100000")
    with start_tiny_server(*words) as server, RawClient(server.port) as slow:
        slow.send(_SLOW[:-10])
        server.wait_load(1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_logged("shutting down: 1 requests")
        if num_signals == 2:
            server.signal_again()
        answer = slow.read()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json["status"] == "draining"
        assert server.process.wait(GONE_S) == 0


def test_engine_that_dies_in_a_drain_is_reported(start_server):
    with start_server("--shutdown-timeout", "100000") as server:
        reader = StreamReader(server.url, 4000)
        server.process.send_signal(signal.SIGTERM)
        server.wait_logged("shutting down: 1 requests")
        wait_process(server, "engine").kill()
        assert server.process.wait(GONE_S) == 1
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
