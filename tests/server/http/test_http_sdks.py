"""/v1/messages with the real Anthropic SDK, /v1/responses with the helpers of the real `openai` client."""

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from server.terms.http_body.response_body import ANTHROPIC, error_response
from tests.server.http.conftest import MODEL, PATIENT_S, TEXT, LiveServer

pytestmark = pytest.mark.thorough

if TYPE_CHECKING:
    from anthropic import Anthropic

USER = {"role": "user", "content": "What is the capital of France?"}
HERMES: dict[str, Any] = {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
ASKED: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": [USER]}
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def connect(server: LiveServer) -> "Anthropic":
    from anthropic import Anthropic  # an import of 3 s, which only the test's own worker needs

    return Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENT_S)


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


class City(BaseModel):
    name: str


def test_client_parses_structured_output(client, engine, encode):
    engine.reply = encode('{"name": "Paris"}')
    response = client.responses.parse(model="smol", input=USER["content"], text_format=City)
    assert response.output_parsed == City(name="Paris")
    ((_, params),) = engine.requests.values()
    assert params.guided.kind == "json_schema"


def test_clients_stream_helper_accepts_all_events(client):
    with client.responses.stream(model="smol", input=USER["content"]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == TEXT
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == TEXT
    assert [event.response.status for event in events[:2]] == ["in_progress", "in_progress"]
