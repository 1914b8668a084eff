"""Formats log-probabilities for the responses of completions and chats."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence

import msgspec

from server.generation.generation_request import ChatRequest, CompletionRequest
from server.operation.models import Inference
from server.terms.concurrency import take_turns
from server.terms.types import TokenLogprob
from server.text.renderers.detokenizer import CHARACTER_CONTEXT


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
    """Formats the log-probabilities of one request, which sets the number and form of candidates.

    The text of a token depends on the tokens before it, so each choice's tokens are formatted in order.
    """

    def __init__(self, inference: Inference, request: CompletionRequest | ChatRequest) -> None:
        """The request's `return_tokens_as_token_ids` takes precedence over the server's setting."""
        asked, default = request.return_tokens_as_token_ids, inference.config.generation.return_tokens_as_token_ids
        self._renderer = inference.renderer
        self._num_top = None if request.num_logprobs == -1 else request.num_logprobs
        """The number of candidates to return. If None, all candidates that the engine sends are returned."""
        self._shows_token_ids = default if asked is None else asked
        self._last_tokens: defaultdict[int, _LastTokens] = defaultdict(_LastTokens)
        """Choice -> the last tokens of its output so far."""
        self._text_offsets: defaultdict[int, int] = defaultdict(int)
        """Choice -> how many characters its tokens have so far."""

    async def completion(
        self, choice: int, entries: Iterable[TokenLogprob], echoed: Iterable[tuple[int, TokenLogprob | None]] = ()
    ) -> CompletionLogprobs:
        """Returns the `logprobs` of the next part of a completion.

        Args:
            choice: the index of the choice.
            entries: the output's tokens.
            echoed: the prompt's tokens, which come before the output. The first token has no log-probability.
        """
        body = CompletionLogprobs()
        before_prompt, before_output = _LastTokens(), self._last_tokens[choice]
        async for token_id, entry in take_turns(echoed):
            if entry is None:
                self._append(body, choice, self._token(token_id, None))
            else:
                self._append_entry(body, choice, entry, before_prompt)
        async for entry in take_turns(entries):
            self._append_entry(body, choice, entry, before_output)
        return body

    async def chat(self, choice: int, entries: Iterable[TokenLogprob]) -> list[ChatLogprob]:
        """Returns the content of the `logprobs` of the next part of a chat completion."""
        before = self._last_tokens[choice]
        return [self._chat_entry(entry, before) async for entry in take_turns(entries)]

    async def prompt(self, entries: Iterable[TokenLogprob | None]) -> PromptLogprobs:
        """Returns the `prompt_logprobs`. Each position has the prompt's token and the most likely tokens."""
        before = _LastTokens()
        return [None if entry is None else self._prompt_entry(entry, before) async for entry in take_turns(entries)]

    def _append_entry(
        self, body: CompletionLogprobs, choice: int, entry: TokenLogprob, last_tokens: "_LastTokens"
    ) -> None:
        before = last_tokens.before(entry)
        top = [(entry.token_id, entry.logprob), *self._top(entry)]  # OpenAI's API also includes the token itself
        shown = {self._token(token_id, before): logprob for token_id, logprob in dict(top).items()}
        self._append(body, choice, self._token(entry.token_id, before), entry.logprob, shown)

    def _append(
        self,
        body: CompletionLogprobs,
        choice: int,
        token: str,
        logprob: float | None = None,
        top: dict[str, float] | None = None,
    ) -> None:
        body.text_offset.append(self._text_offsets[choice])
        body.tokens.append(token)
        body.token_logprobs.append(logprob)
        body.top_logprobs.append(top)
        self._text_offsets[choice] += len(token)

    def _chat_entry(self, entry: TokenLogprob, last_tokens: "_LastTokens") -> ChatLogprob:
        before = last_tokens.before(entry)
        own = self._chat_candidate(entry.token_id, entry.logprob, before)
        top = [self._chat_candidate(token_id, logprob, before) for token_id, logprob in self._top(entry)]
        return ChatLogprob(own.token, own.logprob, own.bytes, top)

    def _chat_candidate(self, token_id: int, logprob: float, before: Sequence[int]) -> ChatTopLogprob:
        text = self._renderer.token_text(token_id, before)
        token = _placeholder(token_id) if self._shows_token_ids else text
        return ChatTopLogprob(token, logprob, list(text.encode()))

    def _prompt_entry(self, entry: TokenLogprob, last_tokens: "_LastTokens") -> dict[int, PromptLogprob]:
        before = last_tokens.before(entry)
        ranked = [(entry.token_id, entry.logprob, entry.rank)]
        ranked += [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, start=1)]
        return {
            token_id: PromptLogprob(logprob, rank, self._renderer.token_text(token_id, before))
            for token_id, logprob, rank in ranked
        }

    def _top(self, entry: TokenLogprob) -> Sequence[tuple[int, float]]:
        return entry.top[: self._num_top]

    def _token(self, token_id: int, before: Sequence[int] | None) -> str:
        return _placeholder(token_id) if self._shows_token_ids else self._renderer.token_text(token_id, before)


def _placeholder(token_id: int) -> str:
    return f"token_id:{token_id}"


class _LastTokens:
    """The last tokens of a text, which may have begun the character that the next token completes."""

    def __init__(self) -> None:
        self._token_ids: deque[int] = deque(maxlen=CHARACTER_CONTEXT)

    def before(self, entry: TokenLogprob) -> list[int]:
        """Returns the last tokens before this token, and adds it."""
        token_ids = list(self._token_ids)
        self._token_ids.append(entry.token_id)
        return token_ids
