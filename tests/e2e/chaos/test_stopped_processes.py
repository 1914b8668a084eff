"""Each process is stopped by SIGSTOP, as by a debugger, a cgroup freezer or a paused machine.

When the process continues, requests continue. After a time-out, requests fail and the process is replaced.
The server's exit never waits for a stopped process. After a pause, a loop runs its timers before it reads
sockets: clients that have sent or read data meanwhile must not be disconnected.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from server.http.transport.http_request import Request
from server.terms.limits import LimitsConfig
from tests.e2e.server_process import ServerProcess, wait_process
from tests.e2e.stop_point import API_READS_TOKENIZER, ENGINE_LOADS, FORKSERVER_IMPORTS, StopPoint
from tests.server.http.transport.served import answer_ok, serve
from tests.support.waiting import wait_until

_GONE_S = 120.0


@pytest.mark.slow
def test_stopped_forkserver_of_a_dead_engine_does_not_keep_the_server(start_server):
    with start_server() as server:
        server.family()
        forkserver = wait_process(server, "forkserver")
        engine = wait_process(server, "engine")
        forkserver.suspend()
        engine.kill()
        assert server.process.wait(_GONE_S) == 1
        assert f"its process {engine.pid} ended, and the forkserver does not answer" in server.log


@pytest.mark.parametrize(
    ("role", "place", "by", "exit_codes"),
    [
        ("responder", API_READS_TOKENIZER, signal.SIGTERM, (0, -signal.SIGTERM)),
        ("forkserver", FORKSERVER_IMPORTS, signal.SIGINT, (130,)),
        ("engine", ENGINE_LOADS, signal.SIGTERM, (0, -signal.SIGTERM)),
    ],
    ids=["responder", "forkserver", "engine"],
)
def test_signal_ends_the_start_although_one_of_its_processes_is_stopped(
    start_tiny_server, tmp_path, role, place, by, exit_codes
):
    """The process is stopped once it has its death pipe, a few milliseconds after its fork."""
    stop_point = StopPoint(tmp_path, *place)
    with start_tiny_server(wait=False, environment=stop_point.environment) as server:
        stopped = stop_point.wait_stopped()
        if role == "responder":
            wait_process(server, "responder").suspend()
            stopped.resume()
        if role == "forkserver":
            wait_until(lambda: server.phase() == "start_engine_process")
        if role == "engine":
            server.wait_logged(": wait for engine")
        assert server.terminate(by) in exit_codes


def test_start_fails_with_its_error_although_the_forkserver_is_stopped(tmp_path, model_path):
    model, hook = tmp_path / "model", tmp_path / "hook"
    model.mkdir()
    hook.mkdir()
    for file in model_path.iterdir():
        (model / file.name).symlink_to(file)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").write_text('{"version": "none"}')
    importing = StopPoint(hook, "import", "torch._C")
    with ServerProcess([str(model)], wait=False, environment=importing.environment) as server:
        importing.wait_stopped()
        server.family()
        assert server.process.wait(_GONE_S) == 3
        assert f"Cause: cannot load the tokenizer in {model}" in server.log
        assert "forkserver" not in server.log


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
