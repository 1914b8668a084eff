"""Tools of /v1/responses become functions of a chat. Also the choice of a tool."""

import pytest

from base.errors import RequestError
from server.apis.responses.request import ResponsesRequest
from server.apis.responses.tools import CalledTool, ResponseTools
from server.generation.request import NamedFunction, NamedToolChoice

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
COMMAND = {"type": "function", "name": "command"}
DESKTOP = {"type": "namespace", "name": "desktop", "description": "d", "tools": [{"type": "function", "name": "look"}]}
PHONE = {"type": "namespace", "name": "phone", "description": "d", "tools": [{"type": "function", "name": "look"}]}
SEARCH = {"type": "web_search", "filters": None}


def read(tools, choice="auto"):
    return ResponseTools(ResponsesRequest(input="a", tools=tools, tool_choice=choice))


def test_functions_and_namespaces_are_shown():
    tools = read([WEATHER, COMMAND, DESKTOP, SEARCH])
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
    assert read([WEATHER, COMMAND, DESKTOP, SEARCH], choice).choice == expected
    assert read(None).choice == "none"


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_restrict_the_functions(mode):
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "weather"}]}
    tools = read([WEATHER, COMMAND], choice)
    assert [tool.function.name for tool in tools.functions] == ["weather"]
    assert tools.choice == (None if mode == "auto" else "required")


def test_a_name_in_two_namespaces_must_be_given_in_full():
    with pytest.raises(RequestError, match="desktop__look, phone__look"):
        read([DESKTOP, PHONE], {"type": "function", "name": "look"})
    assert read([DESKTOP, PHONE], {"type": "function", "name": "phone__look"}).choice is not None
