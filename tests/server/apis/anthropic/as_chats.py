"""Reads as_chats.jsonl. Each line has a request of /v1/messages and the chat request that it becomes."""

from pathlib import Path
from typing import Any, Final

import msgspec

from server.apis.anthropic.conversion import to_chat_request
from server.apis.anthropic.request import AnthropicRequest
from server.terms.http_body.request_body import RequestDecoder
from tests.conversations.conversation import read_lines

LINES: Final = [line for _, line in read_lines(Path(__file__).with_name("as_chats.jsonl"))]


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "smol", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]} | fields


def chat_of(body: dict[str, Any], *, kind: type[Any] = AnthropicRequest, merges_system: bool = False) -> dict[str, Any]:
    """The chat request that the server makes of this body, without nulls."""
    request = RequestDecoder(kind).decode(msgspec.json.encode(body))
    chat = msgspec.to_builtins(to_chat_request(request, merges_system=merges_system))
    return dict(without_nulls(chat))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list | tuple) else value
