"""OpenAI messages are turned into a template's conversation."""

import copy
from typing import Any

import pytest

from base.errors import RequestError
from server.renderers import prompts
from server.renderers.prompts import to_conversation, without_developer

TWO_PARTS = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two", "cache_control": {}}]


def converted(message: dict[str, Any], content_format: str = "string") -> dict[str, Any]:
    [result] = to_conversation([message], content_format)
    return result


def test_text_parts_are_joined_for_string_templates():
    assert converted({"role": "user", "content": TWO_PARTS}) == {"role": "user", "content": "one\ntwo"}


def test_text_becomes_a_part_for_openai_templates():
    one, two = {"type": "text", "text": "one"}, {"type": "text", "text": "two"}
    assert converted({"role": "user", "content": "one"}, "openai")["content"] == [one]
    assert converted({"role": "user", "content": TWO_PARTS}, "openai")["content"] == [one, two | {"cache_control": {}}]


def test_refusals_and_bare_strings_are_text():
    content = [{"type": "refusal", "refusal": "no"}, "never"]
    assert converted({"role": "assistant", "content": content})["content"] == "no\nnever"


def test_fields_that_only_a_template_knows_are_kept():
    part = {"type": "text", "text": "Hi", "source_lang_code": "en", "uuid": "u"}
    kept = {"type": "text", "text": "Hi", "source_lang_code": "en"}
    assert converted({"role": "user", "content": [part]}, "openai")["content"] == [kept]


@pytest.mark.parametrize("role", ["user", "system", "tool", "developer", "narrator"])
def test_null_content_is_rejected(role):
    with pytest.raises(RequestError, match=f"role '{role}' must not be null") as raised:
        converted({"role": role, "content": None})
    assert raised.value.param == "messages"


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}, {"type": "refusal", "text": "x"}])
def test_a_text_part_without_text_is_rejected(part):
    with pytest.raises(RequestError, match="must be text, got None"):
        converted({"role": "user", "content": [part]})


def test_missing_content_is_empty():
    assert converted({"role": "assistant", "content": None}) == {"role": "assistant", "content": ""}
    assert converted({"role": "assistant"}, "openai") == {"role": "assistant", "content": []}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {}},
        {"text": "no type"},
        {"type": ["text"]},
        3,
    ],
)
def test_other_parts_are_rejected(part):
    with pytest.raises(RequestError, match="text only .text, input_text, output_text, refusal, thin") as raised:
        converted({"role": "user", "content": [{"type": "text", "text": "look"}, part]})
    assert (raised.value.status, raised.value.param) == (400, "messages")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": 3}, "text or a list"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "must be text"),
        ({"content": "x"}, "needs a role"),
        ({"role": "assistant", "tool_calls": ["x"]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": 0.5}, "tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", "function": {}}]}, "type 'function'"),
    ],
)
def test_malformed_messages_are_rejected(message, words):
    with pytest.raises(RequestError, match=words):
        converted(message)


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
    prompts._warn_of_malformed_arguments.cache_clear()
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
