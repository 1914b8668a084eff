"""Items of `input` become chat messages, as in vLLM. Tools become functions of a chat."""

from pathlib import Path

import msgspec
import pytest

from base.errors import RequestError
from server.apis.responses.conversion import build_conversation, continues_message
from server.apis.responses.responses_request import InputItem, ResponsesRequest
from server.apis.responses.tools import CalledTool, ResponseTools
from server.generation.generation_request import NamedFunction, NamedToolChoice
from tests.conversations.conversation import read_lines

ITEMS = Path(__file__).with_name("items.jsonl")


def call(call_id):
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}"}


def result(call_id):
    return {"type": "function_call_output", "call_id": call_id, "output": "42"}


def read(*items):
    return msgspec.convert(items, list[InputItem])


def build(*items):
    return build_conversation(None, read(*items))


@pytest.mark.parametrize("line", [pytest.param(line, id=line["why"]) for _, line in read_lines(ITEMS)])
def test_items_become_messages(line):
    assert build(*line["input"]) == line["messages"]
    assert continues_message(read(*line["input"])) == line.get("continues", False)


def test_parts_of_messages():
    image = {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "low"}
    content = [{"type": "input_text", "text": "a"}, image, {"type": "refusal", "refusal": "no"}]
    (message,) = build({"role": "user", "content": content})
    assert message["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}},
        {"type": "text", "text": "no"},
    ]


def test_a_result_needs_its_call():
    assert build(call("1"), result("1"))[-1]["role"] == "tool"
    with pytest.raises(RequestError, match="'2'"):
        build(call("1"), result("2"))


WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
COMMAND = {"type": "function", "name": "command"}
DESKTOP = {"type": "namespace", "name": "desktop", "description": "d", "tools": [{"type": "function", "name": "look"}]}
PHONE = {"type": "namespace", "name": "phone", "description": "d", "tools": [{"type": "function", "name": "look"}]}
SEARCH = {"type": "web_search", "filters": None}


def read_tools(tools, choice="auto"):
    return ResponseTools(ResponsesRequest(input="a", tools=tools, tool_choice=choice))


def test_functions_and_namespaces_are_shown():
    tools = read_tools([WEATHER, COMMAND, DESKTOP, SEARCH])
    assert [tool.function.name for tool in tools.functions] == ["weather", "command", "desktop__look"]
    assert tools.functions[0].function.strict is True
    assert tools.called("weather") == CalledTool("weather")
    assert tools.called("other") == CalledTool("other"), "the model has invented it"
    assert tools.called("desktop__look") == CalledTool("look", "desktop")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", None),
        ("none", "none"),
        ("required", "required"),
        ({"type": "web_search"}, None),
        ({"type": "function", "name": "weather"}, NamedToolChoice(function=NamedFunction("weather"))),
        ({"type": "function", "name": "look"}, NamedToolChoice(function=NamedFunction("desktop__look"))),
    ],
)
def test_choice(choice, expected):
    assert read_tools([WEATHER, COMMAND, DESKTOP, SEARCH], choice).choice == expected
    assert read_tools(None).choice == "none"


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_restrict_the_functions(mode):
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]}
    tools = read_tools([WEATHER, COMMAND], choice)
    assert [tool.function.name for tool in tools.functions] == ["weather"]
    assert tools.choice == (None if mode == "auto" else "required")


def test_a_name_in_two_namespaces_must_be_given_in_full():
    with pytest.raises(RequestError, match="desktop__look, phone__look"):
        read_tools([DESKTOP, PHONE], {"type": "function", "name": "look"})
    assert read_tools([DESKTOP, PHONE], {"type": "function", "name": "phone__look"}).choice is not None
