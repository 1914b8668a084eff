"""Tool choices that cannot be forced."""

from typing import Any

import msgspec
import pytest

from server.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.guided import find_constraint
from server.http_body.decoding import RequestDecoder

WEATHER = {"type": "function", "function": {"name": "get_weather"}}
TIME = {"type": "function", "function": {"name": "get_time"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"tools": []}, "must not be an empty array"),
        ({"tool_choice": "required"}, "`tools` must be set"),
        ({"tool_choice": NAMED}, "`tools` must be set"),
        ({"tools": [TIME], "tool_choice": NAMED}, "'get_weather', which is not in `tools`"),
        ({"tools": [TIME], "tool_choice": "any"}, "expected one of"),
        ({"tools": [TIME], "tool_choice": {"type": "function"}}, "Missing required parameter"),
        ({"tools": [{"type": "web"}], "tool_choice": "none"}, "expected one of 'function'"),
        (
            {"tools": [WEATHER], "tool_choice": NAMED, "structured_outputs": {"regex": "a"}},
            "either use constraints for structured outputs or tools, not both",
        ),
        (
            {
                "tools": [{"function": {"name": "f", "parameters": {"type": "string"}}}],
                "tool_choice": "required",
            },
            "must be of type 'object'",
        ),
        (
            {
                "tools": [
                    {"function": {"name": "f", "parameters": {"$defs": {"a": {"type": "integer"}}}}},
                    {"function": {"name": "g", "parameters": {"$defs": {"a": {"type": "string"}}}}},
                ],
                "tool_choice": "required",
            },
            "multiple schemas",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tool_choice_that_cannot_be_forced_is_rejected(fields: dict[str, Any], part: str) -> None:
    body = msgspec.json.encode({"messages": [{"role": "user", "content": "a"}]} | fields)
    with pytest.raises(RequestError) as caught:
        find_constraint(RequestDecoder(ChatRequest).decode(body))
    assert caught.value.status == 400
    assert part in caught.value.message
