"""The port answers from the first moment on. vLLM takes it over. The responder answers probes beside vLLM."""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.startup.vllm.fake_start import CHECKED, FakeStart, environment
from tests.support.folders import short_folder
from tests.support.http_client import Answer, RawClient, RepeatingClients
from tests.support.ports import free_port
from tests.support.waiting import is_gone, stopped, wait_until

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("frontend", ["one-server", "two-servers"])
@pytest.mark.parametrize("listens", ["at-once", "when-ready"])
def test_every_connection_during_a_start_is_answered_or_refused(listens, frontend, folder):
    """With `--listen-when-ready`, all are refused until vLLM serves, and no other program gets the port."""
    gate, port = folder / "gate", free_port()
    arguments = ("--gate", str(gate), *(("--api-server-count", "2") if frontend == "two-servers" else ()))
    arguments += ("--listen-when-ready",) if listens == "when-ready" else ()
    starting = 503 if listens == "at-once" else 0
    with FakeStart(folder, *arguments, port=port) as start, RepeatingClients(port, *["/health"] * 8) as clients:
        clients.wait_for_more(200, starting)
        start.wait_logged("EngineCore prints a line")
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        gate.touch()
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        clients.wait_for_more(200, 200)
        start.wait_logged("ready after")
        wait_until(lambda: len(start.responders()) == (frontend == "one-server"))  # answers /health while vLLM serves
    assert not clients.lost
    for statuses in clients.statuses:
        assert statuses == sorted(statuses, key=(0, starting, 200).index)


@pytest.mark.smoke
def test_probes_get_the_phase_until_vllm_serves(folder):
    gate = folder / "gate"
    with FakeStart(folder, "some/model", "--gate", str(gate)) as start:
        start.wait_status(503)
        start.wait_logged("EngineCore prints a line")
        answer = json.loads(start.ask("/v1/models")[1])
        assert answer["phase"]
        assert answer["status"] == "starting"
        assert answer["error"]["code"] == 503
        assert start.ask("/livez")[0] == 200
        gate.touch()
        start.wait_ready()
        assert start.ask("/nothing")[0] == 404  # vLLM's own routes, and a few of ours, are left


def test_unix_socket_is_handed_over(folder, model):
    gate = folder / "gate"
    path = folder / "socket"

    def status() -> int | None:
        with suppress(OSError), RawClient(str(path)) as client:
            return client.get("/health").read().status
        return None

    arguments = (model, "--uds", str(path), "--gate", str(gate))
    with FakeStart(folder, *arguments, host=None, env=environment(folder, **CHECKED)) as start:
        start.wait(lambda: status() == 503)
        start.wait_logged("EngineCore prints a line")
        gate.touch()
        start.wait(lambda: status() == 200)
        start.wait_logged("ready after")
        assert status() == 200


def test_a_headless_start_opens_no_port_and_has_no_deadline(folder, model):
    arguments = (model, "--headless", "--startup-timeout", "0.001")
    with FakeStart(folder, *arguments, env=environment(folder, **CHECKED)) as start:
        start.wait_logged("headless engine")
        assert [c for c in start.root.net_connections("tcp") if c.status == "LISTEN"] == []
        engine = start.named("VLLM::EngineCor")
        assert start.kind_of(engine.pid) == "forkserver"
        assert start.terminate() == 0


def test_several_api_servers_share_the_port_and_the_forkserver(folder, model):
    with FakeStart(folder, model, "--api-server-count", "2", env=environment(folder, **CHECKED)) as start:
        start.wait_ready()
        wait_until(lambda: start.responders() == [])
        (forkserver,) = start.forkservers()
        one = start.state()["server"]
        with stopped(one["pid"]):
            other = start.state()["server"]
        assert {one["name"], other["name"]} == {"ApiServer_0", "ApiServer_1"}
        for server in (one, other):
            assert server["ppid"] == forkserver.pid
            assert server["parent"] == start.process.pid
            assert server["imported_in"]["vllm.entrypoints.launchers.launcher"] == forkserver.pid
        assert start.terminate() == 0


_PROBE = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
_LAST_PROBE = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def start(folder: Path) -> Iterator[FakeStart]:
    """A start whose responder answers probes."""
    with FakeStart(folder) as start:
        yield start.wait_ready()


@pytest.fixture(scope="module")
def serving() -> Iterator[FakeStart]:
    """A start whose responder answers probes, for all tests that do not change its processes."""
    with short_folder() as folder, FakeStart(folder) as start:
        yield start.wait_ready()


@pytest.fixture(scope="module")
def plain() -> Iterator[FakeStart]:
    """A start without a responder."""
    with short_folder() as folder, FakeStart(folder, env=environment(folder, VCLI_PROBE_PROCESS="0")) as start:
        yield start.wait_ready()


def _status(client: RawClient, request: bytes) -> int:
    return client.send(request).read_head().status


def _undated(head: bytes) -> bytes:
    return re.sub(rb"date: [^\r]*", b"date: D", head)


def _post(prompt: str) -> bytes:
    body = json.dumps({"prompt": prompt}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _ask_held(start: FakeStart, request: bytes) -> bytes:
    """Sends a request while vLLM's event loop is held. Returns the answer until the connection's end.

    Tries again if this process was so slow that the loop was held for two seconds, or that the responder
    passed the connection on before the request.
    """
    answers: list[bytes] = []

    def is_answered() -> bool:
        with stopped(start.process.pid), RawClient(start.port, timeout_s=1) as client, suppress(TimeoutError):
            answers.append(client.send(request).read_to_end())
        return bool(answers) and b" 503 " not in answers[-1]

    wait_until(is_answered)
    return answers[-1]


@pytest.mark.smoke
def test_probes_are_answered_while_the_event_loop_is_held(serving):
    for path in (b"/health", b"/readyz", b"/livez"):
        assert _ask_held(serving, _PROBE.replace(b"/health", path)).startswith(b"HTTP/1.1 200 ")


def _probe_held(start: FakeStart, path: str = "/health") -> Answer:
    """Sends probes while the event loop is held, until one is answered. vLLM gets those of a slow test."""
    while not (answer := start.ask(path, timeout_s=1)).status:
        pass
    return answer


def test_an_event_loop_held_for_two_seconds_is_503_until_it_runs_again(serving):
    with stopped(serving.process.pid):
        wait_until(lambda: _probe_held(serving).status == 503)
        wait_until(lambda: _probe_held(serving, "/readyz").status == 503)
        assert _probe_held(serving, "/livez").status == 200
        wait_until(lambda: b"has not run for" in _probe_held(serving).body)
    wait_until(lambda: _probe_held(serving).status == 200)


@pytest.mark.parametrize(
    "request_bytes", [_PROBE, _LAST_PROBE, b"GET /health HTTP/1.0\r\n\r\n"], ids=["keep-alive", "close", "http-1.0"]
)
def test_answers_have_the_bytes_of_uvicorns_own_to_a_last_request(request_bytes, serving, plain):
    with RawClient(plain.port) as client:
        expected = client.send(_LAST_PROBE).read_to_end()
    answer = _ask_held(serving, request_bytes)
    assert _undated(answer) == _undated(expected)
    assert b"date: " in answer


def test_a_burst_that_the_event_loop_has_not_received_is_not_lost(start):
    """Half of the clients have sent nothing. The responder is killed when it has passed on all of them."""
    (responder,) = start.responders()
    with ExitStack() as stack:
        with stopped(start.process.pid):
            burst = [stack.enter_context(RawClient(start.port)) for _ in range(300)]  # the kernel keeps 550 messages
            sent = [(client, number % 2 == 0) for number, client in enumerate(burst)]
            for client in burst[::2]:
                client.send(_post("A text"))
            wait_until(lambda: {each.status for each in responder.net_connections("tcp")} == {psutil.CONN_LISTEN})
            responder.kill()
        assert all(_is_served(client, b"" if has_sent else _post("A text")) for client, has_sent in sent)


def _is_served(client: RawClient, request: bytes) -> bool:
    try:
        return _status(client, request) == 200
    except ConnectionError:
        return False


def test_every_probe_is_in_the_access_log(serving):
    with RawClient(serving.port) as client:
        address = "{}:{}".format(*client.socket.getsockname())
        assert _status(client, _PROBE) == 200
    wait_until(lambda: serving.log.count(f'{address} - "GET /health HTTP/1.1" 200') == 1)


_KEPT_ALIVE = b"GET %s HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
"""A request with a header for which the responder passes the request on to vLLM."""


@pytest.mark.parametrize("arguments", [(), ("--api-server-count", "2")], ids=["one", "two"])
def test_vllms_process_answers_livez_and_readyz_where_the_responder_does_not(arguments, folder):
    with FakeStart(folder, *arguments) as start:
        start.wait_ready()
        with RawClient(start.port) as client:
            for path in (b"/livez", b"/readyz", b"/livez?verbose", b"/health"):
                assert _status(client, _KEPT_ALIVE % path) == 200, path
            # Only the launcher has the report.
            assert _status(client, _KEPT_ALIVE % b"/startupz") == (404 if arguments else 200)


_PATHS = ("/health", "/nothing") * 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_vllm_accepts_itself_within_a_second_without_the_responder(number, start):
    (responder,) = start.responders()
    with RawClient(start.port) as passed_on, RepeatingClients(start.port, *_PATHS) as clients:
        clients.wait_for_more(300, 200, 404)
        responder.send_signal(number)
        clients.wait_for_more(300, 200, 404)
        assert _status(passed_on, _PROBE) == 200
        wait_until(lambda: is_gone(responder.pid))
        clients.wait_for_more(300, 200, 404)
    assert len(clients.lost) <= len(_PATHS)  # those that had been accepted and had sent nothing
    assert {status for statuses in clients.statuses for status in statuses} == {200, 404}
    assert start.lines_with("vLLM answers /health itself")
    assert start.terminate() == 0, start.log


def test_no_connection_is_reset_before_vllm_stops_accepting(start):
    with RepeatingClients(start.port, *_PATHS) as clients:
        clients.wait_for_more(300, 200, 404)
        start.family()
        start.process.send_signal(signal.SIGTERM)
        num_lost = 0
        while True:
            so_far = len(clients.lost)
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", start.port)):  # what is lost since then may be lost
                    break
            num_lost = so_far
        start.process.wait(60)
    assert num_lost == 0
    assert start.process.returncode == 0
    assert not start.lines_with("responder process")


_KEY_OF_A_USER = """
class KeyMiddleware:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (b"x-key", b"sesame") not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, send)
"""


def test_a_middleware_sees_every_probe(folder):
    (folder / "keys.py").write_text(_KEY_OF_A_USER)
    env = environment(folder)
    env["PYTHONPATH"] += f":{folder}"
    with FakeStart(folder, "--middleware", "keys.KeyMiddleware", env=env) as start:
        start.wait_status(401)
        with RawClient(start.port) as client:
            for _ in range(30):  # three heartbeats
                assert _status(client, b"GET /health HTTP/1.1\r\nHost: a\r\nX-Key: sesame\r\n\r\n") == 200
                assert _status(client, _PROBE) == 401
                time.sleep(0.01)
        wait_until(lambda: not start.responders())
