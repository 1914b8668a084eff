"""The responder uses TLS if the server does."""

import http.client
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from base.server_settings import TlsConfig
from startup.probes.responder import StartupResponder
from startup.probes.responder_process import OpenChannel
from startup.probes.tls_channel import open_tls
from tests.certificates import Certificate, make_certificate, needs_openssl
from tests.startup.probes.answers import Answers

pytestmark = [needs_openssl, pytest.mark.usefixtures("longer_timeouts")]

BODY = b"x" * 200_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


def _tls(pair: Certificate, **settings: int | str) -> Callable[[], OpenChannel]:
    config = TlsConfig(ssl_certfile=str(pair.certificate), ssl_keyfile=str(pair.key), **settings)
    return lambda: open_tls(config)


def _get(listener: socket.socket, path: str, context: ssl.SSLContext, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(*listener.getsockname(), timeout=60, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_each_path_is_answered_over_tls(listener, pair):
    with StartupResponder(listener, Answers(BODY), _tls(pair)):
        assert _get(listener, "/livez", pair.client_context()) == (200, b"")
        assert _get(listener, "/health", pair.client_context()) == (503, BODY)
        assert _get(listener, "/v1/completions", pair.client_context(), BODY) == (503, BODY)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x00", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 70_000])
def test_a_client_without_tls_delays_no_other_and_gets_no_http(listener, pair, sent):
    with (
        StartupResponder(listener, Answers(BODY), _tls(pair)),
        socket.create_connection(listener.getsockname(), timeout=60) as client,
    ):
        with suppress(OSError):  # the responder may close it before everything is sent
            client.sendall(sent)
        assert _get(listener, "/livez", pair.client_context())[0] == 200
        received = b""
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            received = client.recv(4096)
        assert b"HTTP" not in received


def test_clients_without_a_certificate_are_rejected_if_one_is_required(listener, pair):
    with StartupResponder(listener, Answers(BODY), _tls(pair, ssl_cert_reqs=2, ssl_ca_certs=str(pair.certificate))):
        assert _get(listener, "/livez", pair.client_context(client=pair))[0] == 200
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            _get(listener, "/livez", pair.client_context())


def test_accepted_connections_are_answered_after_the_hand_over(listener, pair):
    with StartupResponder(listener, Answers(BODY), _tls(pair)) as responder:
        plain = socket.create_connection(listener.getsockname(), timeout=60)
        with pair.client_context().wrap_socket(plain, server_hostname="localhost") as client:
            responder.hand_over()
            client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_unusable_certificate_files_end_the_responder_and_not_the_start(listener, tmp_path, capfd):
    nothing = Certificate(tmp_path / "none", tmp_path / "none")
    with StartupResponder(listener, Answers(BODY), _tls(nothing)) as responder:
        responder.update(b"{}")
    assert "Traceback" not in capfd.readouterr().err
