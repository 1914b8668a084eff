"""Turns a request to /v1/responses into a chat request, and its items into messages."""

from collections.abc import Iterable
from typing import Any, Final

from base.errors import RequestError
from server.apis.responses.responses_request import Content, InputItem, InputPart, ResponsesRequest, TextFormat
from server.apis.responses.tools import ResponseTools, flat_name
from server.generation.generation_request import ChatRequest, JsonSchemaFormat, ResponseFormat, SamplingFields

Message = dict[str, Any]

FIELDS: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
    "image_url": "input_image",
}
"""Field of a chat request -> field of a request to /v1/responses."""


def to_chat_request(request: ResponsesRequest, messages: list[Message], tools: ResponseTools) -> ChatRequest:
    """Returns the chat request with the same meaning. Decoding has already checked the values."""
    continues = continues_message(request.items)
    shared = {name: getattr(request, name) for name in SamplingFields.__struct_fields__}
    return ChatRequest(
        **shared,
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        logprobs=request.num_logprobs is not None,
        top_logprobs=request.num_logprobs,
        truncate_prompt_tokens=-1 if request.truncation == "auto" else None,
        response_format=_response_format(None if request.text is None else request.text.format),
        tools=tools.functions or None,
        tool_choice=tools.choice,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        include_reasoning=request.include_reasoning,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def _response_format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    named = JsonSchemaFormat(
        name=str(wanted.name), description=wanted.description, schema=wanted.schema, strict=wanted.strict
    )
    return ResponseFormat(type="json_schema", json_schema=named)


def build_conversation(instructions: str | None, items: list[InputItem]) -> list[Message]:
    """Returns the messages of a request.

    Raises:
        RequestError: a tool's output belongs to no call.
    """
    system: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    messages = [*system, *_merge(map(_to_message, items))]
    _check_outputs(messages)
    return messages


def continues_message(items: list[InputItem]) -> bool:
    """Whether the last item is an unfinished message of the model, which is to be continued."""
    last = items[-1]
    return last.type in ("message", "reasoning") and last.status in ("in_progress", "incomplete")


def _to_message(item: InputItem) -> Message:
    match item.type:
        case "function_call":
            name = flat_name(item.namespace, str(item.name))
            call = {"id": item.call_id, "type": "function", "function": {"name": name, "arguments": item.arguments}}
            return {"role": "assistant", "tool_calls": [call]}
        case "function_call_output":
            return {"role": "tool", "content": _content(item.output), "tool_call_id": item.call_id}
        case "reasoning":
            parts = item.content if isinstance(item.content, list) else []
            texts = [part.shown_text for part in (*parts, *item.summary)]
            return {"role": "assistant", "reasoning": texts[0] if texts else ""}
        case _:
            return {"role": item.role, "content": _content(item.content)}


def _content(content: Content | None) -> str | list[Message]:
    if isinstance(content, str):
        return content
    return [_part(part) for part in content or ()]


def _part(part: InputPart) -> Message:
    if part.type == "input_image":
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.shown_text}


def _merge(messages: Iterable[Message]) -> list[Message]:
    """Joins adjacent messages that are reasoning, text and calls of one turn of the model."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if message["role"] != "assistant" or last.get("role") != "assistant":
            merged.append(message)
        elif "tool_calls" in message:
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        elif message.keys() & last.keys() == {"role"}:
            last.update(message)
        else:
            merged.append(message)
    return merged


def _check_outputs(messages: list[Message]) -> None:
    calls: set[str] = set()
    for message in messages:
        calls.update(call["id"] for call in message.get("tool_calls", ()))
        call_id = message.get("tool_call_id")
        if call_id is not None and call_id not in calls:
            raise RequestError(f"No tool call found for tool output with call_id '{call_id}'.", param="input")
