"""Shutdown of the HTTP server, on real sockets."""

import asyncio
import socket
import ssl
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
import uvloop

from server.limits import LimitsConfig
from server.transport.connection import bounded_connections
from server.transport.graceful_server import GracefulServer
from tests.certificates import make_certificate, needs_openssl
from tests.server.transport.served import HALF_A_HELLO, TIMEOUT_S

NUM_CLIENTS = 20


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request arrives in this test")


@needs_openssl
@pytest.mark.parametrize("hello", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_handshakes_of_unaccepted_clients_do_not_delay_the_shutdown(tmp_path, hello):
    """They are accepted when the port closes.

    If served one after the other, each could take its whole timeout.
    """
    certificate = make_certificate(tmp_path, "server")
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
