"""Decodes completion and chat requests from the fields that a test gives. Also has tools for requests."""

from typing import Any

import msgspec

from server.generation.completion_request import CompletionRequest
from server.generation.request import ChatRequest
from server.terms.http_body.request_body import RequestDecoder
from server.terms.limits import LimitsConfig

Model = type[CompletionRequest] | type[ChatRequest]

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


def decode(model: Model, limits: LimitsConfig | None = None, **fields: Any) -> Any:
    """A request with these fields. The default prompt is `a`."""
    content = {"prompt": "a"} if model is CompletionRequest else {"messages": [{"role": "user", "content": "a"}]}
    return RequestDecoder(model, limits=limits).decode(msgspec.json.encode(content | fields))
