"""Turns a conversation in OpenAI's form into mistral-common's request, as vLLM does."""

from collections.abc import Iterator
from typing import Any

from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall

from server.errors import RequestError
from server.renderers.conversations.messages import TEXT_KEYS, Message, to_conversation
from server.renderers.prompts import ChatOptions

MistralMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage
Content = str | list[Any]
"""Text, or chunks of text and of reasoning."""

_CALL_ID_CHARS = 9
"""Length of Mistral's call ids; of longer ids from other sources, the random end is kept."""


def to_request(messages: list[Message], options: ChatOptions, **settings: Any) -> ChatCompletionRequest[Any]:
    """Builds the request; `settings` are further fields of it.

    Raises:
        RequestError: a message is malformed, or holds something other than text.
        ValidationError: a field has the wrong type (pydantic's).
    """
    checked = to_conversation(messages, "openai")
    _check_last(checked[-1]["role"], options)
    converted = [_to_message(*pair) for pair in zip(messages, checked, strict=True)]
    if options.continue_final_message:
        converted[-1] = converted[-1].model_copy(update={"prefix": True})
    tools = [_to_tool(tool["function"]) for tool in options.tools or ()]
    return ChatCompletionRequest[Any](messages=converted, tools=tools or None, **settings)


def texts_of(request: ChatCompletionRequest[Any]) -> Iterator[str]:
    """The texts of the messages: contents, reasoning and the arguments of tool calls."""
    for message in request.messages:
        if isinstance(message.content, str):
            yield message.content
        elif message.content is not None:
            yield from (chunk.thinking if isinstance(chunk, ThinkChunk) else chunk.text for chunk in message.content)
        if isinstance(message, AssistantMessage):
            yield from (call.function.arguments for call in message.tool_calls or ())


def has_thinking(request: ChatCompletionRequest[Any]) -> bool:
    """Whether a message contains reasoning."""
    contents = [message.content for message in request.messages if isinstance(message.content, list)]
    return any(isinstance(chunk, ThinkChunk) for content in contents for chunk in content)


def _check_last(role: str, options: ChatOptions) -> None:
    """Checks the last message's role: in Mistral's format it alone determines whose turn is next."""
    if options.continue_final_message and role != "assistant":
        raise RequestError(
            f"continue_final_message needs a last message of role 'assistant', got {role!r}",
            param="continue_final_message",
        )
    if role == "assistant" and not options.continue_final_message:
        raise RequestError(
            "the last message is of role 'assistant': set continue_final_message to true and add_generation_prompt to "
            "false to have it continued",
            param="messages",
        )


def _to_message(message: Message, checked: Message) -> MistralMessage:
    """`checked` is the same message from `to_conversation`, which has rejected malformed ones."""
    role, content = checked["role"], _to_content(message.get("content"))
    if role == "assistant":
        calls = [_to_call(call) for call in checked.get("tool_calls", ())]
        return AssistantMessage(content=_with_reasoning(message, content), tool_calls=calls or None)
    if content is None:
        raise RequestError(f"a message of role {role!r} needs content", param="messages")
    if role == "user":
        return UserMessage(content=content)
    if role in ("system", "developer"):
        return SystemMessage(content=content)
    if role == "tool":
        call_id = _to_call_id(message.get("tool_call_id"))
        return ToolMessage(content=content, tool_call_id=call_id, name=checked.get("name"))
    raise RequestError(
        f"messages must be of role 'system', 'developer', 'user', 'assistant' or 'tool', got {role!r}", param="messages"
    )


def _to_content(content: Any) -> Content | None:
    return content if content is None or isinstance(content, str) else [_to_chunk(part) for part in content]


def _to_chunk(part: Any) -> TextChunk | ThinkChunk:
    if isinstance(part, str):
        return TextChunk(text=part)
    kind = part["type"]
    if kind == "thinking":
        return ThinkChunk(thinking=part.get("thinking") or "", closed=part.get("closed", True))
    return TextChunk(text=part.get(TEXT_KEYS[kind]) or "")


def _with_reasoning(message: Message, content: Content | None) -> Content | None:
    """The content, preceded by the reasoning if the message has it in a field of its own."""
    fields = (message.get("reasoning"), message.get("reasoning_content"))
    reasoning = next((text for text in fields if text is not None), None)
    if reasoning is None:
        return content
    chunks: list[Any] = [TextChunk(text=content)] if isinstance(content, str) else content or []
    if any(isinstance(chunk, ThinkChunk) for chunk in chunks):
        raise RequestError(
            "a message must give its reasoning either as 'thinking' content or as 'reasoning', not both",
            param="messages",
        )
    return [ThinkChunk(thinking=reasoning), *chunks]


def _to_call(call: Message) -> ToolCall:
    call_id = _to_call_id(call.get("id"))
    function = FunctionCall(name=call["function"].get("name"), arguments=call["function"]["arguments"])
    return ToolCall(function=function) if call_id is None else ToolCall(id=call_id, function=function)


def _to_call_id(call_id: Any) -> Any:
    return call_id[-_CALL_ID_CHARS:] if isinstance(call_id, str) else call_id


def _to_tool(function: dict[str, Any]) -> Tool:
    parameters = function.get("parameters") or {}
    return Tool(
        function=Function(name=function["name"], description=function.get("description") or "", parameters=parameters)
    )
