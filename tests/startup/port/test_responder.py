"""The responder is a process that answers on the listening socket until the server accepts, also with TLS."""

import os
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import psutil
import pytest

from base.server_settings import TlsConfig
from startup.port import responder as responder_module
from startup.port import responder_process
from startup.port.probe_http import Answer
from startup.port.responder import StartupResponder
from startup.port.responder_process import OpenChannel, ProbeConnection
from startup.port.tls_channel import open_tls
from startup.processes import group_signals
from tests.startup.port.conftest import Answers
from tests.support.certificates import Certificate, make_certificate, needs_openssl
from tests.support.growth import growth
from tests.support.http_client import RawClient, ask
from tests.support.ports import free_port
from tests.support.waiting import is_gone, wait_until


@pytest.fixture(autouse=True)
def longer_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets longer time-outs, because clients and exiting processes may be slow on a busy machine."""
    monkeypatch.setattr(responder_process, "CONNECTION_S", 120.0)
    monkeypatch.setattr(responder_module, "_END_S", 60.0)


def _get(
    address: tuple[str, int], path: str, context: ssl.SSLContext | None = None, body: str | None = None
) -> tuple[int, bytes]:
    """Status and body of the answer. The status is 0 if there is none."""
    answer = ask("http://{}:{}{}".format(*address, path), body, context=context)
    assert answer.headers.get("retry-after") == ("1" if answer.status == 503 else None)
    return answer.status, answer.body


def test_client_accepted_before_the_hand_over_is_answered_after_it(listener, new_process):
    with (
        StartupResponder(listener, Answers()) as responder,
        socket.create_connection(listener.getsockname()) as client,
    ):
        process = new_process()
        port = client.getsockname()[1]  # an answer to another client does not mean that this one is accepted
        wait_until(lambda: any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")))
        responder.hand_over()
        wait_until(lambda: not _is_listening(process, listener.getsockname()[1]))
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def _is_listening(process: psutil.Process, port: int) -> bool:
    """Whether the process listens on this port. Forks also have listeners of other tests' servers.

    A process that is ending does not count. Only root may read its descriptors.
    """
    try:
        connections = process.net_connections("tcp")
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def test_no_client_is_accepted_after_the_hand_over_has_returned(listener, monkeypatch, new_process):
    """Otherwise a client could get "ready" from the HTTP server and then "not ready" from the responder."""
    monkeypatch.setattr(responder_module, "_GIVE_UP_S", 120.0)
    with StartupResponder(listener, Answers()) as responder:
        process = new_process()
        process.suspend()
        handing_over = threading.Thread(target=responder.hand_over)
        handing_over.start()
        handing_over.join(0.3)
        assert handing_over.is_alive()
        process.resume()
        handing_over.join()
        assert not _is_listening(process, listener.getsockname()[1])


@pytest.mark.thorough
def test_responder_whose_queue_is_full_still_hands_over(listener, new_process):
    with StartupResponder(listener, Answers()) as responder:
        process = new_process()
        process.suspend()
        for _ in range(1000):
            responder.update(b"x" * 10_000)
        responder.hand_over()
        process.resume()
        process.wait(timeout=60)


_API_PROCESS = """
import signal, sys
from startup.port.listener import listen
from startup.port.responder import StartupResponder
from tests.startup.port.conftest import Answers
with listen(host='127.0.0.1', port=int(sys.argv[1]), uds=None) as bound, StartupResponder(bound, Answers()):
    print('listening', flush=True)
    signal.pause()
"""


@pytest.fixture
def api_process() -> Iterator[tuple[psutil.Process, tuple[str, int]]]:
    """A process with a responder, and its address. The process is killed at the end."""
    port = free_port()  # not used by another process afterwards, nor as a client port
    command = [sys.executable, "-c", _API_PROCESS, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "listening\n"
        yield psutil.Process(process.pid), ("127.0.0.1", port)
        process.kill()


@pytest.mark.thorough
def test_responder_ends_with_its_parent_even_if_that_is_killed(api_process):
    process, address = api_process
    (responder,) = process.children()
    responder.send_signal(signal.SIGTERM)  # service managers signal the whole group
    assert _get(address, "/livez")[0] == 200
    process.kill()
    wait_until(lambda: is_gone(responder.pid))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_signal_right_after_the_fork_does_not_end_the_responder(listener, monkeypatch):
    """The signal is pending when `ignore` runs, which is the first function in the new process."""
    ignore = group_signals.ignore

    def signal_then_ignore() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ignore()

    monkeypatch.setattr(group_signals, "ignore", signal_then_ignore)
    with StartupResponder(listener, Answers()):
        assert _get(listener.getsockname(), "/livez")[0] == 200


TEXT = "x" * 200_000
BODY = TEXT.encode()


class FailingAnswers(Answers):
    """Fails to answer one path."""

    def answer(self, path: str) -> Answer:
        if path == "/fails":
            raise ValueError("an error of the answers")
        return super().answer(path)


_LINE: Final = b"POST /v1/completions HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [
        pytest.param(_LINE + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", True, id="a length of 5,000 digits"),
        pytest.param(_LINE + b"Content-Length: " + b"0" * 5000 + b"1\r\n\r\n", True, id="zeros before a length"),
        pytest.param(_LINE + b"Content-Length: -1\r\n\r\n", True, id="a negative length"),
        pytest.param(_LINE + "Content-Length: ²\r\n\r\n".encode("latin-1"), True, id="a digit that int() refuses"),
        pytest.param(_LINE + b"a:b\r\n" * 20_000, True, id="a head without an end"),
        pytest.param(b"\xff\0" * 100 + b"\r\n\r\n", True, id="no HTTP"),
        pytest.param(b"GET " + b"/" * 60_000 + b" HTTP/1.1\r\n\r\n", True, id="a path of slashes"),
        pytest.param(b"GET /fails HTTP/1.1\r\n\r\n", False, id="an error of the answers"),
    ],
)
def test_an_error_of_one_connection_costs_that_connection_only(listener, new_process, sent, is_answered):
    with StartupResponder(listener, FailingAnswers(BODY)):
        process = new_process()
        with RawClient(listener.getsockname()) as client, suppress(ConnectionError):
            assert client.send(sent).read_to_end().startswith(b"HTTP/1.1 503") is is_answered
        assert _get(listener.getsockname(), "/livez") == (200, b"")
        assert process.is_running()


@pytest.mark.parametrize("piece_bytes", [1, 3, 4, 1000])
@pytest.mark.parametrize("body", [b"", b"b" * 50], ids=["no body", "a body"])
def test_a_request_in_pieces_is_complete_with_its_last_byte(piece_bytes, body):
    request = _LINE + b"Host: x\r\nCONTENT-length :%d \r\n\r\n" % len(body) + body
    ours, theirs = socket.socketpair()
    with theirs, selectors.DefaultSelector() as selector:
        connection = ProbeConnection(ours, selector, Answers(BODY).answer)
        pieces = [request[begin : begin + piece_bytes] for begin in range(0, len(request), piece_bytes)]
        found = [connection._has_whole_request(piece) for piece in pieces]
        connection.close()
    assert found == [False] * (len(pieces) - 1) + [True]


@pytest.mark.alone
def test_the_cost_of_a_head_is_linear_in_its_bytes(monkeypatch):
    monkeypatch.setattr(responder_process, "_MAX_HEAD_BYTES", 1 << 30)
    ours, theirs = socket.socketpair()
    with theirs, selectors.DefaultSelector() as selector:

        def prepare(size: int) -> Callable[[], object]:
            def read() -> None:
                selector.get_map() and selector.unregister(ours)
                connection = ProbeConnection(ours, selector, Answers(BODY).answer)
                for _ in range(size):
                    connection._has_whole_request(b"a:b\r\n")

            return read

        found = growth(prepare)
        ours.close()
    assert found is None, found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


def _tls(pair: Certificate, **settings: int | str) -> Callable[[], OpenChannel]:
    config = TlsConfig(ssl_certfile=str(pair.certificate), ssl_keyfile=str(pair.key), **settings)
    return lambda: open_tls(config)


@needs_openssl
def test_each_path_is_answered_over_tls(listener, pair):
    with StartupResponder(listener, Answers(BODY), _tls(pair)):
        address = listener.getsockname()
        assert _get(address, "/livez", pair.client_context()) == (200, b"")
        assert _get(address, "/health", pair.client_context()) == (503, BODY)
        assert _get(address, "/v1/completions", pair.client_context(), TEXT) == (503, BODY)


@needs_openssl
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x00", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 70_000])
def test_a_client_without_tls_delays_no_other_and_gets_no_http(listener, pair, sent):
    with (
        StartupResponder(listener, Answers(BODY), _tls(pair)),
        socket.create_connection(listener.getsockname(), timeout=60) as client,
    ):
        with suppress(OSError):  # the responder may close it before everything is sent
            client.sendall(sent)
        assert _get(listener.getsockname(), "/livez", pair.client_context())[0] == 200
        received = b""
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            received = client.recv(4096)
        assert b"HTTP" not in received


@needs_openssl
def test_clients_without_a_certificate_are_rejected_if_one_is_required(listener, pair):
    with StartupResponder(listener, Answers(BODY), _tls(pair, ssl_cert_reqs=2, ssl_ca_certs=str(pair.certificate))):
        assert _get(listener.getsockname(), "/livez", pair.client_context(client=pair))[0] == 200
        assert _get(listener.getsockname(), "/livez", pair.client_context())[0] == 0


@needs_openssl
def test_unusable_certificate_files_end_the_responder_and_not_the_start(listener, tmp_path, capfd):
    nothing = Certificate(tmp_path / "none", tmp_path / "none")
    with StartupResponder(listener, Answers(BODY), _tls(nothing)) as responder:
        responder.update(b"{}")
    assert "Traceback" not in capfd.readouterr().err
