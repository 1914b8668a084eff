"""Calls of the hermes format, in texts that are cut everywhere."""

import json

import pytest

from server.parsers.base import CallArguments, CallStart, Content
from server.parsers.tools.json_formats import HermesParser
from tests.server.parsers.pieces import parse_at_all_splits

NESTED = '{"a": "}<x \\" é 🎉 \\\\", "b": [1, {"c": "</tool_call>"}]}'


def read(text):
    return parse_at_all_splits(lambda: HermesParser([]), text)


def call(name, arguments):
    return [CallStart(name), CallArguments(arguments)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        pytest.param("1 < 2 <tool", [Content("1 < 2 <tool")], id="no call"),
        pytest.param('<tool_call>{"name": "f", "arguments": {}}</tool_call>', call("f", "{}"), id="one call"),
        pytest.param(
            f'Sure.\n<tool_call>\n{{"name": "f", "arguments": {NESTED}}}\n</tool_call>',
            [Content("Sure.\n"), *call("f", NESTED)],
            id="content first",
        ),
        pytest.param(
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
            '<tool_call>{"arguments":[1],"name":"g"}</tool_call>\n',
            [*call("f", "{}"), *call("g", "[1]")],
            id="two calls, keys in both orders",
        ),
        pytest.param(
            '<tool_call>{"name": "f", "arguments": {}, "id": {"x": [1]}}</tool_call>\nDone.',
            [*call("f", "{}"), Content("\nDone.")],
            id="content behind",
        ),
        pytest.param('<tool_call>{"name": "f", "arguments": null}', call("f", "null"), id="no end marker"),
        pytest.param('<tool_call>{"name": "f", "arguments": {"a": 1', call("f", '{"a": 1'), id="cut in arguments"),
        pytest.param(
            '<tool_call>{"name": "f", "arguments": {"a": {"b": 1}</tool_call>!',
            [*call("f", '{"a": {"b": 1}'), Content("!")],
            id="bracket missing",
        ),
    ],
)
def test_calls_and_content(text, events):
    assert read(text) == events


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>f(1)</tool_call> and more",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "argum',
        '<tool_call>["name"]</tool_call>',
        "<tool_call>{'name': 'f'}</tool_call>",
    ],
)
def test_malformed_calls_are_content(text):
    assert read(text) == [Content(text)]


def test_arguments_come_as_they_arrive():
    parser = HermesParser([])
    assert parser.feed('<tool_call>{"name": "f", "arguments": ', ()) == [CallStart("f")]
    assert parser.feed('{"ci', ()) == [CallArguments('{"ci')]
    assert parser.feed('ty": "Par', ()) == [CallArguments('ty": "Par')]


@pytest.mark.thorough
def test_long_arguments_are_read_in_linear_time():
    """Half a million pieces: a parser that reads the text again with each piece would need hours."""
    arguments = json.dumps({"text": "ab" * 500_000})
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    pieces = [text[start : start + 2] for start in range(0, len(text), 2)]
    parser = HermesParser([])
    events = [event for piece in pieces for event in parser.feed(piece, ())]
    assert "".join(event.text for event in events[1:]) == arguments
