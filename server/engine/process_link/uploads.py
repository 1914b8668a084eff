"""Sends a request to the engine once for all its sequences; long parts in pieces, between other messages.

A single frame would block the event loop while it is copied, and all other requests while it is written.
"""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import count

import msgspec

from server.engine.process_link.messages import DropUpload, Generate, Piece, Prompt, TensorLayout, ToEngine
from server.types import EnginePrompt, PromptInputs, SamplingParams, TensorData

_PIECE_BYTES = 1 << 18
"""Copied in 0.05 ms; an idle socket accepts as much at once."""

_INLINE_UNITS = 1 << 14
"""Most tokens and characters of a grammar that are part of the request's own message."""

_Part = str | list[int] | memoryview


class Uploader:
    """Sends requests over one connection; every method runs on the event loop."""

    def __init__(self, send: Callable[[ToEngine], None], drain: Callable[[], Awaitable[None]]) -> None:
        """`drain` waits until everything sent so far has been written, or the engine has exited."""
        self._send = send
        self._drain = drain
        self._ids = count()

    async def send(self, request_id: str, prompts: Sequence[EnginePrompt], num_choices: int) -> None:
        """Sends a request; one that is cancelled meanwhile leaves nothing in the engine."""
        params = prompts[0].params
        parts = list(_parts(params, prompts))
        if all(prompt.inputs is None for prompt in prompts) and sum(map(len, parts)) <= _INLINE_UNITS:
            described = [Prompt(p.token_ids, p.params.max_tokens, p.params.reasoning) for p in prompts]
            self._send(Generate(request_id, described, params, num_choices))
        else:
            described = [Prompt([], p.params.max_tokens, p.params.reasoning, _layout(p.inputs)) for p in prompts]
            upload_id = next(self._ids)
            sizes = await self._send_parts(upload_id, parts)
            self._send(Generate(request_id, described, _with_spec(params, ""), num_choices, upload_id, sizes))
        await self._drain()

    async def _send_parts(self, upload_id: int, parts: list[_Part]) -> list[int]:
        """Sends them in pieces; returns their sizes."""
        sizes: list[int] = []
        try:
            for part in parts:
                sizes.append(0)
                for piece in _cut(part):
                    sizes[-1] += len(piece)
                    self._send(Piece(upload_id, memoryview(piece)))
                    await self._drain()
                    await asyncio.sleep(0)  # writing to an idle socket never waits; lets other tasks run
        except BaseException:
            self._send(DropUpload(upload_id))
            raise
        return sizes


class Uploads:
    """Puts requests together again in the engine; used on the receiving thread."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[memoryview]] = {}

    def handle(self, message: Piece | DropUpload) -> None:
        """Keeps a piece, or drops those of a request that will not follow."""
        if isinstance(message, Piece):
            self._pieces.setdefault(message.upload_id, []).append(message.data)
        else:
            self._pieces.pop(message.upload_id, None)

    def complete(self, message: Generate) -> Generate:
        """The request with what its pieces contain."""
        if message.upload_id is None:
            return message
        parts = _join(self._pieces.pop(message.upload_id, ()), message.part_sizes)
        spec = str(next(parts), "utf-8")
        prompts = [
            msgspec.structs.replace(prompt, token_ids=_read_ids(next(parts)), inputs=_assemble(prompt.layout, parts))
            for prompt in message.prompts
        ]
        return msgspec.structs.replace(
            message, params=_with_spec(message.params, spec), prompts=prompts, upload_id=None, part_sizes=[]
        )


def _parts(params: SamplingParams, prompts: Sequence[EnginePrompt]) -> Iterator[_Part]:
    """All that may be long, in the order in which it is sent."""
    yield "" if params.guided is None else params.guided.spec
    for prompt in prompts:
        yield prompt.token_ids
        if prompt.inputs is not None:
            yield from (tensor.data for _, tensor in _tensors(prompt.inputs))


def _cut(part: _Part) -> Iterator[bytes | memoryview]:
    size = _PIECE_BYTES // 8 if isinstance(part, list) else _PIECE_BYTES
    for begin in range(0, len(part), size):
        piece = part[begin : begin + size]
        if isinstance(piece, str):
            yield piece.encode()
        elif isinstance(piece, list):
            yield array("q", piece).tobytes()
        else:
            yield piece


def _join(pieces: Iterable[memoryview], sizes: list[int]) -> Iterator[memoryview]:
    """The parts, each in memory of its own, so that tensors are aligned; torch warns if it is read-only."""
    rest = iter(pieces)
    for size in sizes:
        part, end = memoryview(bytearray(size)), 0
        while end < size:
            piece = next(rest)
            part[end : end + len(piece)] = piece
            end += len(piece)
        yield part


def _read_ids(part: memoryview) -> list[int]:
    return array("q", bytes(part)).tolist()


def _with_spec(params: SamplingParams, spec: str) -> SamplingParams:
    if params.guided is None:
        return params
    return msgspec.structs.replace(params, guided=msgspec.structs.replace(params.guided, spec=spec))


def _tensors(inputs: PromptInputs) -> Iterator[tuple[str | None, TensorData]]:
    if inputs.embeds is not None:
        yield None, inputs.embeds
    yield from (inputs.mm or {}).items()


def _layout(inputs: PromptInputs | None) -> list[TensorLayout]:
    return [] if inputs is None else [TensorLayout(name, t.dtype, t.shape) for name, t in _tensors(inputs)]


def _assemble(layout: list[TensorLayout], parts: Iterator[memoryview]) -> PromptInputs | None:
    if not layout:
        return None
    tensors = {each.name: TensorData(each.dtype, each.shape, next(parts)) for each in layout}
    embeds = tensors.pop(None, None)
    return PromptInputs(embeds=embeds, mm={name: data for name, data in tensors.items() if name is not None} or None)
