"""Bodies of /v1/chat/completions: the request and its tools."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from base.errors import RequestError
from server.generation.request import GenerationRequest
from server.http_body.fields import (
    Ignored,
    Messages,
    NumLogprobs,
    TokenCount,
    check_generation_prompt,
    opens_message,
)


class FunctionDefinition(msgspec.Struct, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None | UnsetType = UNSET
    defer_loading: bool | None | UnsetType = UNSET
    """For templates that show a tool only once it is referred to."""


class Tool(msgspec.Struct, kw_only=True):
    """One member of `tools`."""

    type: Literal["function"] = "function"
    function: FunctionDefinition
    defer_loading: bool | None | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.function.defer_loading in (None, UNSET):
            self.function.defer_loading = self.defer_loading


class NamedFunction(msgspec.Struct):
    """The name in a named tool choice."""

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
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = False
    top_logprobs: NumLogprobs | None = 0

    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None | UnsetType = UNSET
    """Never unset after `__post_init__`: `auto` with tools, else `none`. With null the model chooses, too."""
    parallel_tool_calls: bool | None = True

    echo: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    documents: list[dict[str, str]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True
    return_prompt_text: bool | None = None

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
        if self.tools == []:  # as agents send it that have no tools
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
        """The name of the function that `tool_choice` requires."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None

    @property
    def forces_call(self) -> bool:
        """Whether the model has to call a tool."""
        return self.tool_choice == "required" or self.named_function is not None

    @property
    def opens_message(self) -> bool:
        """Whether the template opens a new message."""
        return opens_message(self.add_generation_prompt, self.continue_final_message)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """The template's variables; `reasoning_effort` also sets the variable of templates without levels."""
        kwargs = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            kwargs.setdefault("enable_thinking", self.reasoning_effort != "none")
            kwargs["reasoning_effort"] = self.reasoning_effort
        return kwargs

    @property
    def output_limit(self) -> int | None:
        """Most tokens to generate, as requested."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def output_limit_param(self) -> str:
        """The field that `output_limit` comes from."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def num_logprobs(self) -> int | None:
        """Candidates to report per generated token."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Candidates to report per prompt token."""
        return self.prompt_logprobs


def shown_tools(tools: list[Tool] | None) -> list[dict[str, Any]] | None:
    """The tools as a template gets them; None without any."""
    return [msgspec.to_builtins(tool) for tool in tools] if tools else None
