"""OpenAI messages are turned into a template's conversation."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from base.errors import RequestError
from server.text.renderers import conversation
from server.text.renderers.conversation import to_conversation, without_developer
from tests.conversations.conversation import read_lines

LINES = [line for _, line in read_lines(Path(__file__).with_name("messages.jsonl"))]


def converted(message: dict[str, Any], content_format: str = "string") -> dict[str, Any]:
    [result] = to_conversation([message], content_format)
    return result


@pytest.mark.parametrize("line", [line for line in LINES if "becomes" in line], ids=lambda line: str(line["message"]))
def test_a_message_has_the_form_that_templates_use(line):
    before = copy.deepcopy(line["message"])
    assert converted(line["message"], line.get("format", "string")) == line["becomes"]
    assert line["message"] == before


@pytest.mark.parametrize("line", [line for line in LINES if "rejected" in line], ids=lambda line: line["rejected"])
def test_malformed_messages_are_rejected(line):
    with pytest.raises(RequestError, match=re.escape(line["rejected"])) as raised:
        converted(line["message"])
    assert (raised.value.status, raised.value.param) == (400, "messages")


def test_an_empty_list_of_messages_is_rejected():
    with pytest.raises(RequestError, match="at least one"):
        to_conversation([], "string")


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


_DEVELOPER = {"role": "developer", "content": "c", "tools": [{}]}
_SYSTEM, _USER = ({"role": role, "content": text} for role, text in (("system", "a"), ("user", "b")))


@pytest.mark.parametrize(
    ("messages", "content_format", "expected"),
    [
        ([_SYSTEM, _USER, _DEVELOPER], "string", [{"role": "system", "content": "a\n\nc"}, _USER]),
        ([_DEVELOPER], "openai", [{"role": "system", "content": [{"type": "text", "text": "c"}]}]),
        ([_USER, _SYSTEM], "string", [_USER, _SYSTEM]),
    ],
    ids=["joined to the system message", "alone", "without one, system messages stay in place"],
)
def test_developer_messages_become_one_system_message_at_the_start(messages, content_format, expected):
    assert without_developer(to_conversation(messages, content_format)) == expected
