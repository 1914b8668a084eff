"""What a connection leaves in memory when it has ended, on real sockets.

OpenSSL keeps 60 kB for each, which the collector knows nothing of: it looks when there are many objects, and these are
few. What it would have to find is hundreds of megabytes by then.
"""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # the stubs know the loop alone

from server.limits import LimitsConfig
from server.transport import lingering_transport
from server.transport.connection import BoundedConnection
from server.transport.tls_handshake import TlsHandshake
from tests.certificates import Certificate, make_certificate, needs_openssl
from tests.server.transport.served import HALF_A_HELLO, PATIENT_S, Served, serve

pytestmark = pytest.mark.thorough

NUM_CLIENTS = 10
HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
GET, LAST = HEAD + b"\r\n", HEAD + b"connection: close\r\n\r\n"
HELD = GET.replace(b"/", b"/held", 1)
PATIENT = LimitsConfig(header_timeout_s=600, send_timeout_s=600)
KINDS = (BoundedConnection, TlsHandshake, SSLProtocol, RequestResponseCycle)


class Visit(NamedTuple):
    """What a client says, and how much it hears before it goes."""

    data: bytes
    hears: Callable[[asyncio.StreamReader], Any] | None = None


VISITS = {
    "closed by the server": Visit(LAST, asyncio.StreamReader.read),
    "malformed": Visit(b"nonsense\r\n\r\n", asyncio.StreamReader.read),
    "closed by the client": Visit(GET, asyncio.StreamReader.readline),
    "closed in the middle of a body": Visit(HEAD + b"content-length: 9\r\n\r\nabc", asyncio.StreamReader.readline),
    "closed in the middle of an answer": Visit(HELD, asyncio.StreamReader.readline),
    "closed while requests wait in line": Visit(HELD + GET + GET, asyncio.StreamReader.readline),
    "closed in the middle of headers": Visit(HEAD),
    "silent": Visit(b""),
}


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "server")


@pytest.fixture(autouse=True)
def without_help(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What refers to itself stays where it is, and so does what waits for a client's goodbye."""
    monkeypatch.setattr(lingering_transport, "_LINGER_S", 600)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("how", VISITS)
def test_nothing_of_a_plain_connection_is_left_to_the_collector(how: str) -> None:
    uvloop.run(_visit(None, VISITS[how], tls=False))


@needs_openssl
@pytest.mark.parametrize("how", VISITS)
def test_nothing_of_a_tls_connection_is_left_to_the_collector(certificate: Certificate, how: str) -> None:
    uvloop.run(_visit(certificate, VISITS[how], tls=True))


@needs_openssl
@pytest.mark.parametrize(
    "visit", [Visit(b"\0" * 1000, asyncio.StreamReader.read), Visit(HALF_A_HELLO)], ids=["no tls", "half a hello"]
)
def test_nothing_of_a_failed_handshake_is_left_to_the_collector(certificate: Certificate, visit: Visit) -> None:
    uvloop.run(_visit(certificate, visit, tls=False))


async def _visit(certificate: Certificate | None, visit: Visit, *, tls: bool) -> None:
    async with serve(PATIENT, certificate, _answer) as served:
        former = _connections()  # of other tests' servers, which go on beside this one
        known = set(map(id, former))
        await _come_and_go(served, visit, tls=tls)
        await served.wait_connections(0)
        async with asyncio.timeout(PATIENT_S):
            while any(id(one) not in known for one in _connections()):
                await asyncio.sleep(0.05)


async def _come_and_go(served: Served, visit: Visit, *, tls: bool) -> None:
    clients = [await served.connect(tls=tls) for _ in range(NUM_CLIENTS)]
    for _, writer in clients:
        writer.write(visit.data)
    async with asyncio.timeout(PATIENT_S):
        if visit.hears is None:
            await served.wait_connections(NUM_CLIENTS)
        else:
            await asyncio.gather(*(visit.hears(reader) for reader, _ in clients), return_exceptions=True)
    for _, writer in clients:
        writer.close()


def _connections() -> list[object]:
    return [one for one in gc.get_objects() if issubclass(type(one), KINDS)]  # not `__class__`, which may be code


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    while scope["path"] == "/held" and (await receive())["type"] != "http.disconnect":
        pass
    await send({"type": "http.response.body", "body": b"b"})
