"""Handshakes that fail or time out, on real sockets."""

import asyncio
import logging
from pathlib import Path

import pytest
import uvloop

from server.limits import LimitsConfig
from tests.certificates import Certificate, make_certificate, needs_openssl
from tests.server.transport.served import HALF_A_HELLO, serve

pytestmark = needs_openssl

HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n"
PATIENT = LimitsConfig(header_timeout_s=600)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "server")


@pytest.mark.parametrize("data", [b"", HALF_A_HELLO], ids=["silent", "half a hello"])
def test_a_handshake_has_the_timeout_of_headers(certificate, data):
    async def run() -> None:
        async with serve(LimitsConfig(header_timeout_s=0.3), certificate) as served:
            assert await served.exchange(data, tls=False) == b""
            await served.wait_connections(0)

    uvloop.run(run())


def test_headers_after_a_handshake_have_their_own_timeout(certificate):
    """The handshake has the same limit, so the test retries with a longer one on a busy machine."""

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


@pytest.mark.parametrize("data", [HEAD + b"\r\n", b"\0" * 1000, b"\x16\x03\x01\x00\x04\xff\0\0\0"])
def test_a_connection_that_is_not_tls_is_closed_and_freed(certificate, caplog, data):
    async def run() -> None:
        async with serve(PATIENT, certificate) as served:
            assert b"HTTP" not in await served.exchange(data, tls=False)
            await served.wait_connections(0)

    uvloop.run(run())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_request_sent_with_the_end_of_the_handshake_is_answered(certificate):
    async def run() -> None:
        async with serve(PATIENT, certificate) as served:
            answers = await asyncio.gather(
                *(served.exchange(HEAD + b"connection: close\r\n\r\n", tls=True) for _ in range(50))
            )
            assert {answer.partition(b"\r\n\r\n")[2] for answer in answers} == {b"https"}
            await served.wait_connections(0)

    uvloop.run(run())
