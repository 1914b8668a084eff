"""Handshakes that come to nothing, on real sockets."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from server.limits import LimitsConfig
from server.transport.connection import bounded_connections
from server.transport.polite_server import PoliteServer
from tests.certificates import Certificate, make_certificate, needs_openssl

pytestmark = needs_openssl

HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
HASTY = LimitsConfig(header_timeout_s=0.3)
_PATIENT_S = 30.0


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "server")


class Served:
    """A server of this process, and clients of it."""

    def __init__(self, server: PoliteServer, port: int, certificate: Certificate) -> None:
        self._server = server
        self._port = port
        self._context = certificate.client_context()

    async def exchange(self, data: bytes, *, tls: bool) -> bytes:
        """All that the server says until it closes the connection; the client does not."""
        secured: dict[str, Any] = {"ssl": self._context, "server_hostname": "localhost"} if tls else {}
        async with asyncio.timeout(_PATIENT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, **secured)
            writer.write(data)
            try:
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

    async def wait_empty(self) -> None:
        """Until the server has forgotten all connections."""
        async with asyncio.timeout(_PATIENT_S):
            while self._server.server_state.connections:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serve(certificate: Certificate, limits: LimitsConfig) -> AsyncIterator[Served]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    http: Any = bounded_connections(limits, lambda: context)
    server = PoliteServer(uvicorn.Config(_answer, http=http, log_config=None, ws="none", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve([listener]))
        yield Served(server, port, certificate)
        server.should_exit = True
        await task


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


def test_a_handshake_and_then_headers_have_their_time(certificate: Certificate) -> None:
    async def run() -> None:
        async with serve(certificate, HASTY) as served:
            assert await served.exchange(b"", tls=False) == b""
            assert await served.exchange(HALF_A_HELLO, tls=False) == b""
            assert await served.exchange(b"", tls=True) == b""
            assert (await served.exchange(HEAD, tls=True)).startswith(b"HTTP/1.1 408")
            await served.wait_empty()

    uvloop.run(run())


@pytest.mark.parametrize("data", [HEAD + b"\r\n", b"\0" * 1000, b"\x16\x03\x01\x00\x04\xff\0\0\0"])
def test_what_is_no_tls_is_closed_and_forgotten(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    async def run() -> None:
        async with serve(certificate, LimitsConfig(header_timeout_s=600)) as served:
            assert b"HTTP" not in await served.exchange(data, tls=False)
            await served.wait_empty()

    uvloop.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(certificate: Certificate) -> None:
    async def run() -> None:
        async with serve(certificate, LimitsConfig()) as served:
            answers = await asyncio.gather(
                *(served.exchange(HEAD + b"connection: close\r\n\r\n", tls=True) for _ in range(50))
            )
            assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b"https"}
            await served.wait_empty()

    uvloop.run(run())
