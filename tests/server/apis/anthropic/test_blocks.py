"""The blocks of an answer of /v1/messages, and its stop reason."""

import pytest

from server.apis.anthropic.serving import BlockStream


def test_text_within_a_call_follows_the_call():
    stream = BlockStream()
    assert BlockStream().close() == []
    stream.add_call("a", "f")
    assert stream.add_text("and ") == []
    events = [*stream.add_arguments("{}"), *stream.add_text("text"), *stream.close(), *stream.close()]
    stop = "content_block_stop"
    assert [(event["type"], event["index"]) for event in events] == [
        ("content_block_delta", 0), (stop, 0), ("content_block_start", 1), ("content_block_delta", 1), (stop, 1)
    ]  # fmt: skip
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
