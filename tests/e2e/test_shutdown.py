"""How servers end: drains after SIGTERM, drains that are cut short, and starts that fail or are stopped.

Every request gets a response. Running requests finish, and new requests get a 503. If a process is killed or
hangs, clients and probes get errors, and the server exits or goes on.
"""

import json
import signal

import pytest

from envs.registry import START_METHODS
from tests.e2e.server_process import Role, find_process, wait_process
from tests.e2e.stop_point import (
    API_READS_TOKENIZER,
    ENGINE_LOADS,
    FORKSERVER_FORKS,
    FORKSERVER_IMPORTS,
    StopPoint,
    stop_environment,
)
from tests.support.folders import short_folder
from tests.support.http_client import SOON_REFUSALS, RawClient, StreamReader, count_refusals, request_bytes
from tests.support.marks import slow_but_for
from tests.support.program import READY_S
from tests.support.waiting import GONE_S, is_gone, stopped, wait_until

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
        assert not any(argument in server.log for argument in ("Error", "Cause:"))
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
    arguments = ("--shutdown-timeout", timeout_s, "--http-body-timeout", "100000")
    with start_tiny_server(*arguments) as server, RawClient(server.port) as slow:
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


_INTERRUPT_DECODER = """
import os, signal, sys, typing

alias = type(typing.Annotated[int, 1])
plain = alias.__hash__

def interrupted(self):
    if sys._getframe(1).f_code.co_filename.endswith("server/terms/http_body/request_body.py"):
        alias.__hash__ = plain
        os.kill(os.getpid(), signal.SIGINT)
    return plain(self)

alias.__hash__ = interrupted
"""


@pytest.mark.parametrize("method", slow_but_for(START_METHODS, "forkserver"))
def test_no_process_outlives_an_api_process_that_is_killed_during_the_start(start_tiny_server, method, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    with start_tiny_server(wait=False) as server:
        wait_until(server.health)
        assert len(server.family()) > 1
        server.process.kill()


@pytest.mark.parametrize("arguments", [(), ("--idle-stop", "1h")], ids=["server", "router"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_the_next_start_removes_what_a_killed_one_has_left(start_tiny_server, arguments, number):
    with short_folder() as temp:
        environment = {"TMPDIR": str(temp)}
        with start_tiny_server(*arguments, environment=environment) as server:
            server.family()
            server.process.send_signal(number)
            assert server.process.wait(GONE_S) == -number
        with start_tiny_server(*arguments, environment=environment) as server:
            wait_until(
                lambda: len(list(temp.iterdir())) == 1 + len(arguments) // 2
            )  # a library's file stays for a moment
            server.terminate()
        assert list(temp.iterdir()) == []


def test_an_engine_is_a_new_program_if_the_forkserver_is_killed_while_it_forks(start_tiny_server, tmp_path):
    forking = StopPoint(tmp_path, *FORKSERVER_FORKS, signal_number=signal.SIGKILL)
    with start_tiny_server(wait=False, environment=forking.environment) as server:
        server.wait_ready()
        assert find_process(server, "forkserver") is None
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
        assert "is started as a new program instead of forked: the forkserver " in server.log


def test_start_succeeds_without_helper_processes_that_are_killed(start_tiny_server, tmp_path):
    checking = StopPoint(tmp_path, *API_READS_TOKENIZER)
    with start_tiny_server(wait=False, environment=checking.environment) as server:
        api = checking.wait_stopped()
        assert api.pid == server.process.pid
        helpers: tuple[Role, ...] = ("responder", "resource_tracker", "forkserver")
        for role in helpers:
            wait_process(server, role).kill()
        api.resume()
        server.wait_ready()
        assert "the responder process" in server.log
        assert server.terminate() == 0


def test_ctrl_c_that_msgspec_discards_ends_the_start(start_tiny_server, tmp_path):
    """msgspec's C code hashes a message's types. It discards all errors then, even KeyboardInterrupt."""
    (tmp_path / "sitecustomize.py").write_text(_INTERRUPT_DECODER)
    with start_tiny_server(wait=False, environment=stop_environment(tmp_path)) as server:
        assert server.process.wait(READY_S) == 130


@pytest.mark.parametrize("role", ["engine", "forkserver"])
@pytest.mark.parametrize("method", slow_but_for(START_METHODS, "forkserver"))
def test_a_dead_engine_or_forkserver_ends_the_server_with_the_reason(start_tiny_server, method, role, cold_or_warm):
    if role == "forkserver" and method != "forkserver":
        pytest.skip("there is none")
    environment = cold_or_warm | {"VLLM_WORKER_MULTIPROC_METHOD": method}
    with start_tiny_server(environment=environment) as server:
        server.family()
        assert server.metric("vllm_cli:engine_up") == 1
        victim = wait_process(server, role)
        reader = StreamReader(server.url, 4000)  # some seconds
        victim.kill()
        events = reader.finish()
        assert any(event and "error" in event for event in events)
        assert events[-1] is None
        assert server.process.wait(GONE_S) == 1
        line = next(line for line in server.log.splitlines() if "the engine died" in line)
        assert ("killed by SIGKILL" if role == "engine" else "forkserver") in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_engine_has_died_hides_no_failure(start_tiny_server, number, tmp_path):
    """Behind a router, a drain takes no time, and would end before the reason of the death is known."""
    with start_tiny_server(environment={"VCLI_ROUTER": str(tmp_path / "socket")}) as server:
        engine = wait_process(server, "engine")
        with stopped(find_process(server, "api").pid):
            engine.kill()
            wait_until(lambda: is_gone(engine.pid))
            server.process.send_signal(number)
        assert server.process.wait(GONE_S) == 1
        assert "the engine died: " in server.log
