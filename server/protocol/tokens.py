"""Bodies of /inference/v1/generate and of the render routes: tokens in, tokens out."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from server.errors import RequestError
from server.protocol.completions import CompletionRequest
from server.protocol.fields import (
    INEFFECTIVE,
    CacheSalt,
    Hint,
    NumChoices,
    NumLogprobs,
    Priority,
    RequestId,
    TokenCount,
    TokenId,
    Unsupported,
    check_unsupported,
)
from server.protocol.generation import StreamOptions
from server.protocol.logprobs import ChatLogprobs, PromptLogprobs
from server.protocol.usage import Usage

_OWN = frozenset({"detokenize", "max_tokens"})


class TokensSampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's sampling parameters, as far as they have an effect here.

    Ranges are checked by `CompletionRequest`, whose fields have the same names.
    """

    n: NumChoices | None = None
    max_tokens: TokenCount | None = None
    """Null fills the rest of the context."""
    min_tokens: TokenCount | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logprobs: NumLogprobs | None = None
    prompt_logprobs: NumLogprobs | None = None
    logprob_token_ids: list[TokenId] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    structured_outputs: dict[str, Any] | None = None
    thinking_token_budget: int | None = None
    detokenize: bool = True
    """Without it, there are no stop strings and no text."""


class RenderedWith(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a render route has rendered the prompt."""

    chat_template_kwargs: dict[str, Any] = {}


class TokensRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A prompt of token ids, such as a render route returns it."""

    request_id: RequestId | None = None
    token_ids: Annotated[list[TokenId], Meta(min_length=1)]
    sampling_params: TokensSampling
    model: str | None = None
    output_mode: Literal["tokens", "text"] = "tokens"
    return_token_ids: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    cache_salt: CacheSalt | None = None
    kv_transfer_params: dict[str, Any] | None = None

    token_offsets: Hint = None
    reasoning_ended: bool | None = None
    """True applies a grammar from the first token on."""
    reasoning_parser_kwargs: RenderedWith | None = None
    features: Unsupported = None
    content_parts: Unsupported = None
    priority: Annotated[Priority, INEFFECTIVE] = 0
    ec_transfer_params: Annotated[dict[str, Any] | None, INEFFECTIVE] = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if self.sampling_params.detokenize:
            return
        if self.output_mode == "text":
            raise RequestError(
                "output_mode='text' requires sampling_params.detokenize to be true.", param="output_mode"
            )
        if self.sampling_params.stop:
            raise RequestError(
                "Stop strings are only supported when sampling_params.detokenize is true.", param="sampling_params.stop"
            )

    def to_completion(self, *, max_tokens: int) -> CompletionRequest:
        """The same request for the engine; `max_tokens` is used if the request has none.

        Raises:
            RequestError: a value is out of range.
        """
        given = msgspec.to_builtins(self.sampling_params, str_keys=False)
        fields = {name: value for name, value in given.items() if name not in _OWN and value is not None}
        limit = self.sampling_params.max_tokens
        shared = {"model": self.model, "request_id": self.request_id, "stream": self.stream}
        body = shared | {
            "prompt": self.token_ids,
            "stream_options": None if self.stream_options is None else msgspec.to_builtins(self.stream_options),
            "cache_salt": self.cache_salt,
            "max_tokens": max_tokens if limit is None else limit,
        }
        try:
            return msgspec.convert(body | fields, CompletionRequest)
        except msgspec.ValidationError as err:
            raise RequestError(f"Invalid value in `sampling_params`: {err}.", param="sampling_params") from err


class TokensCandidate(msgspec.Struct):
    """A token with its log-probability."""

    token_id: int
    logprob: float
    rank: int | None = None


class TokensLogprob(msgspec.Struct):
    """The token at one position, and the most likely ones; the token itself comes first."""

    token_id: int
    logprob: float
    rank: int | None
    top_logprobs: list[TokensCandidate]


class TokensLogprobs(msgspec.Struct):
    """`choices[].logprobs` with token ids instead of texts."""

    content: list[TokensLogprob]


class TokensChoice(msgspec.Struct, kw_only=True):
    """One generated sequence, or the part that a chunk adds to it."""

    index: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int]
    routed_experts: None = None
    sampling_mask: None = None
    weight_versions: None = None
    text: str | UnsetType = UNSET
    """Only with `output_mode: text`."""
    logprobs: TokensLogprobs | ChatLogprobs | None = None


class TokensResponse(msgspec.Struct, kw_only=True):
    """A response that is not streamed."""

    request_id: str
    model: str
    created: int
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_id_logprobs: None = None
    prompt_token_ids: list[int] | None = None
    mm_placeholders: None = None
    metrics: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    output_mode: str
    choices: list[TokensChoice]


class TokensChunk(msgspec.Struct, kw_only=True):
    """One event of a stream."""

    request_id: str
    usage: Usage | None = None
    prompt_token_ids: list[int] | UnsetType = UNSET
    output_mode: str
    choices: list[TokensChoice]


class RenderedRequest(msgspec.Struct, kw_only=True):
    """What a render route returns: a body for /inference/v1/generate."""

    request_id: str
    token_ids: list[int]
    token_offsets: list[tuple[int, int]] | None = None
    """Begin and end of each token in the prompt's text, if the request asks for them and they are known."""
    features: None = None
    sampling_params: TokensSampling
    model: str | None
    reasoning_ended: bool | None = None
    reasoning_parser_kwargs: RenderedWith | None = None
    return_token_ids: bool | None = None
    output_mode: str = "tokens"
    stream: bool
    stream_options: StreamOptions | None = None
    cache_salt: str | None = None
    priority: int = 0
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None


class AbortRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Requests of /inference/v1/generate to end."""

    request_ids: list[str]
