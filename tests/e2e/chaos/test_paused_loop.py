"""A process that is stopped in the middle of a callback finds timers due before it has looked at its sockets again.

The loop then serves the timers first, and what clients have sent meanwhile would be cut off as never sent.
"""

import asyncio
import os
import socket
import time

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from server.limits import LimitsConfig
from server.transport.connection import bounded_connections
from server.transport.polite_server import PoliteServer

_TIMEOUT_S = 1
_PAUSE_S = 2.0
_ANSWER_S = 60.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


async def _receive(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 16), _ANSWER_S)


async def _ask_in_a_pause(*, is_kept: bool) -> bytes:
    limits = LimitsConfig(header_timeout_s=_TIMEOUT_S)
    config = uvicorn.Config(
        _answer,
        loop="none",
        http=bounded_connections(limits),
        lifespan="off",
        timeout_keep_alive=_TIMEOUT_S,
        log_config=None,
        access_log=False,
    )
    server, loop = PoliteServer(config), asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, address)
            if is_kept:
                await loop.sock_sendall(client, _REQUEST)
                assert await _receive(client)
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
            answer = await _pause_and_ask(client)
            server.should_exit = True
            await serving
    return answer


async def _pause_and_ask(client: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    over = loop.create_future()

    def pause() -> None:
        loop.remove_reader(reading)
        client.send(_REQUEST)
        time.sleep(_PAUSE_S)
        over.set_result(None)

    try:
        loop.add_reader(reading, pause)
        os.write(writing, b"x")
        await over
        return await _receive(client)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("is_kept", [False, True], ids=["new connection", "kept connection"])
def test_what_came_in_a_pause_is_read_before_anybody_is_called_late(is_kept: bool) -> None:
    assert uvloop.run(_ask_in_a_pause(is_kept=is_kept)).startswith(b"HTTP/1.1 200")
