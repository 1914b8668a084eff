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


def test_the_sdk_raises_an_error_that_names_the_field(server):
    with connect(server) as client, pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**ASKED, extra_body={"thread": {"type": "create"}})
    body: Any = caught.value.body
    assert body["error"]["param"] == "thread"


@pytest.mark.parametrize(
    ("status", "type"),
    [(400, "invalid_request_error"), (413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error")],
)
def test_every_status_has_anthropics_type(status, type):
    body = ANTHROPIC.to_body(error_response("m", type="T", code=status))
    assert (body["type"], body["error"].type) == ("error", type)


def test_a_loop_of_tools_sends_the_whole_conversation(serve, engine, encode, renderer):
    """The SDK requests that the conversation is kept. Otherwise, the model would see only the last turn."""
    engine.reply = encode(CALL)

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Tells the weather."""
        return f"sunny in {city}"

    with connect(serve(**HERMES)) as client:
        client.beta.messages.tool_runner(**ASKED, tools=[get_weather], max_iterations=2).until_done()
    _, (token_ids, _) = engine.requests.values()
    prompt = renderer.detokenize(token_ids)
    assert prompt.index("capital of France") < prompt.index("sunny in Paris")
