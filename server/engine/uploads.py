"""Sends a prompt's tensors to the engine: in small pieces, between other messages, once for all its choices.

A single frame would block the event loop while it is copied, and all other requests while it is written.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from server.engine.messages import DropUpload, Piece, TensorLayout, ToEngine, Upload
from server.types import PromptInputs, TensorData

_PIECE_BYTES = 1 << 18
"""Copied in 0.05 ms; an idle socket accepts as much at once."""


@dataclass(eq=False)
class _Sending:
    """An upload in progress or complete, and the number of requests that use it."""

    upload_id: int
    inputs: PromptInputs
    task: "asyncio.Task[None]"
    num_users: int = 0


class Uploader:
    """Sends uploads from the API process; every method runs on the event loop."""

    def __init__(self, send: Callable[[ToEngine], None], drain: Callable[[], Awaitable[None]]) -> None:
        """`drain` waits until everything sent so far has been written, or the engine has exited."""
        self._send = send
        self._drain = drain
        self._ids = count()
        self._sending: dict[int, _Sending] = {}

    @asynccontextmanager
    async def hold(self, inputs: PromptInputs) -> AsyncIterator[int]:
        """Uploads the inputs; the engine keeps them under the returned id until the block ends."""
        sending = self._sending.get(id(inputs)) or self._begin(inputs)
        sending.num_users += 1
        try:
            await asyncio.shield(sending.task)
            yield sending.upload_id
        finally:
            sending.num_users -= 1
            if not sending.num_users:
                del self._sending[id(inputs)]
                sending.task.cancel()
                self._send(DropUpload(sending.upload_id))

    def _begin(self, inputs: PromptInputs) -> _Sending:
        upload_id = next(self._ids)
        task = asyncio.create_task(self._send_all(upload_id, inputs), name=f"upload-{upload_id}")
        sending = self._sending[id(inputs)] = _Sending(upload_id, inputs, task)
        return sending

    async def _send_all(self, upload_id: int, inputs: PromptInputs) -> None:
        self._send(Upload(upload_id, _layout(inputs)))
        for tensor in _tensors(inputs):
            for begin in range(0, len(tensor.data), _PIECE_BYTES):
                self._send(Piece(upload_id, tensor.data[begin : begin + _PIECE_BYTES]))
                await self._drain()
                await asyncio.sleep(0)  # writing to an idle socket never waits; lets other tasks run


@dataclass
class _Received:
    """The received pieces of an upload, and the inputs once they are assembled."""

    layout: list[TensorLayout]
    pieces: list[memoryview] = field(default_factory=list)
    inputs: PromptInputs | None = None


class Uploads:
    """Assembles uploads in the engine; used on the receiving thread."""

    def __init__(self) -> None:
        self._received: dict[int, _Received] = {}

    def handle(self, message: Upload | Piece | DropUpload) -> None:
        """Begins, continues or drops an upload; requests that have its inputs keep them."""
        match message:
            case Upload(upload_id, layout):
                self._received[upload_id] = _Received(layout)
            case Piece(upload_id, data):
                self._received[upload_id].pieces.append(data)
            case DropUpload(upload_id):
                self._received.pop(upload_id, None)

    def inputs(self, upload_id: int) -> PromptInputs:
        """The uploaded inputs; the same object for every request."""
        received = self._received[upload_id]
        if received.inputs is None:
            # A bytearray, because torch warns about read-only memory.
            whole = memoryview(bytearray().join(received.pieces))
            received.inputs = _assemble(received.layout, whole)
            received.pieces.clear()
        return received.inputs


def _layout(inputs: PromptInputs) -> list[TensorLayout]:
    named = [] if inputs.embeds is None else [(None, inputs.embeds)]
    return [TensorLayout(name, t.dtype, t.shape, len(t.data)) for name, t in (*named, *(inputs.mm or {}).items())]


def _tensors(inputs: PromptInputs) -> Iterator[TensorData]:
    """In the layout's order."""
    if inputs.embeds is not None:
        yield inputs.embeds
    yield from (inputs.mm or {}).values()


def _assemble(layout: list[TensorLayout], whole: memoryview) -> PromptInputs:
    embeds: TensorData | None = None
    mm: dict[str, TensorData] = {}
    begin = 0
    for tensor in layout:
        data = TensorData(tensor.dtype, tensor.shape, whole[begin : begin + tensor.num_bytes])
        begin += tensor.num_bytes
        if tensor.name is None:
            embeds = data
        else:
            mm[tensor.name] = data
    return PromptInputs(embeds=embeds, mm=mm or None)
