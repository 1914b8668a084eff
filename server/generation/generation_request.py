"""Requests for generated text, with vLLM's names and ranges: shared fields, chats, tools, completions."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from base.errors import RequestError
from server.terms.http_body.request_body import (
    INT32_MAX,
    CacheSalt,
    Counted,
    Ignored,
    Messages,
    MinP,
    NumChoices,
    NumLogprobs,
    OutputLimit,
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
    check_generation_prompt,
    check_unsupported,
    opens_message,
)
from server.text.renderers.detokenizer import MAX_STOP_CHARS
from server.text.renderers.prompts import EmbedsPrompt, Prompt


class StreamOptions(msgspec.Struct, kw_only=True):
    """Whether a stream reports its token counts, at the end and in each chunk."""

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

    def __post_init__(self) -> None:
        if self.type == "structural_tag":
            raise RequestError(
                "`response_format.type` 'structural_tag' needs `--engine vllm`. Use 'json_schema' or strict tools.",
                param="response_format",
            )
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
    structural_tag: Unsupported = None
    disable_any_whitespace: Unsupported = False
    whitespace_pattern: Unsupported = None

    def __post_init__(self) -> None:
        check_unsupported(self)


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
    """Token id -> bias. As in vLLM, biases are limited to -100 to 100 when they are used."""
    skip_special_tokens: bool = True
    cache_salt: CacheSalt | None = None
    structured_outputs: StructuredOutputs | None = None
    stream_interval: Unsupported = 1
    media_io_kwargs: Unsupported = None
    mm_processor_kwargs: Unsupported = None

    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    guided_whitespace_pattern: Unsupported = None

    def __post_init__(self) -> None:
        check_unsupported(self)


class GenerationRequest(SamplingFields, kw_only=True):
    """The base of requests for completions and chat completions.

    The fields `max_tokens`, `logprobs` and `echo` differ between the two kinds. Properties such as
    `num_logprobs` have the same meaning in both.
    """

    stream_options: StreamOptions | None = None
    request_id: RequestId | None = None

    n: NumChoices | None = 1
    min_tokens: TokenCount | None = 0
    allowed_token_ids: list[TokenId] | None = None
    bad_words: Unsupported = None

    truncate_prompt_tokens: Truncation | None = None
    spaces_between_special_tokens: Unsupported = True
    prompt_logprobs: NumLogprobs | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None

    thinking_token_budget: Annotated[Any, Meta(extra_json_schema={"type": ["integer", "null"]})] = None
    """The most tokens of reasoning. -1 means no limit. `__post_init__` checks the value."""
    response_format: ResponseFormat | None = None

    use_beam_search: Unsupported = False
    kv_transfer_params: dict[str, Any] | None = None

    logprob_token_ids: Unsupported = None
    truncation_side: Unsupported = "left"
    """`left` keeps the last tokens of a prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_thinking_budget()
        if (self.kv_transfer_params or {}).get("prompt_token_ids") is not None:
            text = "`kv_transfer_params.prompt_token_ids` needs `--engine vllm`. Leave it out for the embedded engine."
            raise RequestError(text, param="kv_transfer_params")
        if sum(map(len, self.stop_strings)) > MAX_STOP_CHARS:
            raise RequestError(
                f"The stop strings may have {MAX_STOP_CHARS} characters together. `--engine vllm` has no such limit.",
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
        """The most tokens of reasoning. None means no limit."""
        budget: int | None = self.thinking_token_budget
        return None if budget is None or budget < 0 else min(budget, INT32_MAX)

    @property
    def num_choices(self) -> int:
        """The value of `n`. 1 if `n` is null."""
        return self.n or 1

    @property
    def num_sequences(self) -> int:
        return self.num_choices

    @property
    def is_guided(self) -> bool:
        """Whether a field of the request may constrain the text."""
        return self.response_format is not None or self.structured_outputs is not None

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_choices", "n", self.num_choices)
        yield Counted("max_stop_strings", "stop", len(self.stop_strings))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings. `stop` may also be a single string or null."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None | UnsetType = UNSET
    defer_loading: bool | None | UnsetType = UNSET
    """Read by templates that show a tool only after the conversation has referred to it."""


class Tool(msgspec.Struct, kw_only=True):
    """One member of `tools`."""

    type: Literal["function"] = "function"
    function: FunctionDefinition
    defer_loading: bool | None | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.function.defer_loading in (None, UNSET):
            self.function.defer_loading = self.defer_loading


class NamedFunction(msgspec.Struct):
    """The function that `tool_choice` requires."""

    name: str


class NamedToolChoice(msgspec.Struct, kw_only=True):
    """A `tool_choice` that requires one function."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(GenerationRequest, kw_only=True):
    """A conversation to continue."""

    messages: Messages
    max_tokens: OutputLimit | None = None
    max_completion_tokens: OutputLimit | None = None
    logprobs: bool | None = False
    top_logprobs: NumLogprobs | None = 0

    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None | UnsetType = UNSET
    """Null lets the model choose tools. An unset field becomes `auto` with tools, and `none` without."""
    parallel_tool_calls: bool | None = True

    echo: Unsupported = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template: Unsupported = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True
    return_prompt_text: Unsupported = None

    audio: Ignored = None
    functions: Ignored = None
    function_call: Ignored = "none"
    web_search_options: Ignored = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_generation_prompt(self.add_generation_prompt, self.continue_final_message)
        if self.top_logprobs and not self.logprobs:
            raise RequestError("when using `top_logprobs`, `logprobs` must be set to true.", param="top_logprobs")
        self._check_tools()

    def _check_tools(self) -> None:
        if self.tools == []:  # some agents without tools send this
            self.tools = None
            self.tool_choice = UNSET if self.tool_choice == "auto" else self.tool_choice
        if self.tool_choice is UNSET:
            self.tool_choice = "auto" if self.tools else "none"
        if self.tool_choice not in (None, "none") and not self.tools:
            raise RequestError("When using `tool_choice`, `tools` must be set.", param="tool_choice")
        if self.named_function is not None and self.named_function not in {t.function.name for t in self.tools or ()}:
            raise RequestError(
                f"`tool_choice` names the function '{self.named_function}', which is not in `tools`.",
                param="tool_choice",
            )

    @property
    def named_function(self) -> str | None:
        """The name of the function that `tool_choice` requires. None if it requires no single function."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None

    @property
    def forces_call(self) -> bool:
        """Whether the model has to call a tool."""
        return self.tool_choice == "required" or self.named_function is not None

    @property
    def is_guided(self) -> bool:
        return super().is_guided or self.forces_call

    @property
    def opens_message(self) -> bool:
        return opens_message(self.add_generation_prompt, self.continue_final_message)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the template. `reasoning_effort` sets `enable_thinking` if the client does not."""
        kwargs = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            kwargs.setdefault("enable_thinking", self.reasoning_effort != "none")
            kwargs["reasoning_effort"] = self.reasoning_effort
        return kwargs

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def output_limit_param(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs


DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest, kw_only=True):
    """A prompt to continue, or a list of prompts. A prompt is a text, token ids or embeddings."""

    prompt: str | list[TokenId | str | list[TokenId]] | None = None
    prompt_embeds: str | list[str] | None = None
    max_tokens: Annotated[TokenCount, Meta(extra={"range": "at least 1, or 0 with `echo`"})] | None = DEFAULT_MAX_TOKENS
    echo: bool | None = False
    logprobs: NumLogprobs | bool | None = None
    """As in vLLM, false means 0 and true means 1. Chat requests have a boolean in this field."""
    add_special_tokens: bool = True
    suffix: Unsupported = None

    def __post_init__(self) -> None:
        super().__post_init__()
        has_embeds = self.prompt_embeds is not None and self.prompt_embeds != []
        if not self.prompt and not has_embeds:
            raise RequestError("Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
        if has_embeds and self.echo:
            raise RequestError("`echo` cannot be combined with `prompt_embeds`: they have no text.", param="echo")
        if has_embeds and self.prompt_logprobs is not None:
            raise RequestError(
                "`prompt_logprobs` is not compatible with `prompt_embeds`: they have no tokens.",
                param="prompt_logprobs",
            )
        types = {type(member) for member in self.prompt} if isinstance(self.prompt, list) else set()
        if len(types) > 1:
            raise RequestError(
                "`prompt` must hold texts, or token ids, or lists of token ids, not a mix.", param="prompt"
            )

    @property
    def prompts(self) -> list[Prompt]:
        """At least one prompt, with embeddings first. If there are embeddings, an empty text is ignored."""
        embeds = self.prompt_embeds
        members = [embeds] if isinstance(embeds, str) else embeds or []
        prompts: list[Prompt] = [EmbedsPrompt(member) for member in members]
        if isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int):
            return prompts + self.prompt  # type: ignore[operator]
        return [*prompts, self.prompt] if self.prompt else prompts  # type: ignore[list-item]

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.num_choices

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "prompt", len(self.prompts))
        yield Counted("max_choices", "n", self.num_sequences)
        yield from super().counted()

    @property
    def is_echo_only(self) -> bool:
        """Whether the prompt is only scored, and nothing is generated."""
        return bool(self.echo) and self.max_tokens == 0

    @property
    def output_limit(self) -> TokenCount | None:
        """The most tokens to generate, as requested. The engine generates at least one token."""
        if self.is_echo_only:
            return 1
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def output_limit_param(self) -> str:
        """The name of the field that set `output_limit`."""
        return "max_tokens"

    @property
    def num_logprobs(self) -> int | None:
        """The number of candidates to report for each generated token."""
        return None if self.logprobs is None else int(self.logprobs)

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The number of candidates to report for each token of the prompt."""
        if self.prompt_logprobs is None and self.echo:
            return self.num_logprobs
        return self.prompt_logprobs


def shown_tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """Returns the tools in the form for a template. None if the request has no tools."""
    return [msgspec.to_builtins(tool) for tool in tools] if tools else None
