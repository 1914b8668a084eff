"""The renderer's options for a conversation, taken from the request."""

from typing import Any

import msgspec

from server.config import ServerConfig
from server.protocol.chat import ChatRequest
from server.protocol.tokenize import TokenizeRequest
from server.renderers.prompts import ChatOptions


def chat_options(request: ChatRequest, config: ServerConfig) -> ChatOptions:
    """Options for a chat completion."""
    is_without_tools = config.exclude_tools_when_tool_choice_none and request.tool_choice == "none"
    return ChatOptions(
        add_generation_prompt=adds_generation_prompt(request),
        continue_final_message=request.continue_final_message,
        tools=None if is_without_tools else _tools(request),
        documents=request.documents,
        chat_template=request.chat_template,
        chat_template_kwargs=template_kwargs(request),
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        truncation_side=request.truncation_side,
        mm_processor_kwargs=request.mm_processor_kwargs,
    )


def tokenize_options(request: TokenizeRequest) -> ChatOptions:
    """Options for /tokenize."""
    return ChatOptions(
        add_generation_prompt=adds_generation_prompt(request),
        continue_final_message=request.continue_final_message,
        tools=_tools(request),
        chat_template=request.chat_template,
        chat_template_kwargs=request.chat_template_kwargs or {},
        add_special_tokens=bool(request.add_special_tokens),
        mm_processor_kwargs=request.mm_processor_kwargs,
    )


def template_kwargs(request: ChatRequest) -> dict[str, Any]:
    """The template's variables; `reasoning_effort` also sets the variable of templates without levels."""
    kwargs = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        kwargs.setdefault("enable_thinking", request.reasoning_effort != "none")
        kwargs["reasoning_effort"] = request.reasoning_effort
    return kwargs


def adds_generation_prompt(request: ChatRequest | TokenizeRequest) -> bool:
    """Whether the template opens a new message; by default only if no message is continued."""
    if request.add_generation_prompt is None:
        return not request.continue_final_message
    return request.add_generation_prompt


def _tools(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    return [msgspec.to_builtins(tool) for tool in request.tools] if request.tools else None
