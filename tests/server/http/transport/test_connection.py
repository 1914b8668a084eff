"""A closed connection on a real socket leaves nothing in memory.

OpenSSL holds 60 kB for each connection. Python's garbage collector counts objects, not bytes, so hundreds of
megabytes would accumulate before a collection.
"""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, NamedTuple

import pytest
import uvloop

from server.http.transport import connection
from server.http.transport.connection import Connection
from server.http.transport.http_request import Request
from server.http.transport.tls_handshake import TlsHandshake
from server.terms.http_body.response_body import Answer
from server.terms.limits import LimitsConfig
from tests.server.http.transport.served import HALF_A_HELLO, TIMEOUT_S, Served, serve
from tests.support.certificates import Certificate, make_certificate, needs_openssl

pytestmark = pytest.mark.thorough

NUM_CLIENTS = 10
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
GET, LAST = HEAD + b"\r\n", HEAD + b"connection: close\r\n\r\n"
HELD = GET.replace(b"/", b"/held", 1)
LONG_TIMEOUTS = LimitsConfig(header_timeout_s=600, send_timeout_s=600)
KINDS = {Connection.__name__, TlsHandshake.__name__, "SSLProtocol", Request.__name__}


class ClientCase(NamedTuple):
    """The data that a client sends, and a function that reads before it disconnects."""

    data: bytes
    read: Callable[[asyncio.StreamReader], Any] | None = None


CLIENT_CASES = {
    "closed by the server": ClientCase(LAST, asyncio.StreamReader.read),
    "malformed": ClientCase(b"nonsense\r\n\r\n", asyncio.StreamReader.read),
    "closed by the client": ClientCase(GET, asyncio.StreamReader.readline),
    "closed in the middle of a body": ClientCase(HEAD + b"content-length: 9\r\n\r\nabc", asyncio.StreamReader.readline),
    "closed in the middle of a response": ClientCase(HELD, asyncio.StreamReader.readline),
    "closed while requests wait": ClientCase(HELD + GET + GET, asyncio.StreamReader.readline),
    "closed in the middle of headers": ClientCase(HEAD),
    "silent": ClientCase(b""),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


@pytest.fixture(scope="module", autouse=True)
def without_collector() -> Iterator[None]:
    """Disables the collector, so that reference cycles stay in memory. Freezes all existing objects."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.fixture(autouse=True)
def long_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LINGER_S", 600)


@needs_openssl
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", CLIENT_CASES)
def test_a_connection_is_freed_without_the_collector(certificate, how, tls):
    uvloop.run(_check_freed(certificate if tls else None, CLIENT_CASES[how], tls=tls))


@needs_openssl
@pytest.mark.parametrize(
    "case",
    [ClientCase(b"\0" * 1000, asyncio.StreamReader.read), ClientCase(HALF_A_HELLO)],
    ids=["no tls", "half a hello"],
)
def test_a_failed_handshake_is_freed_without_the_collector(certificate, case):
    uvloop.run(_check_freed(certificate, case, tls=False))


async def _check_freed(certificate: Certificate | None, case: ClientCase, *, tls: bool) -> None:
    async with serve(LONG_TIMEOUTS, certificate, _answer) as served:
        await _connect_and_leave(served, case, tls=tls)
        await served.wait_connections(0)
        async with asyncio.timeout(TIMEOUT_S):
            while _connections():
                await asyncio.sleep(0.05)


async def _connect_and_leave(served: Served, case: ClientCase, *, tls: bool) -> None:
    clients = [await served.connect(tls=tls) for _ in range(NUM_CLIENTS)]
    for _, writer in clients:
        writer.write(case.data)
    async with asyncio.timeout(TIMEOUT_S):
        if case.read is None:
            await served.wait_connections(NUM_CLIENTS)
        else:
            await asyncio.gather(*(case.read(reader) for reader, _ in clients), return_exceptions=True)
    for _, writer in clients:
        writer.close()


def _connections() -> list[object]:
    # type(), not `__class__`, which may be a property.
    return [one for one in gc.get_objects() if type(one).__name__ in KINDS]


async def _answer(request: Request) -> None:
    if request.path == "/held":
        await request.stream(_held(request))
    else:
        await request.send(Answer(b"ab"))


async def _held(request: Request) -> AsyncGenerator[bytes, None]:
    request.cancel_if_gone()
    yield b"a"
    await asyncio.Event().wait()
