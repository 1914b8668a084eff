"""Bodies of the derender routes: responses of /inference/v1/generate, and what makes text of them."""

from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta

from server.errors import RequestError
from server.protocol.chat import ChatRequest
from server.protocol.chat_response import ChatChunk
from server.protocol.completions import CompletionChunk, CompletionRequest
from server.protocol.fields import INT32_MAX, TokenCount, TokenId
from server.protocol.logprobs import PromptLogprobs
from server.protocol.usage import RequestMetrics
from server.types import FinishReason

Position = Annotated[int, Meta(ge=0, le=INT32_MAX)]


class GeneratedCandidate(msgspec.Struct, kw_only=True):
    """A token with its log-probability."""

    token_id: TokenId
    logprob: float
    rank: int | None = None


class GeneratedLogprob(GeneratedCandidate, kw_only=True):
    """The token at one position, and the most likely ones."""

    top_logprobs: list[GeneratedCandidate] = []


class GeneratedLogprobs(msgspec.Struct):
    """`choices[].logprobs`."""

    content: list[GeneratedLogprob] | None = None


class GeneratedChoice(msgspec.Struct, kw_only=True):
    """One generated sequence, or the part that a chunk adds to it."""

    index: Position
    token_ids: list[TokenId] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: GeneratedLogprobs | None = None


class GeneratedUsage(msgspec.Struct):
    """The token counts of a chunk."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None


class Generated(msgspec.Struct, kw_only=True):
    """A response of /inference/v1/generate, or one chunk of it; other fields of those are ignored.

    Texts are rejected: the token ids alone do not tell where a stop string has ended them.
    """

    request_id: str = msgspec.field(default_factory=lambda: uuid4().hex)
    output_mode: Literal["tokens"] = "tokens"
    choices: list[GeneratedChoice]
    usage: GeneratedUsage | None = None
    """Only that of a chunk is used."""
    prompt_token_ids: list[TokenId] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    kv_transfer_params: dict[str, Any] | None = None
    metrics: RequestMetrics | None = None


class StreamState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the client sends back with the next chunk of the same choice."""

    output_token_ids: list[TokenId] = []
    """The tokens so far, from which the state of detokenizer and parsers is built again."""
    role_sent: bool = False
    logprob_text_offset: Position = 0
    """`text_offset` of the next token."""


class DerenderChatRequest(msgspec.Struct, kw_only=True):
    """A response to make a chat completion of, or a chunk with `stream`."""

    model: str | None = None
    stream: bool = False
    generate_response: Generated | None = None
    """Without `stream`."""
    generate_chunk: Generated | None = None
    """With `stream`."""
    stream_state: StreamState | None = None
    """With `stream`: that of the response to the previous chunk."""
    prompt_tokens: TokenCount | None = None
    """For `usage`; null is 0."""
    prompt_token_ids: list[TokenId] | None = None
    """The rendered prompt, which decides whether the text begins with a space and with reasoning."""
    chat_request: ChatRequest | None = None
    """The request that was rendered."""

    def __post_init__(self) -> None:
        _check_form(self, self.generate_response, "generate_response")


class DerenderCompletionRequest(msgspec.Struct, kw_only=True):
    """Responses to make a completion of, one per prompt, or a chunk with `stream`."""

    model: str | None = None
    stream: bool = False
    generate_responses: list[Generated] | None = None
    """Without `stream`."""
    generate_chunk: Generated | None = None
    """With `stream`."""
    stream_state: StreamState | None = None
    """With `stream`: that of the response to the previous chunk."""
    prompt_tokens: list[TokenCount] | TokenCount | None = None
    """For `usage`: a number with `stream`, otherwise one per response; null is 0."""
    prompt_token_ids: list[list[TokenId] | TokenId | None] | None = None
    """The rendered prompt with `stream`, otherwise one per response, or null."""
    completion_request: CompletionRequest | None = None
    """The request that was rendered."""

    def __post_init__(self) -> None:
        _check_form(self, self.generate_responses, "generate_responses")
        if self.generate_responses == []:
            raise RequestError("generate_responses must not be empty", param="generate_responses")
        self._check_prompts()

    def _check_prompts(self) -> None:
        has_one_count, has_lists = not isinstance(self.prompt_tokens, list), _has_lists(self.prompt_token_ids)
        wanted = "that of one prompt if `stream` is true" if self.stream else "a list with one member per response"
        if self.prompt_tokens is not None and has_one_count is not self.stream:
            raise RequestError(f"`prompt_tokens` must be {wanted}.", param="prompt_tokens")
        if self.prompt_token_ids and has_lists is not (not self.stream):
            raise RequestError(f"`prompt_token_ids` must be {wanted}.", param="prompt_token_ids")
        if self.stream:
            return
        num_responses = len(self.generate_responses or ())
        for name in ("prompt_tokens", "prompt_token_ids"):
            given = getattr(self, name)
            if given is not None and len(given) != num_responses:
                raise RequestError(
                    f"{name} length ({len(given)}) must equal generate_responses length ({num_responses})", param=name
                )


class DerenderedChatChunk(msgspec.Struct):
    """The chunk of a chat's stream."""

    chunk: ChatChunk
    stream_state: StreamState


class DerenderedCompletionChunk(msgspec.Struct):
    """The chunk of a completion's stream."""

    chunk: CompletionChunk
    stream_state: StreamState


def _has_lists(members: list[Any] | None) -> bool | None:
    """Whether no member is a number; None if some are, and some are not."""
    kinds = {not isinstance(member, int) for member in members or ()}
    return kinds.pop() if len(kinds) == 1 else None


def _check_form(request: DerenderChatRequest | DerenderCompletionRequest, whole: Any, name: str) -> None:
    """Raises RequestError unless the request has what `stream` says, and not the other."""
    needed, other = ("generate_chunk", name) if request.stream else (name, "generate_chunk")
    given = {name: whole, "generate_chunk": request.generate_chunk}
    form = "true" if request.stream else "false"
    if given[needed] is None:
        raise RequestError(f"`{needed}` is required if `stream` is {form}.", param=needed)
    if given[other] is not None:
        raise RequestError(f"`{other}` must be left out if `stream` is {form}.", param=other)
