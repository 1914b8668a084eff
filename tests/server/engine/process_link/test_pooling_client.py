"""The engine client with pooling requests and commands; a fake engine answers on the socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest

from base.errors import EngineDeadError, EngineError
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import (
    Abort,
    BlockingChannel,
    Done,
    FromEngine,
    LoadAdapter,
    Pool,
    Step,
    ToEngine,
    UnloadAdapter,
)
from server.types import EngineOutput, EngineStats, PoolingParams, TensorData

PARAMS = PoolingParams(task="embed", dimensions=2)


class FakeEngine:
    """The engine's end of the socket: returns received messages and sends the given outputs."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    async def receive(self) -> ToEngine:
        return self._decoder.decode(await asyncio.to_thread(self._channel.receive))

    def answer(self, *outputs: EngineOutput) -> None:
        self.send(Step(list(outputs), EngineStats()))

    def send(self, message: FromEngine) -> None:
        self._channel.send(msgspec.msgpack.encode(message))

    def close(self) -> None:
        self._channel.close()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[EngineClient, FakeEngine]]:
    ours, theirs = socket.socketpair()
    client, engine = EngineClient(ours), FakeEngine(theirs)
    await client.start()
    try:
        yield client, engine
    finally:
        await client.close()
        with suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        engine.close()
        theirs.close()
        if client._loaded is not None and client._loaded.done():
            client._loaded.exception()


async def test_a_prompt_is_sent_and_its_vector_is_returned():
    async with connected() as (client, engine):
        pooling = asyncio.create_task(client.pool("a", [1, 2], PARAMS, token_type_ids=[0, 1]))
        assert await engine.receive() == Pool("a", [1, 2], [0, 1], PARAMS)
        data = TensorData("float32", (2,), memoryview(b"12345678"))
        engine.answer(EngineOutput(request_id="a", finish_reason="stop", queue_s=0.5, data=data))
        output = await pooling
        assert output.queue_s == 0.5
        assert output.data is not None
        assert (output.data.shape, bytes(output.data.data)) == ((2,), b"12345678")


async def test_cancelling_aborts():
    async with connected() as (client, engine):
        pooling = asyncio.create_task(client.pool("a", [1], PARAMS))
        await engine.receive()
        pooling.cancel()
        assert await engine.receive() == Abort(["a"])
        with pytest.raises(asyncio.CancelledError):
            await pooling


async def test_a_rejection_by_the_engine_raises_an_error():
    async with connected() as (client, engine):
        pooling = asyncio.create_task(client.pool("a", [1], PARAMS))
        await engine.receive()
        engine.answer(EngineOutput(request_id="a", finish_reason="error", error="too long"))
        with pytest.raises(EngineError, match="too long"):
            await pooling


async def test_the_engines_exit_ends_the_wait():
    async with connected() as (client, engine):
        pooling = asyncio.create_task(client.pool("a", [1], PARAMS))
        await engine.receive()
        engine._channel._connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(EngineDeadError):
            await pooling
        with pytest.raises(EngineDeadError):
            await client.pool("b", [1], PARAMS)


async def test_a_commands_result_is_returned():
    async with connected() as (client, engine):
        loading = asyncio.create_task(client.load_adapter(3, "sql", "/adapters/sql"))
        assert await engine.receive() == LoadAdapter(1, 3, "sql", "/adapters/sql")
        engine.send(Done(1, False, "it is broken", is_missing=True))
        assert await loading == Done(1, False, "it is broken", is_missing=True)


async def test_an_adapter_whose_request_is_cancelled_is_unloaded():
    async with connected() as (client, engine):
        loading = asyncio.create_task(client.load_adapter(3, "sql", "/adapters/sql"))
        await engine.receive()
        loading.cancel()
        assert await engine.receive() == UnloadAdapter(2, 3)
        engine.send(Done(1))
        with pytest.raises(asyncio.CancelledError):
            await loading


async def test_commands_fail_when_the_engine_ends():
    async with connected() as (client, engine):
        loading = asyncio.create_task(client.load_adapter(3, "a", "/a"))
        other = asyncio.create_task(client.load_adapter(4, "b", "/b"))
        for _ in range(2):
            await engine.receive()
        client.give_up("it is gone")
        for task in (loading, other):
            with pytest.raises(EngineDeadError, match="it is gone"):
                await task
