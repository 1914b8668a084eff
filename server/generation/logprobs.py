"""Formats log-probabilities for the responses of completions and chats."""

from collections.abc import Iterable

import msgspec

from server.generation.request import ChatRequest, CompletionRequest
from server.operation.models import Inference
from server.terms.concurrency import take_turns
from server.terms.types import TokenLogprob


class CompletionLogprobs(msgspec.Struct):
    """`choices[].logprobs` of /v1/completions: parallel lists with one entry per token."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class ChatTopLogprob(msgspec.Struct):
    """One candidate token for a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(ChatTopLogprob):
    """The token at one position, and the most likely tokens there."""

    top_logprobs: list[ChatTopLogprob]


class PromptLogprob(msgspec.Struct):
    """An entry of vLLM's `prompt_logprobs`, which maps token ids to entries."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[int, PromptLogprob] | None]


class LogprobFormatter:
    """Formats the log-probabilities of one request, which sets the number and form of candidates."""

    def __init__(self, inference: Inference, request: CompletionRequest | ChatRequest) -> None:
        """The request's `return_tokens_as_token_ids` takes precedence over the server's setting."""
        asked, default = request.return_tokens_as_token_ids, inference.config.generation.return_tokens_as_token_ids
        self._renderer = inference.renderer
        self._num_top = None if request.num_logprobs == -1 else request.num_logprobs
        """The number of candidates to return. If None, all candidates that the engine sends are returned."""
        self._shows_token_ids = default if asked is None else asked

    async def completion(
        self, entries: Iterable[tuple[int, TokenLogprob | None]], *, text_offset: int = 0
    ) -> CompletionLogprobs:
        """Returns the `logprobs` of a completion. A prompt's first token has no log-probability."""
        body = CompletionLogprobs()
        async for token_id, entry in take_turns(entries):
            token = self._token(token_id)
            body.text_offset.append(text_offset)
            body.tokens.append(token)
            body.token_logprobs.append(None if entry is None else entry.logprob)
            body.top_logprobs.append(None if entry is None else self._completion_top(entry))
            text_offset += len(token)
        return body

    async def chat(self, entries: Iterable[TokenLogprob]) -> list[ChatLogprob]:
        """Returns the content of the `logprobs` of a chat completion."""
        return [self._chat_entry(entry) async for entry in take_turns(entries)]

    async def prompt(self, entries: Iterable[TokenLogprob | None]) -> PromptLogprobs:
        """Returns the `prompt_logprobs`. Each position has the prompt's token and the most likely tokens."""
        return [None if entry is None else self._prompt_entry(entry) async for entry in take_turns(entries)]

    def _completion_top(self, entry: TokenLogprob) -> dict[str, float]:
        """Returns the candidates by text. As in OpenAI's API, the token itself is always among them."""
        own = {self._token(entry.token_id): entry.logprob}
        return own | {self._token(token_id): logprob for token_id, logprob in entry.top[: self._num_top]}

    def _chat_entry(self, entry: TokenLogprob) -> ChatLogprob:
        return ChatLogprob(
            self._token(entry.token_id),
            entry.logprob,
            self._bytes(entry.token_id),
            [
                ChatTopLogprob(self._token(token_id), logprob, self._bytes(token_id))
                for token_id, logprob in entry.top[: self._num_top]
            ],
        )

    def _prompt_entry(self, entry: TokenLogprob) -> dict[int, PromptLogprob]:
        own = {entry.token_id: self._candidate(entry.token_id, entry.logprob, entry.rank)}
        top = enumerate(entry.top, start=1)
        return own | {token_id: self._candidate(token_id, logprob, rank) for rank, (token_id, logprob) in top}

    def _candidate(self, token_id: int, logprob: float, rank: int) -> PromptLogprob:
        return PromptLogprob(logprob, rank, self._renderer.token_text(token_id))

    def _token(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._shows_token_ids else self._renderer.token_text(token_id)

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._renderer.tokenizer.token_bytes(token_id))
