"""Parts of a model's output become output items and events."""

import msgspec
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from server.apis.responses.output import OutputWriter
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.tools import ResponseTools
from server.generation.chat import ToolCallPart
from server.generation.logprobs import ChatLogprob
from server.text.parsers.base import Content, Reasoning

TOOLS = [{"type": "function", "name": "f", "parameters": {}}]
SCHEMA = TypeAdapter(ResponseStreamEvent)


def write(*deltas, logprobs=()):
    """The events and items of an output that arrives in these lists of parts."""
    writer = OutputWriter(ResponseTools(ResponsesRequest(input="a", tools=TOOLS)))
    events = [event for parts in deltas for event in writer.add(parts, list(logprobs))] + writer.finish()
    for event in events:
        SCHEMA.validate_python(msgspec.to_builtins(event))
    return [event["type"].removeprefix("response.") for event in events], events, writer.items


def start(index, name="f", arguments=""):
    return ToolCallPart(index, f"call-{index}", name, arguments)


def more(index, arguments):
    return ToolCallPart(index, None, None, arguments)


def test_reasoning_text_and_calls_follow_one_another():
    names, events, items = write(
        [Reasoning("a"), Reasoning("b")], [Content("c")], [start(0, arguments="{"), more(0, "}"), start(1)], []
    )
    assert names == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert [event["output_index"] for event in events] == [0] * 7 + [1] * 6 + [2] * 5 + [3] * 3
    reasoning, message, first, second = items
    assert (reasoning["content"][0]["text"], message["content"][0]["text"]) == ("ab", "c")
    assert (first["arguments"], first["call_id"], second["arguments"]) == ("{}", "call-0", "")
    assert [item["id"].partition("_")[0] for item in items] == ["rs", "msg", "fc", "fc"]


def test_events_of_an_item_have_its_id():
    _, events, (item,) = write([Content("a")], [Content("b")])
    assert {event["item"]["id"] if "item" in event else event["item_id"] for event in events} == {item["id"]}


def test_spaces_around_calls_are_no_message():
    _, _, items = write([Content("\n")], [start(0)], [Content("\n\n")], [start(1)], [Content("\n")])
    assert [item["arguments"] for item in items] == ["", ""]


@pytest.mark.parametrize("texts", [("\n", " a"), ("\n a",)])
def test_spaces_before_text_belong_to_it(texts):
    _, _, (item,) = write(*([Content(text)] for text in texts))
    assert item["content"][0]["text"] == "\n a"


def test_an_output_of_spaces_is_a_message():
    assert write([Content(" ")], [Content("\n")])[2][0]["content"][0]["text"] == " \n"


def test_an_empty_output_has_no_item():
    assert write([Content("")], []) == ([], [], [])


def test_log_probabilities_belong_to_the_next_text_of_a_message():
    entry = ChatLogprob("t", -1.0, [116], [])
    _, _, (_, message) = write([Reasoning("a")], [], [Content("b")], [Content("")], [Content("c")], logprobs=[entry])
    assert message["content"][0]["logprobs"] == [entry] * 4
