"""With real vLLM, the responder answers `/health` while the event loop is held, and loses no connection."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.http_answer import ask
from tests.vllm_engine.conftest import StartVllm
from tests.vllm_engine.vllm_server import VllmServer, title_of
from tests.waiting import is_gone, wait_until

_BLOCKING = '''
import time

class BlockingMiddleware:
    """Holds the event loop for five seconds at each request of /block."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/block":
            time.sleep(5)
        await self.app(scope, receive, send)
'''
_FAST_S = 1.5
"""Far below the five seconds for which the loop is held."""


@pytest.fixture(scope="module")
def blocking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the middleware."""
    folder = tmp_path_factory.mktemp("blocking")
    (folder / "blocking.py").write_text(_BLOCKING)
    return folder


@pytest.fixture
def server(start_vllm: StartVllm, blocking: Path) -> Iterator[VllmServer]:
    words = ("--middleware", "blocking.BlockingMiddleware")
    with start_vllm("ours", *words, environment={"PYTHONPATH": str(blocking)}) as server:
        server.wait_ready()
        wait_until(lambda: _responder(server).is_running())
        time.sleep(1)  # the first heartbeats have no answer yet
        yield server


def _responder(server: VllmServer) -> psutil.Process:
    words = server.main_process().cmdline()
    (responder,) = (p for p in server.main_process().children() if p.cmdline() == words)
    return responder


def _probe(server: VllmServer) -> tuple[int, float]:
    """Status and seconds."""
    begin_s = time.perf_counter()
    status = ask(f"{server.url}/health", timeout_s=60).status
    return status, time.perf_counter() - begin_s


def test_a_blocked_event_loop_is_503_within_two_seconds_and_200_afterwards(server: VllmServer) -> None:
    blocked = threading.Thread(target=server.status, args=["/block"])
    blocked.start()
    begin_s = time.perf_counter()
    seen: dict[int, float] = {}
    try:
        while blocked.is_alive():
            status, took_s = _probe(server)
            assert took_s < _FAST_S
            seen.setdefault(status, time.perf_counter() - begin_s)
    finally:
        blocked.join()
    assert seen[200] < 1
    assert 1.9 < seen[503] < 3
    wait_until(lambda: _probe(server)[0] == 200)


def test_a_dead_engine_is_503_at_once(start_vllm: StartVllm) -> None:
    with start_vllm("ours", environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        server.wait_ready()
        (engine,) = server.titled("EngineCore")
        engine.kill()
        begin_s = time.perf_counter()
        wait_until(lambda: _probe(server)[0] == 503)
        assert time.perf_counter() - begin_s < 5
        assert server.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_vllm_goes_on_without_the_responder(server: VllmServer, expected_text: str, number: int) -> None:
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
    assert _probe(server)[0] == 200
    assert "vLLM answers /health itself" in server.log
    assert server.end_with(signal.SIGTERM) == 0


def _stream(server: VllmServer) -> None:
    events = server.stream("/v1/completions", prompt=VllmServer.PROMPT, max_tokens=64, ignore_eos=True)
    assert events


def test_answers_equal_those_of_plain_vllm(start_vllm: StartVllm) -> None:
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


def test_no_answer_is_lost_at_a_shutdown(server: VllmServer) -> None:
    family = [title_of(process) for process in server.family()]
    assert len(family) > 2
    assert server.end_with(signal.SIGTERM) == 0
    assert "responder process" not in server.log
