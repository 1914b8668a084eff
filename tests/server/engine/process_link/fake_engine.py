"""The engine's end of the socket, and a client that is connected to it."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from server.engine.process_link.channel import BlockingChannel, ChannelClosedError
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import DropUpload, FromEngine, Generate, Piece, Step, ToEngine
from server.engine.process_link.uploads import Uploads
from server.types import EngineOutput, EngineStats


class FakeEngine:
    """Answers every sequence with one token; keeps received messages, requests and the number of bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._channel = BlockingChannel(connection)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self.messages: list[ToEngine] = []
        self._num_received = 0
        self.requests: dict[str, Generate] = {}
        self.num_bytes = 0
        self.uploads = Uploads()
        self._thread = threading.Thread(target=self._run, name="fake-engine")
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                payload = self._channel.receive()
                self.num_bytes += len(payload)
                self._handle(self._decoder.decode(payload))
        except ChannelClosedError:
            self._connection.close()

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Piece | DropUpload):
            self.uploads.handle(message)
        elif isinstance(message, Generate):
            request = self.requests[message.request_id] = self.uploads.complete(message)
            names = [f"{request.request_id}-{i}" for i in range(len(request.prompts) * request.num_choices)]
            self.answer(*(EngineOutput(name, [7], "length") for name in names))
        self.messages.append(message)

    async def receive(self) -> ToEngine:
        """The next message."""
        async with asyncio.timeout(60):
            while self._num_received == len(self.messages):
                await asyncio.sleep(0.001)
        self._num_received += 1
        return self.messages[self._num_received - 1]

    def answer(self, *outputs: EngineOutput) -> None:
        self.send(Step(list(outputs), EngineStats()))

    def send(self, message: FromEngine) -> None:
        self._channel.send(msgspec.msgpack.encode(message))

    def end(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    async def wait_ended(self) -> None:
        async with asyncio.timeout(60):
            while self._thread.is_alive():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[EngineClient, FakeEngine]]:
    """At the end, the engine has received everything. Large sends have to wait, because buffers are small."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for side in (ours, theirs):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        client, engine = EngineClient(ours), FakeEngine(theirs)
        await client.start()
        try:
            yield client, engine
        finally:
            await client.close()
            await engine.wait_ended()
            if client._loaded.done():
                client._loaded.exception()
