"""Turns messages in OpenAI's form into the form that chat templates read."""

import logging
from functools import cache
from typing import Any, Literal

from base.errors import RequestError
from base.json_depth import read_json

logger = logging.getLogger(__name__)

Message = dict[str, Any]
ContentFormat = Literal["string", "openai"]
"""How a chat template expects the content of a message: as a text, or as a list of parts."""
_FEW_PARTS = 1024
TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
"""Type of a content part -> the key of the part's text."""
_IMAGE_TYPES = ("image_url", "input_image")
_MAY_BE_NULL = ("assistant", "function")
"""Roles whose messages may have null as content, because they call a tool."""

_PART_FIELDS = frozenset(
    {
        *("type", "text", "refusal", "thinking", "closed", "data", "file", "name", "uuid", "prompt_cache_breakpoint"),
        *(f"{kind}_{form}" for kind in ("image", "audio", "video") for form in ("url", "embeds")),
        *("image_pil", "input_audio"),
    }
)
"""The fields of content parts in the APIs of OpenAI and vLLM."""


def to_conversation(
    messages: list[Message], content_format: ContentFormat, image_token: str | None = None
) -> list[Message]:
    """Creates new messages with the fields that templates use, and with contents in the template's format.

    Images become `{"type": "image"}`. If the template expects text, an image becomes the model's
    `image_token` on a line of its own before the message's text.

    Raises:
        RequestError: a message is malformed, or has a part that is not text. Images are allowed if there is
            an `image_token`.
    """
    if not messages:
        raise RequestError("messages must hold at least one message", param="messages")
    return [_to_message(message, content_format, image_token) for message in messages]


def without_developer(conversation: list[Message]) -> list[Message]:
    """Turns developer messages into system messages, for templates that have no developer role.

    If a system message would follow the first message, all system messages are merged into one at the start.
    """
    if all(message["role"] != "developer" for message in conversation):
        return conversation
    converted = [_as_system(message) if message["role"] == "developer" else message for message in conversation]
    if all(message["role"] != "system" for message in converted[1:]):
        return converted
    contents = [message["content"] for message in converted if message["role"] == "system"]
    text = "\n\n".join(filter(None, map(_joined, contents)))
    content = text if isinstance(contents[0], str) else _text_parts([text])
    opening = {"role": "system", "content": content}
    return [opening, *(message for message in converted if message["role"] != "system")]


def _as_system(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "tools"} | {"role": "system"}


def _to_message(message: Message, content_format: ContentFormat, image_token: str | None) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise RequestError(f"each message needs a role, got {role!r}", param="messages")
    if message.get("content", "") is None and role not in _MAY_BE_NULL:
        raise RequestError(f"the content of a message of role {role!r} must not be null", param="messages")
    content = _to_content(message.get("content"), content_format, image_token)
    result: Message = {"role": role, "content": _joined(content) if role == "tool" else content}
    if role == "assistant":
        result.update(_assistant_fields(message))
    if role == "developer" and message.get("tools"):
        result["tools"] = message["tools"]
    if role == "tool" and "tool_call_id" in message:
        result["tool_call_id"] = message["tool_call_id"]
    if isinstance(message.get("name"), str):
        result["name"] = message["name"]
    return result


def _to_content(content: Any, content_format: ContentFormat, image_token: str | None) -> str | list[Message]:
    if content is None:
        content = []
    if isinstance(content, str):
        return content if content_format == "string" else _text_parts([content])
    if not isinstance(content, list):
        raise RequestError(f"message content must be text or a list of parts, got {content!r}", param="messages")
    takes_images = image_token is not None
    images = [takes_images and is_image(part) for part in content]
    pairs = zip(content, images, strict=True)
    texts = [None if is_image else _text_of(part, image_token) for part, is_image in pairs]
    if content_format == "string":
        opening = [image_token or ""] * sum(images)
        return "\n".join(opening + [text for text in texts if text])
    return [
        ({"type": "image"} if is_image else {"type": "text", "text": text}) | _extra_fields(part)
        for part, text, is_image in zip(content, texts, images, strict=True)
    ]


def is_image(part: Any) -> bool:
    """Whether a part of a message's content is an image, in any form of the API."""
    return isinstance(part, dict) and part.get("type") in _IMAGE_TYPES


def _extra_fields(part: Any) -> Message:
    """Returns the fields of a part that only the model's template reads, such as a language code."""
    if not isinstance(part, dict) or part.keys() <= _PART_FIELDS:
        return {}
    return {name: value for name, value in part.items() if name not in _PART_FIELDS}


def _text_parts(texts: list[str]) -> list[Message]:
    return [{"type": "text", "text": text} for text in texts]


def _text_of(part: Any, image_token: str | None) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    key = TEXT_KEYS.get(kind) if isinstance(kind, str) else None
    if key is None or not isinstance(part, dict):
        served_for = "text only" if image_token is None else "text and images only"
        kinds = ", ".join((*TEXT_KEYS, *(_IMAGE_TYPES if image_token is not None else ())))
        raise RequestError(
            f"message content of type `{kind}` is not supported. This model is served for {served_for} ({kinds}). "
            "`--engine vllm` may support others",
            param="messages",
        )
    text = part.get(key)
    if not isinstance(text, str):
        raise RequestError(f"the {key!r} of a content part must be text, got {text!r}", param="messages")
    return text


def _joined(content: str | list[Message]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _assistant_fields(message: Message) -> Message:
    fields: Message = {}
    if (reasoning := message.get("reasoning") or message.get("reasoning_content")) is not None:
        fields = {"reasoning": reasoning, "reasoning_content": reasoning}
    if calls := message.get("tool_calls"):
        if not isinstance(calls, list):
            raise RequestError(f"tool_calls must be a list, got {calls!r}", param="messages")
        fields["tool_calls"] = [_to_tool_call(call) for call in calls]
    return fields


def _to_tool_call(call: Any) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise RequestError(f"tool_calls must be of type 'function', got {call!r}", param="messages")
    return {**call, "function": {**function, "arguments": _to_arguments(function)}}


def _to_arguments(function: Message) -> Message:
    """Returns the function's arguments as an object. Malformed arguments become {}.

    The model has written the arguments, so an error would make it impossible to continue the conversation.
    """
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = read_json(arguments)
        except ValueError:
            arguments = None
    if isinstance(arguments, dict):
        return arguments
    _warn_of_malformed_arguments()
    return {}


@cache
def _warn_of_malformed_arguments() -> None:
    """Warns once per process, because a client sends the same conversation again and again."""
    logger.warning(
        "The arguments of a tool call in a request's messages are not a JSON object. The chat template gets {} instead"
    )


def has_few_parts(messages: list[dict[str, Any]]) -> bool:
    """Whether all parts of the messages can be read in less than a millisecond."""
    return sum(len(parts_of(message)) for message in messages) <= _FEW_PARTS


def parts_of(message: dict[str, Any]) -> list[Any]:
    """Returns the parts of a message's content, or an empty list if the content is a text."""
    content = message.get("content")
    return content if isinstance(content, list) else []
