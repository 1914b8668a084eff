"""Streamed completions: builds reproducible prompts and requests, and records the times of each answer."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import aiohttp
import msgspec

from vllm_cli.client.server import END, EventReader, error_message

REQUEST_TIMEOUT_S = 600.0
_TASKS = (
    "Write a short story about",
    "Explain to a child the meaning of",
    "List the most important facts about",
    "Give a friend some good advice about",
    "Describe in plain words the history of",
    "Compare the past and the future of",
    "Write a letter to the city about",
    "Tell me what people think about",
)
_NOUNS = (
    "river house morning market winter garden music teacher window ocean road letter kitchen mountain paper engine "
    "light family doctor science village history summer animal bridge water school book colour story table night "
    "language forest number island picture train money weather question office friend ship farmer country king star"
)
_VERBS = "finds keeps loves shows builds takes sees opens follows leaves brings meets"
_NUM_DIGITS = 6


def build_prompt(num_tokens: int, *, seed: str) -> str:
    """A prompt of about `num_tokens` tokens. Prompts of different seeds differ from the first word on.

    No tokenizer is used. In most vocabularies, each of the words and each digit of the number at the
    beginning is one token.
    """
    source = random.Random(seed)
    nouns, verbs = _NOUNS.split(), _VERBS.split()
    number = f"{source.randrange(10**_NUM_DIGITS):0{_NUM_DIGITS}}:"
    words = [*source.choice(_TASKS).split(), source.choice(nouns), "."]
    num_words = max(1, num_tokens - _NUM_DIGITS - 1)
    while len(words) < num_words:
        words += ["The", source.choice(nouns), source.choice(verbs), "the", source.choice(nouns), "."]
    return " ".join([number, *words[:num_words]]).replace(" .", ".")


@dataclass(frozen=True, kw_only=True)
class CompletionFormat:
    """How completions are requested from one server."""

    base_url: str
    path: str
    model: str
    headers: Mapping[str, str]
    optional: Mapping[str, Any] = field(default_factory=dict)
    """Optional fields that the server accepts."""

    @property
    def url(self) -> str:
        return self.base_url + self.path

    def encode(self, prompt: str, *, max_tokens: int) -> bytes:
        """The body of one greedy streamed request. Encode it before the clock starts."""
        is_chat = self.path.endswith("/chat/completions")
        content = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        common = {"model": self.model, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        return msgspec.json.encode({**common, **content, **self.optional})


class Usage(msgspec.Struct, frozen=True):
    """The token counts of an OpenAI body."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class RequestSample:
    """The times of one request, as `perf_counter_ns`, and its outcome."""

    start_ns: int
    end_ns: int
    text_times_ns: tuple[int, ...] = ()
    usage: Usage | None = None
    error: str | None = None
    status: int | None = None
    """The HTTP status. None if there was no response."""

    @property
    def num_output_tokens(self) -> int:
        return self.usage.completion_tokens if self.usage else len(self.text_times_ns)

    @property
    def ttft_ns(self) -> int | None:
        return self.text_times_ns[0] - self.start_ns if self.text_times_ns else None

    @property
    def tpot_ns(self) -> float | None:
        """Nanoseconds per output token after the first one, as in vLLM. None for a single token."""
        if not self.text_times_ns or self.num_output_tokens < 2:
            return None
        return (self.text_times_ns[-1] - self.text_times_ns[0]) / (self.num_output_tokens - 1)

    @property
    def gaps_ns(self) -> list[int]:
        return [later - earlier for earlier, later in pairwise(self.text_times_ns)]

    @property
    def e2e_ns(self) -> int:
        return self.end_ns - self.start_ns


def open_session() -> aiohttp.ClientSession:
    """A session that has no cookies and does not limit connections. A request fails after ten minutes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
    )


async def send_request(session: aiohttp.ClientSession, form: CompletionFormat, body: bytes) -> RequestSample:
    """Sends one request and reads its stream to the end. An error is stored in the sample's `error`."""
    start_ns = perf_counter_ns()
    reader, status = ChunkReader(), None
    try:
        async with session.post(form.url, data=body, headers=form.headers) as response:
            status = response.status
            if status == 200:
                async for data in response.content.iter_any():
                    reader.feed(data, perf_counter_ns())
                error = reader.find_error()
            else:
                error = f"HTTP {status}: {error_message(await response.read())}"
    except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError) as err:
        error = f"{type(err).__name__}: {err}".rstrip(": ")
    return RequestSample(
        start_ns=start_ns,
        end_ns=perf_counter_ns(),
        text_times_ns=tuple(reader.text_times_ns),
        usage=reader.usage,
        error=error,
        status=status,
    )


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    text: str | None = None
    delta: _Delta = _Delta()
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        delta = self.delta
        return bool(self.text or delta.content or delta.reasoning or delta.reasoning_content)


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Reads the server-sent events of a stream with little work per token, and records when text arrives.

    Only chunks with text count as tokens, not the empty first delta of a chat or the chunk with the usage.
    """

    def __init__(self) -> None:
        self.text_times_ns: list[int] = []
        self.usage: Usage | None = None
        self.error: str | None = None
        self.is_finished = False
        self._events = EventReader()

    def feed(self, data: bytes, now_ns: int) -> None:
        """Reads bytes that arrived at `now_ns`. An event may be spread over several calls."""
        for event in self._events.feed(data):
            if event == END:
                self.is_finished = True
                continue
            chunk = _decoder.decode(event)
            self.error = self.error if chunk.error is None else str(chunk.error)
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                if choice.has_text:
                    self.text_times_ns.append(now_ns)
                self.is_finished |= choice.finish_reason is not None

    def find_error(self) -> str | None:
        """The message of an error event, or that the stream is incomplete. Call this after the last byte."""
        return self.error or (None if self.is_finished else "the stream ended without a finish reason")
