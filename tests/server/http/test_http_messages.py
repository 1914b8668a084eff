"""/v1/messages with the real Anthropic SDK."""

from typing import Any

import anthropic
import pytest

from server.terms.http_body.response_body import ANTHROPIC, error_response
from tests.server.http.conftest import MODEL, PATIENT_S, LiveServer

USER = {"role": "user", "content": "What is the capital of France?"}
HERMES: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": [USER]}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def connect(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENT_S)


def test_the_sdk_joins_a_stream_to_the_message_that_it_gets_whole(serve, engine, encode):
    engine.reply = encode(f"<think>\nHmm.</think>\n\nLet me look.{CALL}{CALL}")
    unlike = {"id": True, "content": {"__all__": {"id", "signature"}}}
    with connect(serve(**HERMES, reasoning_parser="deepseek_r1")) as client:
        asked = ASKED | {"tools": [{"name": "get_weather", "input_schema": {}}]}
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        message = client.messages.create(**asked)
    assert streamed.model_dump(exclude=unlike, exclude_none=True) == message.model_dump(
        exclude=unlike, exclude_none=True
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]


@pytest.mark.parametrize(
    ("status", "type"),
    [(400, "invalid_request_error"), (413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error")],
)
def test_every_status_has_anthropics_type(status, type):
    body = ANTHROPIC.to_body(error_response("m", type="T", code=status))
    assert (body["type"], body["error"].type) == ("error", type)
