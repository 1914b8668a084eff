"""The blocks of an answer of /v1/messages, and its stop reason."""

from typing import Any

import pytest

from server.apis.anthropic.blocks import BlockStream, create_stop


def joined(*steps: list[Any]) -> list[dict[str, Any]]:
    return [event for step in steps for event in step]


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "content_block": block, "index": index}


def delta(index: int, **delta: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "delta": delta, "index": index}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def test_reasoning_text_and_two_calls_are_blocks_of_their_own():
    stream = BlockStream()
    events = joined(
        stream.add_thinking("Hm"),
        stream.add_thinking("m."),
        stream.add_text("I "),
        stream.add_text("look."),
        stream.add_call("a", "f"),
        stream.add_arguments('{"x":'),
        stream.add_arguments(" 1}"),
        stream.add_call("b", "g"),
        stream.add_arguments("{}"),
        stream.close(),
    )
    signature = events[3]["delta"]["signature"]
    assert len(signature) == 32
    assert events == [
        start(0, type="thinking", thinking=""),
        delta(0, type="thinking_delta", thinking="Hm"),
        delta(0, type="thinking_delta", thinking="m."),
        delta(0, type="signature_delta", signature=signature),
        stop(0),
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="I "),
        delta(1, type="text_delta", text="look."),
        stop(1),
        start(2, type="tool_use", id="a", name="f", input={}),
        delta(2, type="input_json_delta", partial_json='{"x":'),
        delta(2, type="input_json_delta", partial_json=" 1}"),
        stop(2),
        start(3, type="tool_use", id="b", name="g", input={}),
        delta(3, type="input_json_delta", partial_json="{}"),
        stop(3),
    ]


def test_text_within_a_call_follows_the_call():
    stream = BlockStream()
    stream.add_call("a", "f")
    assert stream.add_text("and ") == []
    events = joined(stream.add_arguments("{}"), stream.add_text("text"), stream.close(), stream.close())
    assert events == [
        delta(0, type="input_json_delta", partial_json="{}"),
        stop(0),
        start(1, type="text", text=""),
        delta(1, type="text_delta", text="and text"),
        stop(1),
    ]


def test_an_empty_message_has_no_events():
    assert BlockStream().close() == []


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
    stop = create_stop(finish_reason, stop_reason, has_calls=has_calls, is_call_complete=is_call_complete)
    assert (stop["stop_reason"], stop["stop_sequence"]) == expected
