"""The engine client: requests, pooling and commands. A fake engine answers on the socket.

One message has all sequences of a request. The request's token ids and tensors follow the message.
"""

import asyncio
import queue
import socket
import threading
from collections.abc import AsyncIterator

import msgspec
import pytest
import uvloop

from base.errors import EngineDeadError, EngineError, EngineStartError
from server.engine.engine_process import BlockingChannel, ChannelClosedError, attach
from server.engine.process_link.client import EngineClient
from server.engine.process_link.messages import (
    Abort,
    FromEngine,
    Generate,
    Pool,
    PrefixCacheReset,
    ResetPrefixCache,
    Step,
    ToEngine,
)
from server.engine.prompt_features import to_tensor
from server.terms.types import (
    EngineOutput,
    EnginePrompt,
    EngineStats,
    GuidedDecoding,
    PoolingParams,
    PromptInputs,
    ReasoningRules,
    SamplingParams,
    TensorData,
)

pytestmark = pytest.mark.thorough

PARAMS = SamplingParams(max_tokens=1)
POOLING = PoolingParams(task="embed", dimensions=2)


def tensor(num_bytes: int, start: int = 0) -> TensorData:
    data = bytes((start + i // 1000) % 251 for i in range(num_bytes))
    return TensorData("uint8", (num_bytes,), memoryview(data))


class FakeEngine:
    """Answers every sequence with one token. A test answers all other messages.

    Keeps received messages and requests, and counts received bytes.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._channel = BlockingChannel(connection)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._unread: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self.messages: list[ToEngine] = []
        self.requests: dict[str, Generate] = {}
        self.num_bytes = 0
        self._thread = threading.Thread(target=self._run, name="fake-engine")
        self._thread.start()

    async def receive(self) -> ToEngine:
        """Waits for the next message."""
        return await asyncio.to_thread(self._unread.get, timeout=60)

    def answer(self, *outputs: EngineOutput) -> None:
        self.send(Step(list(outputs), EngineStats()))

    def send(self, message: FromEngine) -> None:
        self._channel.send(msgspec.msgpack.encode(message))

    def _run(self) -> None:
        try:
            while True:
                payload = self._channel.receive()
                self.num_bytes += len(payload)
                self._handle(self._decoder.decode(payload))
        except ChannelClosedError:
            self._channel.close()
            self._channel._reader.close()

    def _handle(self, message: ToEngine) -> None:
        self.messages.append(message)
        self._unread.put(message)
        if isinstance(message, Generate):
            self.num_bytes += sum(message.part_sizes)
            parts = map(self._channel.receive_bytes, message.part_sizes)
            prompts = [attach(prompt, parts) for prompt in message.prompts]
            self.requests[message.request_id] = msgspec.structs.replace(message, prompts=prompts)
            names = [f"{message.request_id}-{i}" for i in range(len(prompts) * message.num_choices)]
            self.answer(*(EngineOutput(name, [7], "length") for name in names))

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()


async def end(client: EngineClient, engine: FakeEngine) -> None:
    await client.close()
    async with asyncio.timeout(60):
        while engine.is_alive:
            await asyncio.sleep(0.001)


@pytest.fixture
def sockets():
    """A socket pair with small send buffers, so that large sends wait on any machine."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for side in (ours, theirs):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
        yield ours, theirs


@pytest.fixture
def engine(sockets) -> FakeEngine:
    return FakeEngine(sockets[1])


@pytest.fixture
async def client(sockets, engine: FakeEngine) -> AsyncIterator[EngineClient]:
    client = EngineClient(sockets[0])
    await client.start()
    yield client
    await end(client, engine)


async def tokens_of(
    client: EngineClient, request_id: str, inputs: PromptInputs | None = None, num_choices: int = 1
) -> list[int]:
    prompts = [EnginePrompt([0, 0], PARAMS, inputs)]
    return [t async for o in client.generate(request_id, prompts, num_choices) for t in o.token_ids]


async def test_tensors_arrive_unchanged_and_aligned(client, engine):
    params = SamplingParams(max_tokens=1, guided=GuidedDecoding("regex", "x"))
    inputs = PromptInputs(embeds=tensor(700_001), mm={"pixels": tensor(5, 3), "none": tensor(0), "grid": tensor(24)})
    assert len([each async for each in client.generate("a", [EnginePrompt([0], params, inputs)])]) == 1
    assert await tokens_of(client, "b") == [7]
    await end(client, engine)
    found, other = (engine.requests[name].prompts[0].inputs for name in "ab")
    assert found.embeds is not None
    assert found.mm is not None
    assert other is None
    assert (found.embeds, found.mm) == (inputs.embeds, inputs.mm)
    sent = [found.embeds, found.mm["pixels"], found.mm["grid"]]
    assert [to_tensor(each).data_ptr() % 8 for each in sent] == [0, 0, 0]
    assert not any(isinstance(message, Abort) for message in engine.messages)


async def test_long_grammars_and_prompts_arrive_unchanged(client, engine):
    guided = GuidedDecoding("regex", "日本😀" * 200_000)
    shared = SamplingParams(max_tokens=1, guided=guided, allowed_token_ids=(1, 2), seed=-3)
    rules = ReasoningRules(budget=5)
    params = [shared, msgspec.structs.replace(shared, max_tokens=9, reasoning=rules)]
    ids = [list(range(100_000)), [], [2**40]]
    inputs = PromptInputs(mm={"grid": tensor(24)})
    prompts = [EnginePrompt(ids[0], params[0]), EnginePrompt(ids[1], params[1], inputs), EnginePrompt(ids[2], shared)]
    assert [o.token_ids async for o in client.generate("a", prompts, 2)] == [[7]] * 6
    await end(client, engine)
    found = engine.requests["a"]
    assert found.params == shared
    assert [p.token_ids for p in found.prompts] == ids
    assert [(p.max_tokens, p.reasoning) for p in found.prompts] == [(1, None), (9, rules), (1, None)]
    assert [p.inputs is None for p in found.prompts] == [True, False, True]


@pytest.mark.parametrize("part", ["grammar", "prompt", "inputs", "lists"])
async def test_the_number_of_choices_does_not_change_what_is_sent(client, engine, part):
    lists = tuple(range(50_000)) if part == "lists" else ()
    guided = GuidedDecoding("regex", "x" * 200_000) if part == "grammar" else None
    params = SamplingParams(max_tokens=1, guided=guided, allowed_token_ids=lists)
    inputs = PromptInputs(embeds=tensor(200_000)) if part == "inputs" else None
    prompt = EnginePrompt([0] * (25_000 if part == "prompt" else 2), params, inputs)
    sent = []
    for num_choices in (1, 4096):
        before = engine.num_bytes
        outputs = [output async for output in client.generate(f"n-{num_choices}", [prompt], num_choices)]
        assert len(outputs) == num_choices
        sent.append(engine.num_bytes - before)
    assert sent[0] > 100_000
    assert sent[1] < sent[0] + 100


@pytest.mark.parametrize("is_closed", [False, True], ids=["one is aborted", "the stream is closed"])
async def test_sequences_are_aborted_one_by_one_or_all_at_once(client, engine, is_closed):
    outputs = client.generate("a", [EnginePrompt([0], PARAMS)], 3)
    names = [(await anext(outputs)).request_id]
    if is_closed:
        await outputs.aclose()
    else:
        client.abort(["a-2"])
        names += [output.request_id async for output in outputs]
    await end(client, engine)
    assert names == (["a-0"] if is_closed else ["a-0", "a-1"])
    aborted = ["a-1", "a-2"] if is_closed else ["a-2"]
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [aborted]
    assert not client._streams


async def test_thousands_of_outputs_let_other_tasks_run(client, engine):
    outputs = client.generate("a", [EnginePrompt([0], PARAMS)], 4096)
    await anext(outputs)  # now all others have arrived

    async def take_rest() -> int:
        return len([output async for output in outputs])

    rest = asyncio.create_task(take_rest())
    num_turns = 0
    while not rest.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert await rest == 4095
    assert num_turns > 100


def test_the_event_loop_continues_during_an_upload(sockets):
    async def upload() -> int:
        client, engine = EngineClient(sockets[0]), FakeEngine(sockets[1])
        await client.start()
        inputs = PromptInputs(embeds=TensorData("uint8", (48 << 20,), memoryview(bytes(48 << 20))))
        large = asyncio.create_task(tokens_of(client, "large", inputs))
        turns = 0
        while not large.done():
            await asyncio.sleep(0)
            turns += 1
        await end(client, engine)
        return turns

    assert uvloop.run(upload()) > 5, "a turn may write what the socket holds several times, if the engine reads fast"


async def test_a_request_that_is_cancelled_during_its_upload_is_aborted(client, engine):
    request = asyncio.create_task(tokens_of(client, "gone", PromptInputs(embeds=tensor(3_000_000)), num_choices=2))
    while not engine.messages:
        await asyncio.sleep(0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert not client._streams
    assert await tokens_of(client, "next") == [7]
    await end(client, engine)
    assert [m.request_ids for m in engine.messages if isinstance(m, Abort)] == [["gone-0", "gone-1"]]


async def test_an_engine_exit_during_an_upload_raises_engine_dead_error(sockets):
    client = EngineClient(sockets[0])
    await client.start()
    request = asyncio.create_task(tokens_of(client, "a", PromptInputs(embeds=tensor(3_000_000))))
    while not client._streams:
        await asyncio.sleep(0)
    sockets[1].close()
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(request, 60)
    assert not client._streams
    with pytest.raises(EngineStartError):
        _ = client.info
    await client.close()


async def test_a_prompt_is_sent_and_its_vector_is_returned_or_its_error_is_raised(client, engine):
    pooling, refused = (asyncio.create_task(client.pool(name, [1, 2], POOLING, token_type_ids=[0, 1])) for name in "ab")
    assert [await engine.receive() for _ in range(2)] == [Pool(name, [1, 2], [0, 1], POOLING) for name in "ab"]
    data = TensorData("float32", (2,), memoryview(b"12345678"))
    engine.answer(EngineOutput(request_id="a", finish_reason="stop", queue_s=0.5, data=data))
    engine.answer(EngineOutput(request_id="b", finish_reason="error", error="too long"))
    output = await pooling
    assert output.queue_s == 0.5
    assert (output.data.shape, bytes(output.data.data)) == ((2,), b"12345678")
    with pytest.raises(EngineError, match="too long"):
        await refused


@pytest.mark.parametrize("has_exited", [True, False], ids=["exited", "given up"])
async def test_the_engines_end_ends_all_waits(client, engine, sockets, has_exited):
    resets = (client.reset_prefix_cache(interrupts=interrupts) for interrupts in (True, False))
    waiting = [asyncio.create_task(each) for each in (client.pool("a", [1], POOLING), *resets)]
    for _ in waiting:
        await engine.receive()
    if has_exited:
        sockets[1].shutdown(socket.SHUT_RDWR)
    else:
        client.give_up("it is gone")
    for task in waiting:
        with pytest.raises(EngineDeadError, match=None if has_exited else "it is gone"):
            await task
    with pytest.raises(EngineDeadError):
        await client.pool("b", [1], POOLING)


async def test_resets_of_the_prefix_cache_are_answered_in_their_order(client, engine):
    resets = []
    for interrupts in (True, False, True):
        resets.append(asyncio.create_task(client.reset_prefix_cache(interrupts=interrupts)))
        assert await engine.receive() == ResetPrefixCache(interrupts)
    resets[1].cancel()
    await asyncio.wait(resets[1:2])
    for is_done in (False, False, True):
        engine.send(PrefixCacheReset(is_done))
    assert await asyncio.gather(resets[0], resets[2]) == [False, True]
