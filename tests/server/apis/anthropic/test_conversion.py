"""Requests of /v1/messages become the chat requests that vLLM makes of them, unless a line says otherwise.

A line of as_chats.jsonl has a request and the chat request that it becomes.
"""

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from base.errors import RequestError
from server.apis.anthropic.conversion import to_chat_request
from server.apis.anthropic.messages_request import AnthropicRequest
from server.apis.anthropic.serving import BlockStream
from server.terms.http_body.request_body import RequestDecoder
from tests.conversations.conversation import differences, read_lines

LINES: Final = [line for _, line in read_lines(Path(__file__).with_name("as_chats.jsonl"))]


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "smol", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]} | fields


def chat_of(body: dict[str, Any], *, merges_system: bool = False) -> dict[str, Any]:
    """The chat request that the server makes of this body, without nulls."""
    request = RequestDecoder(AnthropicRequest).decode(msgspec.json.encode(body))
    chat = msgspec.to_builtins(to_chat_request(request, merges_system=merges_system))
    return dict(without_nulls(chat))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(member) for member in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for line in LINES])
def test_a_message_becomes_a_chat(line):
    chat = chat_of(body_of(line["message"]), merges_system=line.get("merges_system", False))
    assert differences("chat", chat, line["chat"]) == []


def test_a_call_cannot_be_required_without_tools():
    with pytest.raises(RequestError) as caught:
        chat_of(body_of({"tool_choice": {"type": "any"}}))
    assert caught.value.param == "tool_choice"


def test_text_within_a_call_follows_the_call():
    stream = BlockStream()
    assert BlockStream().close() == []
    stream.add_call("a", "f")
    assert stream.add_text("and ") == []
    events = [*stream.add_arguments("{}"), *stream.add_text("text"), *stream.close(), *stream.close()]
    stop = "content_block_stop"
    assert [(event["type"], event["index"]) for event in events] == [
        ("content_block_delta", 0),
        (stop, 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        (stop, 1),
    ]
    assert events[3]["delta"]["text"] == "and text"


@pytest.mark.parametrize(
    ("arguments", "is_complete"),
    [("{}", True), ('{"a": 1', False), ("[]", False), pytest.param("[" * 100_000, False, id="deep")],
)
def test_a_call_is_complete_with_an_object_of_arguments(arguments, is_complete):
    stream = BlockStream()
    stream.add_call("a", "f")
    stream.add_arguments(arguments)
    stream.close()
    assert stream.has_calls
    assert stream.is_call_complete is is_complete


@pytest.mark.parametrize(
    ("finish_reason", "stop_reason", "has_calls", "is_call_complete", "expected"),
    [
        ("stop", None, False, False, ("end_turn", None)),
        ("stop", 7, False, False, ("end_turn", None)),
        ("stop", "###", False, False, ("stop_sequence", "###")),
        ("stop", "###", True, False, ("stop_sequence", "###")),
        ("stop", "###", True, True, ("tool_use", None)),
        ("stop", None, True, False, ("tool_use", None)),
        ("tool_calls", None, True, True, ("tool_use", None)),
        ("length", "###", True, True, ("max_tokens", None)),
        ("abort", None, False, False, (None, None)),
    ],
)
def test_why_a_message_ends(finish_reason, stop_reason, has_calls, is_call_complete, expected):
    stream = BlockStream()
    stream.has_calls, stream.is_call_complete = has_calls, is_call_complete
    stop = stream.stop(finish_reason, stop_reason)
    assert (stop["stop_reason"], stop["stop_sequence"]) == expected
