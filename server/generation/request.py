"""Fields that requests for generated text share, with vLLM's names, ranges and defaults."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from base.errors import RequestError
from server.http_body.fields import (
    INT32_MAX,
    BadWords,
    CacheSalt,
    Counted,
    Ignored,
    MinP,
    NumChoices,
    NumLogprobs,
    Penalty,
    RepetitionPenalty,
    RequestBody,
    RequestId,
    Seed,
    Stop,
    Temperature,
    TokenCount,
    TokenId,
    TopK,
    TopP,
    Truncation,
    Unsupported,
    check_unsupported,
)
from server.renderers.stop_strings import MAX_STOP_CHARS


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream reports in addition to the text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """`response_format.json_schema`."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """OpenAI's field for guided decoding."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema is None):
            raise RequestError(
                "`response_format.json_schema.schema` must be given when `response_format.type` is 'json_schema'.",
                param="response_format",
            )


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """vLLM's field for guided decoding."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None


class SamplingFields(RequestBody, kw_only=True):
    """Fields with the same meaning in completions, chats and /v1/responses."""

    model: str | None = None
    stream: bool | None = False
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    """Limited to -100 to 100 when it is used, as in vLLM."""
    skip_special_tokens: bool = True
    cache_salt: CacheSalt | None = None
    structured_outputs: StructuredOutputs | None = None
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    guided_json: Ignored = None
    guided_regex: Ignored = None
    guided_choice: Ignored = None
    guided_grammar: Ignored = None

    def __post_init__(self) -> None:
        check_unsupported(self)


class GenerationRequest(SamplingFields, kw_only=True):
    """Base of completion and chat completion requests.

    `max_tokens`, `logprobs` and `echo` differ between the two; `num_logprobs` and similar properties unify
    them.
    """

    stream_options: StreamOptions | None = None
    request_id: RequestId | None = None

    n: NumChoices | None = 1
    min_tokens: TokenCount | None = 0
    allowed_token_ids: list[TokenId] | None = None
    bad_words: BadWords | None = None

    truncate_prompt_tokens: Truncation | None = None
    spaces_between_special_tokens: Unsupported = True
    prompt_logprobs: NumLogprobs | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None

    thinking_token_budget: Annotated[Any, Meta(extra_json_schema={"type": ["integer", "null"]})] = None
    """Most tokens of reasoning, checked by `__post_init__`; -1 sets no limit."""
    response_format: ResponseFormat | None = None

    use_beam_search: Unsupported = False

    logprob_token_ids: Unsupported = None
    truncation_side: Literal["left", "right"] | None = None
    """The side on which tokens are cut off; `left`, the default here, keeps the last ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_thinking_budget()
        if sum(map(len, self.stop_strings)) > MAX_STOP_CHARS:
            raise RequestError(
                f"The stop strings may have {MAX_STOP_CHARS} characters together; `--engine vllm` has no such limit.",
                param="stop",
            )
        if self.stream_options is not None and not self.stream:
            raise RequestError("Stream options can only be defined when `stream=True`.", param="stream_options")
        if self.stream and self.prompt_logprobs:
            raise RequestError("`prompt_logprobs` are not available when `stream=True`.", param="prompt_logprobs")

    def _check_thinking_budget(self) -> None:
        budget = self.thinking_token_budget
        if budget is not None and (type(budget) is not int or budget < -1):
            raise RequestError(
                "`thinking_token_budget` must be a non-negative integer or -1 for unlimited.",
                param="thinking_token_budget",
            )

    @property
    def thinking_budget(self) -> int | None:
        """Most tokens of reasoning; None without a limit."""
        budget: int | None = self.thinking_token_budget
        return None if budget is None or budget < 0 else min(budget, INT32_MAX)

    @property
    def num_logprobs(self) -> int | None:
        """Candidates to report per generated token."""
        raise NotImplementedError

    @property
    def num_choices(self) -> int:
        """`n`, or 1 if it is null."""
        return self.n or 1

    @property
    def num_sequences(self) -> int:
        return self.num_choices

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_choices", "n", self.num_choices)
        yield Counted("max_stop_strings", "stop", len(self.stop_strings))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a sequence."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
