"""Connections of the router's clients, which send raw HTTP."""

import asyncio
from typing import Any

import pytest

from server.terms.limits import LimitsConfig
from tests.router.http.small_router import eventually, post
from tests.router.http.test_proxy import CHAT, body_of, echo

GET = b"GET /health HTTP/1.1\r\nHost: h\r\n"


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", ""),
        ("1.1", "Host: h\r\nHost: g\r\n"),
        ("1.1", "Host: h\r\nContent-Type: a\r\nContent-Type: b\r\n"),
        ("1.0", "Transfer-Encoding: chunked\r\n"),
        ("2.0", "Host: h\r\n"),
    ],
)
async def test_a_request_needs_one_host_one_type_and_http_1(router, version, headers):
    await router.serve("m", "n")
    reader, _ = await router.connect(f"POST /health HTTP/{version}\r\n{headers}\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_a_request_and_its_answer_may_take_longer_than_a_head(router):
    async def slowly(request: Any) -> Any:
        await asyncio.sleep(0.5)
        return await echo(request)

    await router.serve("m", running=slowly, limits=LimitsConfig(header_timeout_s=0.2))
    reader, writer = await router.connect()
    for _ in range(2):
        writer.write(post(CHAT, body_of()))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")


async def test_an_idle_connection_is_closed(router):
    await router.serve("m", keep_alive_s=0.2)
    reader, _ = await router.connect(GET + b"\r\n")
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    await reader.read()


async def test_requests_that_are_being_answered_keep_their_connections(router):
    """Requests on further connections get 503, except for probes."""
    await router.serve("m", limits=LimitsConfig(max_connections=1))
    reader, _ = await router.connect(post(CHAT, body_of()))
    await eventually(lambda: router.pool.num_waiting == 1)
    refused, _ = await router.connect(post(CHAT, body_of()))
    assert (await refused.read()).startswith(b"HTTP/1.1 503 ")
    probing, probe = await router.connect()
    probe.write(GET + b"\r\n")
    assert b" 200 " in await probing.readuntil(b"\r\n\r\n")
    await router.start_model("m", echo)
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")


async def test_headers_that_are_not_utf_8_arrive(router):
    await router.serve("m", running=echo)
    reader, _ = await router.connect(post(CHAT, body_of(), "X-Name: caf\\").replace(b"\\", b"\xe9"))
    await reader.readuntil(b"\r\n\r\n")
    assert b'["x-name", "caf\\u00e9"]' in await reader.readuntil(b"]]")
