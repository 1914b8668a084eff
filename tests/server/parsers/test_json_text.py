"""Texts with half of a surrogate pair, which no answer can hold."""

from types import SimpleNamespace

import pytest

from server.parsers.json_text import write_json
from server.parsers.registry import load_tool_parser

HALF = "\\ud83d"
OBJECT = SimpleNamespace(name="f", parameters={"properties": {"a": {"type": "string"}, "b": {"type": "object"}}})


def test_characters_are_written_as_they_are():
    assert write_json({"é": "🎉"}) == '{"é": "🎉"}'
    assert write_json("\ud83d é") == '"\\ud83d \\u00e9"'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f'<tool_call>{{"name": "{HALF}", "arguments": {{"a": "{HALF}"}}}}</tool_call>'),
        ("granite4", f'<tool_call>{{"name": "f", "arguments": "{HALF}"}}</tool_call>'),
        ("pythonic", f'[f(a="{HALF}")]'),
        ("olmo3", f'<function_calls>f(a="{HALF}")</function_calls>'),
        ("qwen3_xml", f'<tool_call><function=f><parameter=b>{{"x": "{HALF}"}}</parameter></function></tool_call>'),
        ("glm45", f'<tool_call>f<arg_key>b</arg_key><arg_value>{{"x": "{HALF}"}}</arg_value></tool_call>'),
    ],
)
def test_calls_can_be_sent(name, text):
    parser = load_tool_parser(name)([OBJECT])
    events = [*parser.feed(text, ()), *parser.finish()]
    assert "".join(part or "" for event in events for part in event).encode()
    assert "ud83d" in repr(events)
