"""A process is stopped within a callback. When it continues, timers are due before sockets are polled.

The event loop runs timers first. Clients that have sent or read data during the pause must not be
disconnected.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from server.http.transport.request import Request
from server.terms.limits import LimitsConfig
from tests.server.http.transport.served import answer_ok, serve

_TIMEOUT_S = 1
_PAUSE_S = 2.0
_ANSWER_S = 60.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNK = bytes(1 << 16)
_NUM_CHUNKS = 256
"""More chunks than the kernel buffers for a client that does not read."""


async def _receive(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 16), _ANSWER_S)


async def _answer_with_a_long_body(request: Request) -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(_NUM_CHUNKS):
            yield _CHUNK

    await request.stream(chunks())


@asynccontextmanager
async def _serving(
    handle: Callable[[Request], Awaitable[None]] = answer_ok,
) -> AsyncIterator[tuple[Any, socket.socket, float]]:
    """A server on this loop. Yields its connections, a connected client, and the time before it connected."""
    limits = LimitsConfig(header_timeout_s=_TIMEOUT_S, send_timeout_s=_TIMEOUT_S)
    async with serve(limits, None, handle, keep_alive_s=_TIMEOUT_S) as served:
        with socket.socket() as client:
            client.setblocking(False)
            begin_s = time.monotonic()
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", served.port))
            yield served.server.serving.connections, client, begin_s


async def _send_in_a_pause(*, is_kept: bool) -> bytes | None:
    async with _serving() as (connections, client, begin_s):
        if is_kept:
            await asyncio.get_running_loop().sock_sendall(client, _REQUEST)
            assert await _receive(client)
        has_paused = await _pause(begin_s, lambda: bool(connections), lambda: client.send(_REQUEST))
        return await _receive(client) if has_paused else None


async def _read_in_a_pause() -> int | None:
    """The number of bytes of the body that were received. None if there was no pause."""
    async with _serving(_answer_with_a_long_body) as (connections, client, begin_s):
        await asyncio.get_running_loop().sock_sendall(client, _REQUEST.replace(b"1.1", b"1.0"))  # without chunks
        received = bytearray()

        def read() -> None:
            with suppress(BlockingIOError):
                while data := client.recv(1 << 20):
                    received.extend(data)

        if not await _pause(begin_s, lambda: any(not each.may_write.is_set() for each in connections), read):
            return None
        with suppress(ConnectionError):
            while len(received) < _NUM_CHUNKS * len(_CHUNK) and (data := await _receive(client)):
                received += data
        return len(received.partition(b"\r\n\r\n")[2])


async def _pause(begin_s: float, is_ready: Callable[[], bool], act: Callable[[], object]) -> bool:
    """Waits for `is_ready`, then calls `act` within a callback and blocks the loop there.

    Returns False if there was no pause, because the time-out since `begin_s` may be over on a busy machine.
    """
    while not is_ready():
        if time.monotonic() - begin_s >= _TIMEOUT_S:
            return False
        await asyncio.sleep(0.01)
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    over: asyncio.Future[bool] = loop.create_future()

    def pause() -> None:
        loop.remove_reader(reading)
        is_in_time = time.monotonic() - begin_s < _TIMEOUT_S
        if is_in_time:
            act()
            time.sleep(_PAUSE_S)
        over.set_result(is_in_time)

    try:
        loop.add_reader(reading, pause)
        os.write(writing, b"x")
        return await over
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("is_kept", [False, True], ids=["new connection", "kept connection"])
def test_request_that_arrived_in_a_pause_is_read_before_its_timeout_counts(is_kept):
    while (answer := uvloop.run(_send_in_a_pause(is_kept=is_kept))) is None:
        pass  # there was no pause
    assert answer.startswith(b"HTTP/1.1 200")


def test_client_that_read_in_a_pause_is_not_disconnected():
    while (num_bytes := uvloop.run(_read_in_a_pause())) is None:
        pass  # there was no pause
    assert num_bytes == _NUM_CHUNKS * len(_CHUNK)
