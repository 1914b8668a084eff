"""Bodies, TLS handshakes and shutdown of the HTTP server, on real sockets."""

import asyncio
import logging
import socket
import ssl
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
import uvloop

from server.http.transport.connection import bounded_connections
from server.http.transport.graceful_server import GracefulServer
from server.terms.limits import LimitsConfig
from tests.server.http.transport.served import HALF_A_HELLO, TIMEOUT_S, serve
from tests.support.certificates import Certificate, make_certificate, needs_openssl

POST = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
LONG = bytes(range(256)) * 8192
"""2 MiB: more than a socket sends at once, and more than uvicorn accepts before the request reads it."""


class BodyReader:
    """An application that answers with the number of received bytes, and keeps the pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        has_more = True
        while has_more:
            message = await receive()
            self.pieces.append(message["body"])
            has_more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param(b"content-length: 2097152\r\n\r\n" + LONG, LONG, id="long"),
        pytest.param(b"content-length: 3\r\n\r\nabc", b"abc", id="short"),
        pytest.param(b"content-length: 0\r\n\r\n", b"", id="empty"),
        pytest.param(
            b"transfer-encoding: chunked\r\n\r\n" + b"".join(map(chunk, (b"a", b"bc", LONG, b"d", b""))),
            b"abc" + LONG + b"d",
            id="chunks",
        ),
    ],
)
async def test_a_body_is_complete(framing, body):
    reader = BodyReader()
    async with serve(LimitsConfig(), application=reader) as served:
        assert (await served.exchange(POST + framing, tls=False)).startswith(b"HTTP/1.1 200")
    assert b"".join(reader.pieces) == body


HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
PATIENT = LimitsConfig(header_timeout_s=600)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@needs_openssl
@pytest.mark.parametrize("data", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_a_handshake_has_the_timeout_of_headers(certificate, data):
    async def run() -> None:
        async with serve(LimitsConfig(header_timeout_s=0.3), certificate) as served:
            assert await served.exchange(data, tls=False) == b""
            await served.wait_connections(0)

    uvloop.run(run())


@needs_openssl
def test_headers_after_a_handshake_have_their_own_timeout(certificate):
    """The handshake has the same time-out, so the test retries with a longer one on a busy machine."""

    async def run(limit_s: float) -> list[bytes]:
        async with serve(LimitsConfig(header_timeout_s=limit_s), certificate) as served:
            answers = await asyncio.gather(served.exchange(b"", tls=True), served.exchange(HEAD, tls=True))
            await served.wait_connections(0)
            return answers

    for limit_s in (0.3, 3, 30):
        try:
            nothing, rejection = uvloop.run(run(limit_s))
            break
        except ConnectionError:
            assert limit_s < 30, "a handshake does not take so long"
    assert nothing == b""
    assert rejection.startswith(b"HTTP/1.1 408")


@needs_openssl
@pytest.mark.parametrize("data", [HEAD + b"\r\n", b"\0" * 1000, b"\x16\x03\x01\x00\x04\xff\0\0\0"])
def test_a_connection_that_is_not_tls_is_closed_and_freed(certificate, caplog, data):
    async def run() -> None:
        async with serve(PATIENT, certificate) as served:
            assert b"HTTP" not in await served.exchange(data, tls=False)
            await served.wait_connections(0)

    uvloop.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@needs_openssl
def test_a_request_sent_with_the_end_of_the_handshake_is_answered(certificate):
    async def run() -> None:
        async with serve(PATIENT, certificate) as served:
            answers = await asyncio.gather(
                *(served.exchange(HEAD + b"connection: close\r\n\r\n", tls=True) for _ in range(50))
            )
            assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b"https"}
            await served.wait_connections(0)

    uvloop.run(run())


NUM_CLIENTS = 20


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request arrives in this test")


@needs_openssl
@pytest.mark.parametrize("hello", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_handshakes_of_unaccepted_clients_do_not_delay_the_shutdown(certificate, hello):
    """The server accepts these clients when the port closes.

    If it served them one after the other, each could take its whole time-out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    http: Any = bounded_connections(LimitsConfig(header_timeout_s=600), lambda: context)
    config = uvicorn.Config(
        nothing, http=http, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=600
    )
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(NUM_CLIENTS)]
        for client in clients:
            client.settimeout(TIMEOUT_S)
            client.sendall(hello)

        uvloop.run(_end(GracefulServer(config), listener))
        for client in clients:
            assert not _read(client)


async def _end(server: GracefulServer, listener: socket.socket) -> None:
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.servers = []
    await asyncio.wait_for(server.shutdown([listener]), TIMEOUT_S)
    assert not server.server_state.connections


def _read(client: socket.socket) -> bytes:
    try:
        return client.recv(1)
    except ConnectionError:
        return b""
