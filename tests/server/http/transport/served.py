"""Runs a server in the test's process on a real socket, with or without TLS."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from server.http.transport.connection import Serving
from server.http.transport.http_request import Request
from server.http.transport.server import HttpServer
from server.terms.held_bytes import HeldBytes
from server.terms.http_body.response_body import Answer
from server.terms.limits import LimitsConfig
from tests.support.certificates import Certificate

TIMEOUT_S = 60.0
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00"
"""The beginning of a TLS handshake."""


class Served:
    """A server, and the clients that it has."""

    def __init__(self, server: HttpServer, port: int, certificate: Certificate | None) -> None:
        self.server = server
        self.port = port
        self._context = None if certificate is None else certificate.client_context()

    async def connect(self, *, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects a client. With `tls`, the handshake is complete."""
        secured: dict[str, Any] = {"ssl": self._context, "server_hostname": "localhost"} if tls else {}
        return await asyncio.open_connection("127.0.0.1", self.port, **secured)

    async def exchange(self, data: bytes, *, tls: bool) -> bytes:
        """Sends data, and returns the response up to the moment when the server closes the connection.

        Raises:
            ConnectionError: the handshake failed.
        """
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await self.connect(tls=tls)
            writer.write(data)
            try:
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

    async def wait_connections(self, num_connections: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.server.serving.connections) != num_connections:
                await asyncio.sleep(0.01)


async def answer_ok(request: Request) -> None:
    await request.send(Answer(b"ok"))


@asynccontextmanager
async def serve(
    limits: LimitsConfig,
    certificate: Certificate | None = None,
    handle: Callable[[Request], Awaitable[None]] = answer_ok,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Runs a server with further settings."""
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate.certificate, certificate.key)
    held = HeldBytes(limits.max_held_bytes)
    create_tls = None if tls is None else lambda: tls
    server = HttpServer(Serving(handle=handle, limits=limits, held=held, tls=create_tls, **settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve(listener))
        try:
            yield Served(server, port, certificate)
        finally:
            server.stop.set()
            await task
