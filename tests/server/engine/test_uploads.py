"""A prompt's tensors reach the engine in pieces, between other messages, once for all its requests."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from server.engine.channel import BlockingChannel, ChannelClosedError
from server.engine.client import EngineClient
from server.engine.messages import Abort, DropUpload, Generate, Piece, Step, ToEngine, Upload
from server.engine.uploads import Uploads
from server.errors import EngineDeadError, EngineStartError
from server.types import EngineOutput, EngineStats, PromptInputs, SamplingParams, TensorData

PARAMS = SamplingParams(max_tokens=1)


def tensor(num_bytes: int, start: int = 0) -> TensorData:
    data = bytes((start + i // 1000) % 251 for i in range(num_bytes))
    return TensorData("uint8", (num_bytes,), memoryview(data))


class FakeEngine:
    """Answers every request with one token; keeps received messages and inputs."""

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self.messages: list[ToEngine] = []
        self.inputs: dict[str, PromptInputs] = {}
        self.uploads = Uploads()
        self._thread = threading.Thread(target=self._run, name="fake-engine")
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._handle(self._decoder.decode(self._channel.receive()))
        except ChannelClosedError:
            self._channel.close()

    def _handle(self, message: ToEngine) -> None:
        self.messages.append(message)
        if isinstance(message, Upload | Piece | DropUpload):
            self.uploads.handle(message)
        elif isinstance(message, Generate):
            if message.upload_id is not None:
                self.inputs[message.request_id] = self.uploads.inputs(message.upload_id)
            output = EngineOutput(message.request_id, [7], "length")
            self._channel.send(msgspec.msgpack.encode(Step([output], EngineStats())))

    def kinds(self) -> list[str]:
        return [type(message).__name__ for message in self.messages]

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()


async def end(client: EngineClient, engine: FakeEngine) -> None:
    await client.close()
    async with asyncio.timeout(60):
        while engine.is_alive:
            await asyncio.sleep(0.001)


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket pair with small send buffers, so that large sends have to wait on any machine."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for side in (ours, theirs):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        yield ours, theirs


async def tokens_of(client: EngineClient, request_id: str, inputs: PromptInputs | None = None) -> list[int]:
    return [t async for o in client.generate(request_id, [0, 0], PARAMS, inputs) for t in o.token_ids]


async def test_tensors_arrive_unchanged(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
    await client.start()
    inputs = PromptInputs(embeds=tensor(700_001), mm={"pixels": tensor(5, 3), "none": tensor(0), "grid": tensor(24)})
    assert await tokens_of(client, "a", inputs) == [7]
    assert await tokens_of(client, "b") == [7]
    await end(client, engine)
    found = engine.inputs.pop("a")
    assert not engine.inputs
    assert found.embeds == inputs.embeds
    assert found.mm == inputs.mm
    assert not engine.uploads._received
    assert "Abort" not in engine.kinds()


async def test_choices_share_one_upload(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
    await client.start()
    inputs, other = PromptInputs(embeds=tensor(600_000)), PromptInputs(embeds=tensor(10))
    names = [f"choice-{i}" for i in range(4)]
    await asyncio.gather(*(tokens_of(client, name, inputs) for name in names), tokens_of(client, "other", other))
    await end(client, engine)
    assert engine.kinds().count("Upload") == engine.kinds().count("DropUpload") == 2
    assert len({id(engine.inputs[name]) for name in names}) == 1
    assert engine.inputs["other"].embeds == other.embeds


async def test_other_requests_and_the_event_loop_continue_during_an_upload(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
    await client.start()
    inputs = PromptInputs(embeds=TensorData("uint8", (48 << 20,), memoryview(bytes(48 << 20))))
    large = asyncio.create_task(tokens_of(client, "large", inputs))
    turns, num_small = 0, 0
    while not large.done():
        await asyncio.sleep(0)
        turns += 1
        if turns % 20 == 0:
            await tokens_of(client, f"small-{turns}")
            num_small += 1
    await end(client, engine)
    assert turns > 100
    assert num_small > 4
    kinds = engine.kinds()
    first, last = kinds.index("Piece"), len(kinds) - kinds[::-1].index("Piece")
    assert kinds[first:last].count("Generate") > 2, "other requests are sent between the pieces"


async def test_a_cancelled_requests_upload_is_dropped(sockets: tuple[socket.socket, socket.socket]) -> None:
    client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
    await client.start()
    inputs = PromptInputs(embeds=tensor(3_000_000))
    request = asyncio.create_task(tokens_of(client, "gone", inputs))
    while not client._uploader._sending:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert not client._uploader._sending
    assert await tokens_of(client, "next") == [7]
    await end(client, engine)
    assert "gone" not in engine.inputs
    assert not engine.uploads._received
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [["gone"]]


async def test_an_upload_continues_if_one_of_its_requests_is_cancelled(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
    await client.start()
    inputs = PromptInputs(embeds=tensor(3_000_000))
    first, second = [asyncio.create_task(tokens_of(client, name, inputs)) for name in ("first", "second")]
    while not client._uploader._sending:
        await asyncio.sleep(0)
    first.cancel()
    assert await second == [7]
    await asyncio.gather(first, return_exceptions=True)
    await end(client, engine)
    assert engine.inputs["second"].embeds == inputs.embeds


async def test_an_engine_exit_during_an_upload_raises_engine_dead_error(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    client = EngineClient(sockets[0])
    await client.start()
    request = asyncio.create_task(tokens_of(client, "a", PromptInputs(embeds=tensor(3_000_000))))
    while not client._uploader._sending:
        await asyncio.sleep(0)
    sockets[1].close()
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(request, 60)
    assert not client._uploader._sending
    with pytest.raises(EngineStartError):
        _ = client.info
    await client.close()
