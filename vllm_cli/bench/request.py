"""Sends one request and records its start, the arrival of each piece of text, and its end."""

from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter_ns
from typing import Any, NamedTuple

import aiohttp
import msgspec

from vllm_cli.client.server import END, EventReader, error_message


class Usage(msgspec.Struct, frozen=True):
    """The token counts of an OpenAI body."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class EncodedRequest(NamedTuple):
    """A request as it is sent; encoded before the clock starts."""

    url: str
    headers: dict[str, str]
    body: bytes
    is_stream: bool


@dataclass(frozen=True, kw_only=True)
class RequestSample:
    """The times of one request, as `perf_counter_ns`, and its outcome."""

    start_ns: int
    end_ns: int
    text_times_ns: tuple[int, ...] = ()
    """Arrival times of pieces of text; empty unless streamed."""
    usage: Usage | None = None
    error: str | None = None
    status: int | None = None
    """HTTP status; None without a response."""

    @property
    def num_chunks(self) -> int:
        return len(self.text_times_ns)

    @property
    def num_output_tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else self.num_chunks

    @property
    def ttft_ns(self) -> int | None:
        return self.text_times_ns[0] - self.start_ns if self.text_times_ns else None

    @property
    def tpot_ns(self) -> float | None:
        """Time per output token after the first, as in vLLM; None for a single one."""
        if not self.text_times_ns or self.num_output_tokens < 2:
            return None
        return (self.text_times_ns[-1] - self.text_times_ns[0]) / (self.num_output_tokens - 1)

    @property
    def gaps_ns(self) -> list[int]:
        return [later - earlier for earlier, later in pairwise(self.text_times_ns)]

    @property
    def e2e_ns(self) -> int:
        return self.end_ns - self.start_ns


async def send_request(session: aiohttp.ClientSession, request: EncodedRequest) -> RequestSample:
    """Sends one request and reads its response to the end; errors are in the sample's `error`."""
    start_ns = perf_counter_ns()
    status = None
    try:
        async with session.post(request.url, data=request.body, headers=request.headers) as response:
            status = response.status
            if status != 200:
                return _failed(start_ns, f"HTTP {status}: {error_message(await response.read())}", status)
            if request.is_stream:
                return await _read_stream(response, start_ns)
            return await _read_body(response, start_ns)
    except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError) as error:
        return _failed(start_ns, f"{type(error).__name__}: {error}".rstrip(": "), status)


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or (delta and (delta.content or delta.reasoning or delta.reasoning_content)))


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Reads the server-sent events of one stream, with little work per token, and records when text arrived.

    Only chunks with text count: an empty first chat delta or a trailing usage chunk is not a token.
    """

    def __init__(self) -> None:
        self.text_times_ns: list[int] = []
        self.usage: Usage | None = None
        self.error: str | None = None
        self.is_finished = False
        self._events = EventReader()

    def feed(self, data: bytes, now_ns: int) -> None:
        """Reads bytes that arrived at `now_ns`; an event may be spread over several calls."""
        for event in self._events.feed(data):
            self._read_event(event, now_ns)

    def _read_event(self, payload: bytes, now_ns: int) -> None:
        if payload == END:
            self.is_finished = True
            return
        chunk = _decoder.decode(payload)
        if chunk.error is not None:
            self.error = str(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            if choice.has_text:
                self.text_times_ns.append(now_ns)
            if choice.finish_reason is not None:
                self.is_finished = True


async def _read_stream(response: aiohttp.ClientResponse, start_ns: int) -> RequestSample:
    reader = ChunkReader()
    async for data in response.content.iter_any():
        reader.feed(data, perf_counter_ns())
    error = reader.error
    if error is None and not reader.is_finished:
        error = "the stream ended without a finish reason"
    return RequestSample(
        start_ns=start_ns,
        end_ns=perf_counter_ns(),
        text_times_ns=tuple(reader.text_times_ns),
        usage=reader.usage,
        error=error,
        status=response.status,
    )


async def _read_body(response: aiohttp.ClientResponse, start_ns: int) -> RequestSample:
    data = await response.read()
    end_ns = perf_counter_ns()
    usage = _decoder.decode(data).usage
    return RequestSample(start_ns=start_ns, end_ns=end_ns, usage=usage, status=response.status)


def _failed(start_ns: int, error: str, status: int | None) -> RequestSample:
    return RequestSample(start_ns=start_ns, end_ns=perf_counter_ns(), error=error, status=status)
