"""TLS handshakes and shutdown of the HTTP server, on real sockets."""

import asyncio
import logging
import socket
import ssl
from contextlib import ExitStack, suppress

import pytest
import uvloop

from server.http.transport.connection import Serving
from server.http.transport.http_request import Request
from server.http.transport.server import HttpServer
from server.terms.held_bytes import HeldBytes
from server.terms.limits import LimitsConfig
from tests.server.http.transport.served import HALF_A_HELLO, TIMEOUT_S, serve
from tests.support.certificates import Certificate, make_certificate, needs_openssl

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
            assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b"ok"}
            await served.wait_connections(0)

    uvloop.run(run())


@needs_openssl
def test_a_handshake_counts_as_a_connection(certificate):
    async def run() -> None:
        async with serve(LimitsConfig(max_connections=2, header_timeout_s=600), certificate) as served:
            halves = [await served.connect(tls=False) for _ in range(4)]
            with suppress(ConnectionError):
                assert await halves[0][0].read() == b""
            assert await served.exchange(HEAD + b"connection: close\r\n\r\n", tls=True)
            for _, writer in halves:
                writer.close()

    uvloop.run(run())


NUM_CLIENTS = 20


async def nothing(request: Request) -> None:
    raise AssertionError("no request arrives in this test")


@needs_openssl
@pytest.mark.parametrize("hello", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_handshakes_of_unaccepted_clients_do_not_delay_the_shutdown(certificate, hello):
    """The server accepts these clients when the port closes.

    If it served them one after the other, each could take its whole time-out.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients = [stack.enter_context(socket.create_connection(listener.getsockname())) for _ in range(NUM_CLIENTS)]
        for client in clients:
            client.settimeout(TIMEOUT_S)
            client.sendall(hello)

        uvloop.run(_end(context, listener))
        for client in clients:
            with suppress(ConnectionError):
                assert not client.recv(1)


async def _end(context: ssl.SSLContext, listener: socket.socket) -> None:
    server = HttpServer(Serving(handle=nothing, limits=PATIENT, held=HeldBytes(), tls=lambda: context, delivery_s=600))
    await asyncio.wait_for(server.end(listener), TIMEOUT_S)
    assert not server.serving.connections
