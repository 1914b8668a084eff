"""With real vLLM, the responder answers `/health` while the event loop is held, and loses no connection."""

import http.client
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import psutil
import pytest

from tests.http_answer import ask
from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import VllmServer, title_of
from tests.waiting import is_gone, wait_until

_STOPPED_S = 5.0
_FAST_S = 1.5
"""Far below the five seconds for which the loop does not run."""


@pytest.fixture
def server(start_vllm: StartVllm) -> Iterator[VllmServer]:
    with start_vllm("ours") as server:
        server.wait_ready()
        wait_until(lambda: _responder(server).is_running())
        time.sleep(1)  # the first heartbeats have no answer yet
        yield server


def _responder(server: VllmServer) -> psutil.Process:
    words = server.main_process().cmdline()
    (responder,) = (p for p in server.main_process().children() if p.cmdline() == words)
    return responder


def _probe(server: VllmServer) -> int:
    return ask(f"{server.url}/health", timeout_s=_FAST_S).status


def test_a_blocked_event_loop_is_503_within_two_seconds_and_200_afterwards(server):
    stopped = server.main_process()
    stopped.suspend()
    begin_s = time.perf_counter()
    seen: dict[int, float] = {}
    try:
        while (now_s := time.perf_counter()) - begin_s < _STOPPED_S:
            seen.setdefault(_probe(server), now_s - begin_s)
    finally:
        stopped.resume()
    assert seen[200] < 1
    assert 1.9 < seen[503] < 3
    wait_until(lambda: _probe(server) == 200)


def test_a_dead_engine_is_503_at_once(start_vllm):
    with start_vllm("ours", environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        begin_s = time.perf_counter()
        wait_until(lambda: _probe(server) == 503)
        assert time.perf_counter() - begin_s < 5
        assert server.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_vllm_goes_on_without_the_responder(server, expected_text, number):
    responder = _responder(server)
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(1000)]
        streams = [threading.Thread(target=_stream, args=[server]) for _ in range(4)]
        for stream in streams:
            stream.start()
        responder.send_signal(number)
        assert server.generate() == expected_text
        for stream in streams:
            stream.join()
        wait_until(lambda: is_gone(responder.pid))
        for client in idle[::100]:
            client.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    assert _probe(server) == 200
    assert "vLLM answers /health itself" in server.log
    assert server.terminate(signal.SIGTERM) == 0


def _stream(server: VllmServer) -> None:
    events = server.stream("/v1/completions", prompt=VllmServer.PROMPT, max_tokens=64, ignore_eos=True)
    assert events


def test_answers_equal_those_of_plain_vllm(start_vllm):
    answers = {}
    for launcher in ("plain", "ours"):
        with start_vllm(launcher) as server:
            server.wait_ready()
            time.sleep(1)
            answers[launcher] = [
                _bytes(server, extra) for extra in (b"", b"Origin: http://a\r\n", b"X-Request-Id: 7\r\n")
            ]
            assert server.log.count("GET /health HTTP/1.1") >= 4
    assert answers["ours"] == answers["plain"]


def _bytes(server: VllmServer, extra: bytes) -> list[bytes]:
    """Lines of the answer but for the date."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + extra + b"\r\n")
        received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    return [line for line in received.split(b"\r\n") if not line.startswith(b"date:")]


def test_no_answer_is_lost_at_a_shutdown(server):
    family = [title_of(process) for process in server.family()]
    assert len(family) > 2
    answers: list[list[int]] = [[] for _ in range(8)]
    clients = [threading.Thread(target=_ask_until_closed, args=[server, statuses]) for statuses in answers]
    for client in clients:
        client.start()
    wait_until(lambda: all(len(statuses) > 10 for statuses in answers))
    assert server.terminate(signal.SIGTERM) == 0
    for client in clients:
        client.join()
    assert {status for statuses in answers for status in statuses} <= {200, 503}
    assert "responder process" not in server.log


def _ask_until_closed(server: VllmServer, statuses: list[int]) -> None:
    """Reads answers on one connection; the server may close it between two of them, but not within one."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with closing(connection), suppress(ConnectionError):
        while True:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
