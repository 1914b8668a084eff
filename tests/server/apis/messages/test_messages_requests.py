"""Fields of /v1/messages: their ranges, the fields without effect, and which blocks are rejected."""

import re
from typing import Any

import msgspec
import pytest

from base.errors import RequestError
from server.apis.messages.request import CountTokensRequest, MessagesRequest
from server.http_body.request_body import RequestDecoder

USER = {"role": "user", "content": "Hello"}
TOOL = {"name": "bash", "input_schema": {"type": "object"}}


def decode(kind: type[Any] = MessagesRequest, **fields: Any) -> Any:
    body = {"model": "smol", "max_tokens": 2048, "messages": [USER]} | fields
    return RequestDecoder(kind).decode(msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", ""),
        ("messages", "Hello"),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": [{"type": "video"}]}]),
        ("max_tokens", 0),
        ("max_tokens", None),
        ("system", 3),
        ("stop_sequences", [""]),
        ("temperature", 2.5),
        ("top_k", -2),
        ("top_p", 0),
        ("tools", [{"name": "bash"}]),
        ("tools", [{"name": "", "input_schema": {}}]),
        ("tool_choice", {"type": "tool"}),
        ("tool_choice", {"type": "named"}),
        ("thinking", {"type": "enabled", "budget_tokens": 1023}),
        ("thinking", {"type": "enabled", "budget_tokens": 2048}),
        ("thinking", {"type": "deep"}),
        ("output_config", {"effort": "minimal"}),
        ("cache_salt", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_rejected_and_named(field, value):
    with pytest.raises(RequestError) as caught:
        decode(**{field: value})
    assert re.split(r"[.[]", caught.value.param or "")[0] == field


def test_a_block_of_another_type_is_rejected_with_the_supported_ones():
    with pytest.raises(RequestError, match="'document', supported are text, image, .*, redacted_thinking") as caught:
        decode(messages=[{"role": "user", "content": [{"type": "document", "source": {}}]}])
    assert caught.value.param == "messages"


def test_the_result_of_a_tool_follows_its_call():
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "bash", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}
    assert len(decode(messages=[USER, call, result]).messages) == 3
    for messages in ([USER, result], [USER, result, call]):
        with pytest.raises(RequestError, match=r"`messages\[1\]` has the result of the tool call 'a'") as caught:
            decode(messages=messages)
        assert caught.value.param == "messages"


def test_fields_of_betas_and_cache_control_have_no_effect():
    text = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}, "citations": []}
    request = decode(
        messages=[{"role": "user", "content": [text]}],
        tools=[TOOL | {"cache_control": {"type": "ephemeral"}, "type": "custom"}],
        context_management={"edits": []},
        service_tier="auto",
    )
    assert request.messages[0].content[0].text == "Hi"
    assert request.tools[0].name == "bash"


def test_counting_needs_no_limit_of_tokens():
    body = {"model": "smol", "messages": [USER]}
    assert RequestDecoder(CountTokensRequest).decode(msgspec.json.encode(body)).messages[0].content == "Hello"


@pytest.mark.parametrize("kind", ["tool_addition", "tool_removal"])
def test_changes_of_the_tools_within_a_conversation_name_the_engine_that_has_them(kind):
    change = {"type": kind, "tool": {"type": "tool_reference", "name": "bash"}}
    with pytest.raises(RequestError, match="--engine vllm"):
        decode(messages=[USER, {"role": "system", "content": [change]}])
