"""Requests of /v1/messages become chat requests. tests/server/http compares them with those of vLLM."""

import pytest

from base.errors import RequestError
from server.apis.anthropic.request import CountTokensRequest
from tests.conversations.conversation import differences
from tests.server.apis.anthropic.as_chats import LINES, body_of, chat_of


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for line in LINES])
def test_a_message_becomes_a_chat(line):
    chat = chat_of(body_of(line["message"]), merges_system=line.get("merges_system", False))
    assert differences("chat", chat, line["chat"]) == []


def test_variables_of_the_template_are_passed_on():
    assert chat_of(body_of({"chat_template_kwargs": {"a": 1}}))["chat_template_kwargs"] == {"a": 1}


def test_counting_converts_the_same_conversation():
    fields = body_of({"system": "Be short.", "tools": [{"name": "bash", "input_schema": {}}]})
    counted, generated = chat_of(fields, kind=CountTokensRequest), chat_of(fields)
    assert (counted["messages"], counted["tools"]) == (generated["messages"], generated["tools"])


def test_a_call_cannot_be_required_without_tools():
    with pytest.raises(RequestError) as caught:
        chat_of(body_of({"tool_choice": {"type": "any"}}))
    assert caught.value.param == "tool_choice"
