"""OpenAI messages are turned into a template's conversation."""

import copy
from typing import Any

import pytest

from base.errors import RequestError
from server.text.renderers import conversation
from server.text.renderers.conversation import to_conversation, without_developer

TWO_PARTS = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two", "cache_control": {}}]


def converted(message: dict[str, Any], content_format: str = "string") -> dict[str, Any]:
    [result] = to_conversation([message], content_format)
    return result


ONE, TWO = ({"type": "text", "text": text} for text in ("one", "two"))


@pytest.mark.parametrize(
    ("content", "content_format", "expected"),
    [
        (TWO_PARTS, "string", "one\ntwo"),
        ("one", "openai", [ONE]),
        (TWO_PARTS, "openai", [ONE, TWO | {"cache_control": {}}]),
        ([{"type": "refusal", "refusal": "no"}, "never"], "string", "no\nnever"),
        ([ONE | {"source_lang_code": "en", "uuid": "u"}], "openai", [ONE | {"source_lang_code": "en"}]),
    ],
    ids=["joined", "a part", "parts", "refusal and bare text", "fields of a template"],
)
def test_content_has_the_format_of_the_template(content, content_format, expected):
    assert converted({"role": "user", "content": content}, content_format) == {"role": "user", "content": expected}


def test_missing_content_is_empty():
    assert converted({"role": "assistant", "content": None}) == {"role": "assistant", "content": ""}
    assert converted({"role": "assistant"}, "openai") == {"role": "assistant", "content": []}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        *(
            ({"role": role, "content": None}, f"role '{role}' must not be null")
            for role in ("user", "system", "tool", "developer", "narrator")
        ),
        (user({"type": "text"}), "must be text, got None"),
        (user({"type": "text", "text": None}), "must be text, got None"),
        (user({"type": "refusal", "text": "x"}), "must be text, got None"),
        (user({"type": "text", "text": 3}), "must be text"),
        (user(ONE, {"type": "image_url", "image_url": {"url": "data:"}}), "text only"),
        (user({"type": "input_audio", "input_audio": {}}), "text only"),
        (user({"text": "no type"}), r"text only .text, input_text, output_text, refusal, thin"),
        (user({"type": ["text"]}), "text only"),
        (user(3), "text only"),
        ({"role": "user", "content": 3}, "text or a list"),
        ({"content": "x"}, "needs a role"),
        ({"role": "assistant", "tool_calls": ["x"]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": 0.5}, "tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "function": {}}]}, "type 'function'"),
    ],
)
def test_malformed_messages_are_rejected(message, words):
    with pytest.raises(RequestError, match=words) as raised:
        converted(message)
    assert (raised.value.status, raised.value.param) == (400, "messages")


def test_an_empty_list_of_messages_is_rejected():
    with pytest.raises(RequestError, match="at least one"):
        to_conversation([], "string")


def test_arguments_of_tool_calls_become_objects():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    before = copy.deepcopy(message)
    assert converted(message)["tool_calls"] == [{**call, "function": {"name": "f", "arguments": {"x": 1}}}]
    assert message == before


@pytest.mark.parametrize("arguments", [None, "", "{oops", "[1]", "3", pytest.param("[" * 100_000, id="deep")])
def test_unusable_arguments_become_an_empty_object(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    [result] = converted({"role": "assistant", "tool_calls": [call]})["tool_calls"]
    assert result["function"]["arguments"] == {}


def test_unusable_arguments_are_logged_once_per_process(caplog):
    conversation._warn_of_malformed_arguments.cache_clear()
    for _ in range(3):
        converted({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}] * 2})
    [record] = caplog.records
    assert "not a JSON object" in record.getMessage()


def test_the_fields_that_templates_use_are_kept():
    assert converted(
        {"role": "tool", "content": TWO_PARTS, "tool_call_id": "1", "name": "f", "extra": 1}, "openai"
    ) == {
        "role": "tool",
        "content": "one\ntwo",
        "tool_call_id": "1",
        "name": "f",
    }
    thinking = converted({"role": "assistant", "content": "x", "reasoning_content": "hm", "tool_calls": []})
    assert thinking == {"role": "assistant", "content": "x", "reasoning": "hm", "reasoning_content": "hm"}
    assert converted({"role": "developer", "content": "x", "tools": [{}]})["tools"] == [{}]


def test_developer_messages_become_one_system_message_at_the_start():
    conversation = to_conversation(
        [
            {"role": "system", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "developer", "content": "c", "tools": [{}]},
        ],
        "string",
    )
    assert without_developer(conversation) == [
        {"role": "system", "content": "a\n\nc"},
        {"role": "user", "content": "b"},
    ]


def test_a_developer_message_at_the_start_becomes_a_system_message():
    conversation = to_conversation([{"role": "developer", "content": "c", "tools": [{}]}], "openai")
    assert without_developer(conversation) == [{"role": "system", "content": [{"type": "text", "text": "c"}]}]


def test_without_developer_messages_system_messages_stay_in_place():
    conversation = [{"role": "user", "content": "b"}, {"role": "system", "content": "a"}]
    assert without_developer(conversation) == conversation
