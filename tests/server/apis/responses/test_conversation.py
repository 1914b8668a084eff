"""Items of `input` as chat messages; the cases of merging are vLLM's."""

import msgspec
import pytest

from base.errors import RequestError
from server.apis.responses.conversion import build_conversation, continues_message, extend_conversation
from server.apis.responses.request import InputItem

USER = {"role": "user", "content": "Hi"}
THOUGHT = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]}
SAID = {"type": "message", "role": "assistant", "content": "Hello"}


def call(call_id):
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def result(call_id, output="42"):
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def chat_call(call_id, name="f", arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def read(*items):
    return msgspec.convert(items, list[InputItem])


def build(*items, instructions=None, history=()):
    return build_conversation(instructions, list(history), read(*items))


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((THOUGHT, SAID), [{"role": "assistant", "reasoning": "Hm", "content": "Hello"}]),
        ((call("1"), call("2")), [{"role": "assistant", "tool_calls": [chat_call("1"), chat_call("2")]}]),
        ((SAID, call("1")), [{"role": "assistant", "content": "Hello", "tool_calls": [chat_call("1")]}]),
        ((SAID, SAID), [{"role": "assistant", "content": "Hello"}] * 2),
        ((THOUGHT, THOUGHT), [{"role": "assistant", "reasoning": "Hm"}] * 2),
        ((USER, SAID), [USER, {"role": "assistant", "content": "Hello"}]),
        (
            (call("1"), result("1"), call("2")),
            [
                {"role": "assistant", "tool_calls": [chat_call("1")]},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
                {"role": "assistant", "tool_calls": [chat_call("2")]},
            ],
        ),
    ],
    ids=["reasoned", "two calls", "said and called", "said twice", "thought twice", "turns", "result between calls"],
)
def test_items_of_one_turn_become_one_message(items, expected):
    assert build(*items) == expected


def test_parts_of_messages():
    image = {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "low"}
    content = [{"type": "input_text", "text": "a"}, image, {"type": "refusal", "refusal": "no"}]
    (message,) = build({"role": "user", "content": content})
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}},
        {"type": "text", "text": "no"},
    ]


def test_a_summary_stands_for_reasoning_without_text():
    (message,) = build({"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]})
    assert message == {"role": "assistant", "reasoning": "short"}


def test_custom_and_namespaced_calls_have_the_names_that_the_model_has_seen():
    custom = {"type": "custom_tool_call", "call_id": "1", "name": "run", "input": 'echo "é"'}
    (message,) = build(custom, {**call("2"), "namespace": "desktop"})
    assert message["tool_calls"] == [chat_call("1", "run", '{"input": "echo \\"é\\""}'), chat_call("2", "desktop__f")]


def test_a_result_needs_its_call():
    history = [{"role": "assistant", "tool_calls": [chat_call("1")]}]
    assert build(result("1"), history=history)[-1]["role"] == "tool"
    with pytest.raises(RequestError, match="'2'"):
        build(result("2"), history=history)


def test_the_history_has_the_output_but_no_instructions():
    output = [
        THOUGHT,
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]},
    ]
    history = extend_conversation(build(USER, instructions="Be brief."), output)
    assert history == [USER, {"role": "assistant", "content": "Hello"}]
    assert build(USER, instructions="Be kind.", history=history)[0] == {"role": "system", "content": "Be kind."}


def test_reasoning_before_a_call_is_part_of_the_history():
    output = [THOUGHT, call("1") | {"namespace": None}]
    assert extend_conversation([], output) == [{"role": "assistant", "reasoning": "Hm", "tool_calls": [chat_call("1")]}]


@pytest.mark.parametrize("status", ["in_progress", "incomplete", "completed", None])
@pytest.mark.parametrize(("item", "continues"), [(SAID, True), (THOUGHT, True), (call("1"), False)])
def test_only_an_unfinished_message_at_the_end_is_continued(item, continues, status):
    last = {**item, "status": status}
    assert continues_message(read(USER, last)) == (continues and status in ("in_progress", "incomplete"))
    assert not continues_message(read(last, USER))


def test_a_part_of_another_type_is_rejected_with_the_supported_ones():
    with pytest.raises(msgspec.ValidationError, match="'input_file', supported are input_text, .*, input_image"):
        msgspec.convert([{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}], list[InputItem])
