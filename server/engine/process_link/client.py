"""The engine's client in the API process. Sends requests, receives tokens, and detects the engine's death."""

import asyncio
import logging
import socket
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import msgspec

from base.errors import EngineDeadError, EngineError, EngineStartError
from server.engine.process_link.messages import (
    LENGTH,
    Abort,
    Failed,
    FromEngine,
    Generate,
    Ping,
    Pong,
    Pool,
    PrefixCacheReset,
    Prompt,
    Ready,
    ResetPrefixCache,
    Step,
    ToEngine,
)
from server.terms.types import EngineInfo, EngineOutput, EnginePrompt, EngineStats, PoolingParams, TensorData

logger = logging.getLogger(__name__)

_TOKENS_PER_TURN = 1 << 15
"""The most prompt tokens to convert to bytes in one turn of the event loop, in half a millisecond."""
_OUTPUTS_PER_TURN = 16
"""The most outputs of a request in one turn of the event loop. Handling each output takes 0.1 ms."""


@dataclass(eq=False)
class _Stream:
    """The outputs of one request's sequences."""

    running: dict[str, None]
    """The ids of the sequences that have not ended, in their order."""
    outputs: "asyncio.Queue[EngineOutput | None]" = field(default_factory=asyncio.Queue)
    """Outputs in the order of arrival. A None in the queue means that the engine is dead."""


class EngineClient:
    """The client of the engine. Every method runs on the event loop. Call `start` first."""

    def __init__(self, connection: socket.socket, on_death: Callable[[str], None] = lambda reason: None) -> None:
        """`on_death` is called with the reason as soon as the engine is known to be dead."""
        self._connection = connection
        self._on_death = on_death
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._streams: dict[str, _Stream] = {}
        """Name of a sequence -> its stream."""
        self._resets: deque[asyncio.Future[bool]] = deque()
        """The awaited answers to `ResetPrefixCache`, in the order of the engine's answers."""
        self._subscribers: list[Callable[[EngineStats], None]] = []
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[EngineInfo] | None = None
        self._closing = False
        self.dead = asyncio.Event()
        """Set once the engine has ended unexpectedly, or `give_up` has been called."""
        self.error: str | None = None
        """Why the engine is dead. None while it is alive."""
        self.ended_silently = False
        """Whether the connection has closed without a report of an error."""
        self.has_received = False
        """Set to True by each message of the engine, and to False by the watchdog."""
        self.stats = EngineStats()

    @property
    def info(self) -> EngineInfo:
        """The data that the engine sent when the model was loaded. Raises EngineStartError before that."""
        if self._loaded is not None and self._loaded.done():
            return self._loaded.result()
        raise EngineStartError("the engine is still starting")

    async def start(self) -> None:
        """Begins to read the engine's messages."""
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self._loaded = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read_all(reader), name="engine-reader")

    def ping(self) -> None:
        """Sends a ping. The engine's answer sets `has_received`."""
        self._send(Ping())

    def give_up(self, reason: str) -> None:
        """Treats the engine as dead from now on, although its process may still run."""
        if self.error is None:
            self._die(reason)

    async def wait_loaded(self, timeout_s: float) -> EngineInfo:
        """Waits until the model is loaded.

        Raises:
            EngineStartError: the engine failed, died or took longer than `timeout_s`.
        """
        assert self._loaded is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._loaded), timeout_s)
        except TimeoutError as err:
            raise EngineStartError(
                f"the engine was not ready after {timeout_s:g} s (VLLM_ENGINE_READY_TIMEOUT_S)"
            ) from err

    def subscribe_stats(self, callback: Callable[[EngineStats], None]) -> None:
        """Calls `callback` with the engine's figures after each of the engine's steps."""
        self._subscribers.append(callback)

    def generate(
        self, request_id: str, prompts: Sequence[EnginePrompt], num_choices: int = 1
    ) -> AsyncGenerator[EngineOutput, None]:
        """Streams the outputs of a request's sequences. A sequence's last output has a `finish_reason`.

        The sequences are named `{request_id}-0` and so on. Each prompt has `num_choices` sequences, in the
        prompts' order. Closing the stream aborts all sequences that still run. `abort` ends single
        sequences.

        Raises:
            EngineDeadError: the engine was dead or died while the request ran.
        """
        names = [f"{request_id}-{index}" for index in range(len(prompts) * num_choices)]
        described = [Prompt(p.token_ids, p.params.max_tokens, p.params.reasoning, p.inputs) for p in prompts]
        return self._run(names, Generate(request_id, described, prompts[0].params, num_choices))

    async def pool(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: PoolingParams,
        *,
        token_type_ids: list[int] | None = None,
    ) -> EngineOutput:
        """Pools one prompt, and returns its vector or score. Cancelling aborts the request.

        Raises:
            EngineDeadError: the engine was dead or died while the request ran.
            EngineError: the engine failed or aborted the request.
        """
        message = Pool(request_id, prompt_token_ids, token_type_ids, params)
        async with aclosing(self._run([request_id], message)) as outputs:
            output = await anext(outputs)
        if output.finish_reason in ("error", "abort"):
            raise EngineError(output.error or "The engine aborted the request.")
        return output

    async def reset_prefix_cache(self, *, interrupts: bool) -> bool:
        """Empties the prefix cache, or returns False if requests run and `interrupts` is false.

        Raises:
            EngineDeadError: the engine was dead or died meanwhile.
        """
        if self.error is not None:
            raise EngineDeadError(self.error)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._resets.append(answer)
        self._send(ResetPrefixCache(interrupts))
        return await answer

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends sequences without further output."""
        request_ids = list(request_ids)
        for request_id in request_ids:
            if (stream := self._streams.pop(request_id, None)) is not None:
                del stream.running[request_id]
        self._send(Abort(request_ids))

    def fail_running(self, message: str) -> None:
        """Ends every running request with an error for its client. Called when a drain has timed out."""
        for request_id, stream in self._streams.items():
            stream.outputs.put_nowait(EngineOutput(request_id=request_id, finish_reason="error", error=message))
        self._send(Abort(list(self._streams)))

    async def close(self) -> None:
        """Closes the connection, which ends the engine process."""
        self._closing = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    async def _run(self, request_ids: list[str], message: Generate | Pool) -> AsyncGenerator[EngineOutput, None]:
        """Sends a request and streams the outputs of its sequences."""
        if self.error is not None:
            raise EngineDeadError(self.error)
        stream = _Stream(dict.fromkeys(request_ids))
        self._streams.update(dict.fromkeys(request_ids, stream))
        num_taken = 0
        try:
            await self._send_request(message)
            while stream.running:
                output = await stream.outputs.get()
                if output is None:
                    raise EngineDeadError(self.error or "the engine is gone")
                if output.request_id not in stream.running:
                    continue  # aborted
                if output.finish_reason is not None:
                    del self._streams[output.request_id], stream.running[output.request_id]
                yield output
                num_taken += 1
                if num_taken % _OUTPUTS_PER_TURN == 0:
                    await asyncio.sleep(0)  # taking from a queue that is not empty never lets others run
        finally:
            for request_id in stream.running:
                del self._streams[request_id]
            if stream.running:
                self._send(Abort(list(stream.running)))

    async def _send_request(self, message: Generate | Pool) -> None:
        """Sends a request in several turns of the event loop, and waits until most of it is written.

        A closed connection raises no error here, because `_read_all` reports it.
        """
        parts: list[memoryview] = []
        if isinstance(message, Generate):
            prompts = []
            num_tokens = 0
            for prompt in message.prompts:
                described, following = detach(prompt)
                prompts.append(described)
                parts += following
                num_tokens += len(prompt.token_ids)
                if num_tokens > _TOKENS_PER_TURN:
                    num_tokens = 0
                    await asyncio.sleep(0)
            message = msgspec.structs.replace(message, prompts=prompts, part_sizes=[len(part) for part in parts])
        self._send(message, parts)
        if self._writer is not None:
            with suppress(ConnectionError):
                await self._writer.drain()

    def _send(self, message: ToEngine, parts: Sequence[memoryview] = ()) -> None:
        """Sends a message. Does nothing if the connection is closed."""
        if self._writer is not None and not self._writer.is_closing():
            payload = self._encoder.encode(message)
            self._writer.writelines((LENGTH.pack(len(payload)) + payload, *parts))

    async def _read_all(self, reader: asyncio.StreamReader) -> None:
        reason: str | None = None
        try:
            while True:
                (num_bytes,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                message = self._decoder.decode(await reader.readexactly(num_bytes))
                self.has_received = True
                if isinstance(message, Failed):
                    reason = message.message
                    break
                if not isinstance(message, Pong):
                    self._take(message)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except Exception as err:
            logger.error("the engine's messages cannot be read", exc_info=err)
            reason = f"its messages cannot be read ({type(err).__name__})"
        if not self._closing:
            self.ended_silently = reason is None
            self._die(reason or "the engine process ended unexpectedly")

    def _take(self, message: Ready | Step | PrefixCacheReset) -> None:
        if isinstance(message, PrefixCacheReset):
            answer = self._resets.popleft()
            if not answer.cancelled():
                answer.set_result(message.is_done)
            return
        if isinstance(message, Ready):
            assert self._loaded is not None
            self._loaded.set_result(message.info)
            return
        self.stats = message.stats
        for output in message.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.outputs.put_nowait(output)
        for callback in self._subscribers:
            callback(message.stats)

    def _die(self, reason: str) -> None:
        if self.error is not None:
            return
        self.error = reason
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(EngineStartError(reason))
        for stream in set(self._streams.values()):
            stream.outputs.put_nowait(None)
        for answer in self._resets:
            if not answer.cancelled():
                answer.set_exception(EngineDeadError(reason))
        self.dead.set()
        self._on_death(reason)


def detach(prompt: Prompt) -> tuple[Prompt, list[memoryview]]:
    """Returns a prompt without tokens and tensors, and the bytes of these. Does not copy the tensors."""
    parts = [memoryview(array("q", prompt.token_ids)).cast("B")]

    def take(tensor: TensorData) -> TensorData:
        parts.append(tensor.data)
        return msgspec.structs.replace(tensor, data=memoryview(b""))

    inputs = None if prompt.inputs is None else prompt.inputs.replace_tensors(take)
    return msgspec.structs.replace(prompt, token_ids=[], inputs=inputs), parts
