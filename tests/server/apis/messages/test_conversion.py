"""Requests of /v1/messages as chat requests."""

import json
from typing import Any

import msgspec
import pytest

from base.errors import RequestError
from server.apis.messages.conversion import to_chat_request
from server.apis.messages.request import CountTokensRequest, MessagesRequest
from server.generation.request import ChatRequest, NamedToolChoice
from server.http_body.request_body import RequestDecoder

USER = {"role": "user", "content": "Hello"}
HEADER = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=d1d48;"}
PNG = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
PNG_URL = "data:image/png;base64,AAAA"


def convert(*messages: Any, kind: type[Any] = MessagesRequest, merges_system: bool = False, **fields: Any) -> Any:
    body = {"model": "smol", "max_tokens": 4096, "messages": messages or [USER]} | fields
    request = RequestDecoder(kind).decode(msgspec.json.encode(body))
    return to_chat_request(request, merges_system=merges_system)


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": blocks}


def result(content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "call_1", "content": content}


def test_all_fields_of_generation_are_passed_on():
    request = convert(
        stream=True,
        stop_sequences=["###"],
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        chat_template_kwargs={"a": 1},
        cache_salt="salt",
    )
    assert request == ChatRequest(
        model="smol",
        messages=[USER],
        max_tokens=4096,
        stream=True,
        stop=["###"],
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        chat_template_kwargs={"a": 1},
        cache_salt="salt",
    )


def test_counting_converts_the_same_conversation():
    fields = {"system": "Be short.", "tools": [{"name": "bash", "input_schema": {}}]}
    counted, generated = convert(kind=CountTokensRequest, **fields), convert(**fields)
    assert counted.messages == generated.messages
    assert counted.tools == generated.tools


@pytest.mark.parametrize(
    ("source", "url"),
    [
        (PNG, PNG_URL),
        ({"data": "AAAA"}, "data:image/jpeg;base64,AAAA"),
        ({"type": "url", "url": "https://example.com/a.png"}, "https://example.com/a.png"),
    ],
    ids=["base64", "no-type", "url"],
)
def test_images(source, url):
    request = convert(user(text("What is this?"), {"type": "image", "source": source}))
    assert request.messages == [{"role": "user", "content": [text("What is this?"), image(url)]}]


def test_a_message_of_one_text_has_it_as_its_content():
    assert convert(user(text("Hi"))).messages == [{"role": "user", "content": "Hi"}]


def results_of(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the results of a call become, together with what else their message has."""
    call = {"type": "tool_use", "id": "call_1", "name": "bash", "input": {}}
    messages: list[dict[str, Any]] = convert({"role": "assistant", "content": [call]}, user(*blocks)).messages
    return messages[1:]


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": content}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (
            [text("Go on."), result("sunny"), result([text("a"), text("b")]), result(None)],
            [tool("sunny"), tool("a\nb"), tool(""), {"role": "user", "content": "Go on."}],
        ),
        (
            [result([text("see"), {"type": "image", "source": PNG}, {"type": "tool_reference", "tool_name": "bash"}])],
            [tool("see"), {"role": "user", "content": [image(PNG_URL)]}, tool("bash")],
        ),
    ],
    ids=["before the text of their message", "images and names of tools follow"],
)
def test_results_of_tools_are_messages(blocks, expected):
    assert results_of(*blocks) == expected


def test_an_answer_with_reasoning_text_and_calls():
    blocks = [
        {"type": "thinking", "thinking": "First. ", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "Second.", "signature": "x"},
        text("I look."),
        {"type": "tool_use", "id": "call_1", "name": "bash", "input": {"command": "ls"}},
    ]
    (message,) = convert({"role": "assistant", "content": blocks}).messages
    assert message["reasoning"] == "First. Second."
    assert message["content"] == "I look."
    (call,) = message["tool_calls"]
    assert call["id"] == "call_1"
    assert call["function"]["name"] == "bash"
    assert json.loads(call["function"]["arguments"]) == {"command": "ls"}


def test_an_answer_of_calls_alone_has_no_content():
    block = {"type": "tool_use", "id": "call_1", "name": "bash", "input": {}}
    (message,) = convert({"role": "assistant", "content": [block]}).messages
    assert "content" not in message


def test_system_blocks_become_one_message_without_the_attribution_header():
    cached = text("You are an agent.") | {"cache_control": {"type": "ephemeral"}}
    request = convert(system=[HEADER, cached, text(" Be short.")])
    assert request.messages == [{"role": "system", "content": "You are an agent. Be short."}, USER]
    assert convert(system=[HEADER]).messages == [USER]
    assert convert(system="").messages == [USER]


def test_system_messages_stay_in_their_place_or_move_to_the_start():
    messages = (USER, {"role": "system", "content": [HEADER, text("Now plan.")]}, {"role": "system", "content": ""})
    request = convert(*messages, system="Be short.")
    assert request.messages == [
        {"role": "system", "content": "Be short."},
        USER,
        {"role": "system", "content": "Now plan."},
    ]
    merged = convert(*messages, system="Be short.", merges_system=True)
    assert merged.messages == [{"role": "system", "content": "Be short.Now plan."}, USER]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
    ],
    ids=lambda value: str(value and value["type"]) if isinstance(value, dict) else None,
)
def test_tools_and_their_choice(choice, expected):
    tool = {"name": "bash", "description": "Runs", "input_schema": {"properties": {"command": {}}}, "strict": True}
    request = convert(tools=[tool], tool_choice=choice)
    (converted,) = msgspec.to_builtins(request.tools)
    assert converted["function"] == {
        "name": "bash",
        "description": "Runs",
        "parameters": {"type": "object", "properties": {"command": {}}},
        "strict": True,
    }
    assert request.tool_choice == expected


def test_a_named_tool_alone():
    choice = {"type": "tool", "name": "bash", "disable_parallel_tool_use": True}
    request = convert(tools=[{"name": "bash", "input_schema": {}}], tool_choice=choice)
    assert isinstance(request.tool_choice, NamedToolChoice)
    assert request.tool_choice.function.name == "bash"
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize("fields", [{"tools": []}, {"tools": [], "tool_choice": {"type": "auto"}}, {}])
def test_no_tools(fields):
    request = convert(**fields)
    assert request.tools is None
    assert request.tool_choice == "none"


def test_a_call_cannot_be_required_without_tools():
    with pytest.raises(RequestError) as caught:
        convert(tool_choice={"type": "any"})
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "effort", "budget"),
    [
        ({}, None, None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "none", None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}, None, 1024),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low", None),
    ],
    ids=["absent", "disabled", "enabled", "adaptive"],
)
def test_thinking(fields, effort, budget):
    request = convert(**fields)
    assert (request.reasoning_effort, request.thinking_token_budget) == (effort, budget)


def test_a_schema_of_the_answer():
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    request = convert(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert request.response_format.json_schema.schema == schema
    assert convert(output_config={"format": {"schema": None}}).response_format is None


def test_deferred_tools_are_marked():
    tools = [{"name": "bash", "input_schema": {}}, {"name": "search", "input_schema": {}, "defer_loading": True}]
    deferred = [tool.function.defer_loading is True for tool in convert(USER, tools=tools).tools]
    assert deferred == [False, True]
