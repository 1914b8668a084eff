"""What responses report besides text: usage, counted as tokens arrive, and log-probabilities."""

from collections.abc import Iterable, Sequence

import msgspec

from server.generation.completion_request import CompletionRequest
from server.generation.generation import Generation, SequenceDelta
from server.generation.reasoning import ReasoningCounter
from server.generation.request import ChatRequest
from server.operation.models import Inference
from server.operation.request_context import take_turns
from server.server_config import GenerationConfig
from server.types import TokenLogprob

_LOWEST = -9999.0
"""Replaces minus infinity, which JSON cannot express."""


class PromptTokensDetails(msgspec.Struct):
    """How many of the prompt's tokens came from the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    """How many of the generated tokens are reasoning."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """`usage` of completions and chat completions."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None

    @classmethod
    def of(cls, num_prompt_tokens: int, num_tokens: int = 0) -> "Usage":
        """The usage of so many tokens of the prompt and generated ones."""
        total = num_prompt_tokens + num_tokens
        return cls(prompt_tokens=num_prompt_tokens, total_tokens=total, completion_tokens=num_tokens)


class UsageMeter:
    """One per request; `add` is called with every delta."""

    def __init__(self, generation: Generation, config: GenerationConfig, *, counts_output: bool = True) -> None:
        is_chat = isinstance(generation.request, ChatRequest)
        options = generation.request.stream_options
        self.is_sent_at_end = config.enable_force_include_usage or bool(options and options.include_usage)
        """Whether a stream ends with its usage."""
        is_continuous = config.enable_force_include_usage or bool(options and options.continuous_usage_stats)
        self._is_in_chunks = self.is_sent_at_end and is_continuous
        self._generation = generation
        self._has_prompt_details = config.enable_prompt_tokens_details
        self._counts_output = counts_output
        self._num_tokens = [0] * generation.num_choices
        self._num_cached_tokens = 0
        self._reasoning: list[ReasoningCounter | None] | None = None
        if is_chat and config.reasoning_parser is not None:
            found = [generation.reasoning_of(index) for index in range(generation.num_choices)]
            self._reasoning = [None if reasoning is None else reasoning.create_counter() for reasoning in found]

    def add(self, delta: SequenceDelta) -> None:
        """Counts new tokens; choices of the same prompt count its cached tokens once."""
        if self._counts_output:
            self._num_tokens[delta.choice] += len(delta.token_ids)
        if self._reasoning is not None and (counter := self._reasoning[delta.choice]) is not None:
            counter.add(delta.token_ids)
        if delta.num_cached_tokens and delta.choice % self._generation.request.num_choices == 0:
            self._num_cached_tokens += delta.num_cached_tokens

    def of_chunk(self, index: int) -> Usage | None:
        """One choice's tokens so far; None unless the request asks for them (`continuous_usage_stats`)."""
        if not self._is_in_chunks:
            return None
        usage = Usage.of(len(self._generation.prompt_of(index).token_ids), self._num_tokens[index])
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning[index : index + 1])
        return usage

    def total(self) -> Usage:
        """The whole request's tokens so far."""
        usage = Usage.of(self._generation.num_prompt_tokens, sum(self._num_tokens))
        if self._has_prompt_details:
            usage.prompt_tokens_details = PromptTokensDetails(self._num_cached_tokens)
        if self._reasoning is not None:
            usage.completion_tokens_details = _details(self._reasoning)
        return usage


def _details(counters: Sequence[ReasoningCounter | None]) -> CompletionTokensDetails:
    return CompletionTokensDetails(sum(counter.num_tokens for counter in counters if counter is not None))


class CompletionLogprobs(msgspec.Struct):
    """`choices[].logprobs` of /v1/completions: parallel lists, one entry per token."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class ChatTopLogprob(msgspec.Struct):
    """One candidate token for a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    """The token at one position and the most likely ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(msgspec.Struct):
    """`choices[].logprobs` of /v1/chat/completions."""

    content: list[ChatLogprob]


class PromptLogprob(msgspec.Struct):
    """One entry of vLLM's `prompt_logprobs`, which are keyed by token id."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class LogprobFormatter:
    """One per request, which chooses the number of candidates and whether they are shown as text or id."""

    def __init__(self, inference: Inference, request: CompletionRequest | ChatRequest) -> None:
        """The request's `return_tokens_as_token_ids` takes precedence over the server's."""
        asked, default = request.return_tokens_as_token_ids, inference.config.generation.return_tokens_as_token_ids
        self._renderer = inference.renderer
        self._num_top = None if request.num_logprobs == -1 else request.num_logprobs
        """None shows all candidates that the engine sends."""
        self._shows_token_ids = default if asked is None else asked

    async def completion(
        self, entries: Iterable[tuple[int, TokenLogprob | None]], *, text_offset: int = 0
    ) -> CompletionLogprobs:
        """The `logprobs` of a completion, from token ids and logprobs; a prompt's first token has none."""
        body = CompletionLogprobs()
        async for token_id, entry in take_turns(entries):
            token = self._token(token_id)
            body.text_offset.append(text_offset)
            body.tokens.append(token)
            body.token_logprobs.append(None if entry is None else _finite(entry.logprob))
            body.top_logprobs.append(None if entry is None else self._completion_top(entry))
            text_offset += len(token)
        return body

    async def chat(self, entries: Iterable[TokenLogprob]) -> ChatLogprobs:
        """The `logprobs` of a chat completion."""
        return ChatLogprobs([self._chat_entry(entry) async for entry in take_turns(entries)])

    async def prompt(self, entries: Iterable[TokenLogprob | None]) -> PromptLogprobs:
        """The `prompt_logprobs`: for each position the prompt's token and the most likely ones, by id."""
        return [None if entry is None else self._prompt_entry(entry) async for entry in take_turns(entries)]

    def _completion_top(self, entry: TokenLogprob) -> dict[str, float]:
        """The candidates by text; the token itself is always among them, as in OpenAI's API."""
        own = {self._token(entry.token_id): _finite(entry.logprob)}
        return own | {self._token(token_id): _finite(logprob) for token_id, logprob in entry.top[: self._num_top]}

    def _chat_entry(self, entry: TokenLogprob) -> ChatLogprob:
        return ChatLogprob(
            self._token(entry.token_id),
            _finite(entry.logprob),
            self._bytes(entry.token_id),
            [
                ChatTopLogprob(self._token(token_id), _finite(logprob), self._bytes(token_id))
                for token_id, logprob in entry.top[: self._num_top]
            ],
        )

    def _prompt_entry(self, entry: TokenLogprob) -> dict[int, PromptLogprob]:
        own = {entry.token_id: self._candidate(entry.token_id, entry.logprob, entry.rank)}
        top = enumerate(entry.top, start=1)
        return own | {token_id: self._candidate(token_id, logprob, rank) for rank, (token_id, logprob) in top}

    def _candidate(self, token_id: int, logprob: float, rank: int) -> PromptLogprob:
        return PromptLogprob(_finite(logprob), rank, self._renderer.token_text(token_id))

    def _token(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._shows_token_ids else self._renderer.token_text(token_id)

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._renderer.token_bytes(token_id))


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
