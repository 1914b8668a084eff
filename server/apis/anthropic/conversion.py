"""Converts a request of /v1/messages into a chat request, by vLLM's rules."""

import json
from typing import Any

import msgspec

from server.apis.anthropic.messages_request import (
    AnthropicMessage,
    AnthropicRequest,
    ContentBlock,
    CountTokensRequest,
    ThinkingDisabled,
    ThinkingEnabled,
    ToolDefinition,
)
from server.generation.generation_request import (
    ChatRequest,
    FunctionDefinition,
    JsonSchemaFormat,
    NamedFunction,
    NamedToolChoice,
    ReasoningEffort,
    ResponseFormat,
    Tool,
    ToolChoice,
)

_ATTRIBUTION_HEADER = "x-anthropic-billing-header"
"""The beginning of Claude Code's first system block, which differs in each request.

This block is dropped, because no prompt could otherwise reuse a prefix from the prefix cache.
"""

ChatMessage = dict[str, Any]


def to_chat_request(
    request: AnthropicRequest | CountTokensRequest,
    *,
    merges_system: bool = False,
    disabled_effort: ReasoningEffort = "none",
) -> ChatRequest:
    """Converts a request into a chat request with the same meaning.

    Args:
        merges_system: whether to move system messages from within the conversation to its start.
        disabled_effort: the `reasoning_effort` for disabled thinking.

    Raises:
        RequestError: the chat request is invalid.
    """
    tools = [Tool(function=_to_function(tool)) for tool in request.tools or ()] or None
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": _convert_messages(request, merges_system=merges_system),
        "tools": tools,
        "chat_template_kwargs": request.chat_template_kwargs,
        "response_format": _response_format(request),
        "reasoning_effort": _reasoning_effort(request, disabled_effort),
    }
    if (choice := request.tool_choice) is not None:
        fields["tool_choice"] = _convert_tool_choice(request) if tools or choice.type in ("any", "tool") else None
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    if isinstance(request, AnthropicRequest):
        fields |= _generation_fields(request)
    return ChatRequest(**{name: value for name, value in fields.items() if value is not None})


def _generation_fields(request: AnthropicRequest) -> dict[str, Any]:
    thinking = request.thinking
    return {
        "max_tokens": request.max_tokens,
        "stream": request.stream,
        "stop": request.stop_sequences,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "thinking_token_budget": thinking.budget_tokens if isinstance(thinking, ThinkingEnabled) else None,
        "cache_salt": request.cache_salt,
    }


def _response_format(request: CountTokensRequest) -> ResponseFormat | None:
    output = request.output_config
    if output is None or output.format is None or not output.format.schema:
        return None
    schema = JsonSchemaFormat(name=output.format.type, schema=output.format.schema)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _reasoning_effort(request: CountTokensRequest, disabled_effort: ReasoningEffort) -> ReasoningEffort | None:
    if isinstance(request.thinking, ThinkingDisabled):
        return disabled_effort
    return None if request.output_config is None else request.output_config.effort


def _convert_tool_choice(request: CountTokensRequest) -> ToolChoice:
    choice = request.tool_choice
    assert choice is not None
    if choice.type == "tool":
        return NamedToolChoice(function=NamedFunction(choice.name or ""))
    return "required" if choice.type == "any" else choice.type


def _to_function(tool: ToolDefinition) -> FunctionDefinition:
    return FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters={"type": "object"} | tool.input_schema,
        strict=msgspec.UNSET if tool.strict is None else tool.strict,
        defer_loading=msgspec.UNSET if tool.defer_loading is None else tool.defer_loading,
    )


def _convert_messages(request: CountTokensRequest, *, merges_system: bool) -> list[ChatMessage]:
    opening = [request.system] if isinstance(request.system, str) else _texts(request.system or [])
    if merges_system:
        of_system = [message for message in request.messages if message.role == "system"]
        opening += [text for message in of_system for text in _texts(message.blocks)]
    converted: list[ChatMessage] = []
    if any(opening):
        converted.append({"role": "system", "content": "".join(opening)})
    for message in request.messages:
        if message.role != "system":
            converted += _convert_message(message)
        elif not merges_system and (text := "".join(_texts(message.blocks))):
            converted.append({"role": "system", "content": text})
    return converted


def _texts(blocks: list[ContentBlock]) -> list[str]:
    """Returns the texts of a system prompt, without Claude Code's attribution header."""
    texts = [block.text for block in blocks if block.type == "text" and block.text]
    return [text for text in texts if not text.startswith(_ATTRIBUTION_HEADER)]


def _convert_message(message: AnthropicMessage) -> list[ChatMessage]:
    """Converts a message of a user or an assistant. The results of tools become the first messages."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    blocks = message.content
    is_user = message.role == "user"
    results = [result for block in blocks if block.type == "tool_result" for result in _convert_result(block)]
    parts = [part for block in blocks if (part := _to_part(block, is_user=is_user)) is not None]
    if is_user and not parts:
        return results
    converted: ChatMessage = {"role": message.role}
    if reasoning := [block.thinking for block in blocks if block.type == "thinking" and block.thinking is not None]:
        converted["reasoning"] = "".join(reasoning)
    if calls := [_to_call(block) for block in blocks if block.type == "tool_use"]:
        converted["tool_calls"] = calls
    if parts:
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        converted["content"] = parts[0]["text"] if is_text else parts
    return [*results, converted] if is_user else [converted]


def _to_part(block: ContentBlock, *, is_user: bool) -> ChatMessage | None:
    """Returns the block as a part of a message's content. None for a block that cannot be such a part."""
    if block.type == "text" and block.text:
        return _text_part(block.text)
    if block.type == "image" and block.source is not None:
        return _image_part(block.source.as_url)
    if block.type == "tool_result" and not is_user:
        return _text_part(f"Tool result: {_result_text(block)}")
    return None


def _to_call(block: ContentBlock) -> ChatMessage:
    arguments = json.dumps(block.input or {})
    function = {"name": block.name or "", "arguments": arguments}
    return {"id": block.id or "", "type": "function", "function": function}


def _convert_result(block: ContentBlock) -> list[ChatMessage]:
    """Converts a tool's result. Text and loaded tools become tool messages. Images become a user message."""
    parts = [] if block.content is None or isinstance(block.content, str) else block.content
    call_id = block.tool_use_id or ""
    converted: list[ChatMessage] = [{"role": "tool", "tool_call_id": call_id, "content": _result_text(block)}]
    sources = [part.source for part in parts if part.type == "image"]
    images = [_image_part(source.as_url) for source in sources if source is not None]
    if images:
        converted.append({"role": "user", "content": images})
    names = [name for part in parts if part.type == "tool_reference" and (name := part.tool_name or part.name)]
    if names:
        converted.append({"role": "tool", "tool_call_id": call_id, "content": "\n".join(names)})
    return converted


def _result_text(block: ContentBlock) -> str:
    if block.content is None or isinstance(block.content, str):
        return block.content or ""
    return "\n".join(part.text or "" for part in block.content if part.type == "text")


def _text_part(text: str) -> ChatMessage:
    return {"type": "text", "text": text}


def _image_part(url: str) -> ChatMessage:
    return {"type": "image_url", "image_url": {"url": url}}
