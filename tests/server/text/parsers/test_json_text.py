"""JSON that Python reads but answers cannot have: single surrogates, NaN, infinity, deep nesting."""

import json

import pytest

from server.text.parsers.formats import TOOL_FORMATS
from server.text.parsers.json_text import read_json, write_json
from server.text.parsers.output_parser import CallArguments, OutputParser

HALF = "\\ud83d"
FUNCTIONS = {"f": {"properties": {"a": {"type": "string"}, "b": {"type": "object"}}}}


def parse(name, text):
    parser = OutputParser(FUNCTIONS, tools=TOOL_FORMATS[name])
    return [*parser.feed(text), *parser.finish()]


def test_characters_are_written_as_they_are():
    assert write_json({"é": "🎉"}) == '{"é": "🎉"}'
    assert write_json("\ud83d é") == '"\\ud83d \\u00e9"'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f'<tool_call>{{"name": "{HALF}", "arguments": {{"a": "{HALF}"}}}}</tool_call>'),
        ("hermes", f'<tool_call>{{"name": "f", "arguments": {{"a": "{HALF}"}}}}</tool_call>'),
        ("granite4", f'<tool_call>{{"name": "f", "arguments": "{HALF}"}}</tool_call>'),
        ("pythonic", f'[f(a="{HALF}")]'),
        ("qwen3_xml", f'<tool_call><function=f><parameter=b>{{"x": "{HALF}"}}</parameter></function></tool_call>'),
        ("glm45", f'<tool_call>f<arg_key>b</arg_key><arg_value>{{"x": "{HALF}"}}</arg_value></tool_call>'),
    ],
)
def test_calls_can_be_sent(name, text):
    events = parse(name, text)
    assert "".join(part or "" for event in events for part in event).encode()
    assert "ud83d" in repr(events)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", "-1e999", "9" * 5000, "[" * 201 + "]" * 201])
def test_values_that_cannot_be_written_are_not_read(text):
    with pytest.raises(ValueError, match="NaN|Infinity|1e999|Exceeds|nested"):
        read_json(text)


def test_long_and_deep_values_are_read():
    assert read_json("[" * 200 + "]" * 200)
    assert read_json(json.dumps([[{}]] * 1000)) == [[{}]] * 1000


NUMBERS = ("1e999", "-1e999", "[1e999]", "{'a': 1e999}", "0x" + "f" * 5000, "{1e999: 2}", "{b'a': 1}", "{1j: 2}", "1j")


@pytest.mark.parametrize("value", [pytest.param(value, id=value[:12]) for value in NUMBERS])
def test_python_values_that_json_does_not_have_are_content(value):
    text = f"[f(a={value})]"
    assert "".join(event.text for event in parse("pythonic", text)) == text


DEEP = ["[" * levels + "]" * levels for levels in (*range(194, 204), 950, 10_000)]
"""About the most levels, and so many that Python cannot read them, or can read but not write them."""


@pytest.mark.parametrize("values", [["NaN"], ["-Infinity"], ["1e999"], DEEP], ids=lambda values: values[0][:9])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_xml", "<tool_call><function=f><parameter=b>%s</parameter></function></tool_call>"),
        ("gemma4", "<|tool_call>call:f{b:%s}<tool_call|>"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"b": %s}}</tool_call>'),
        ("pythonic", "[f(b=%s)]"),
        ("openai", "<|channel|>commentary to=functions.f<|message|>%s<|call|>"),
    ],
)
def test_arguments_are_json(name, text, values):
    for value in values:
        events = parse(name, text % value)
        arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
        assert arguments or value in repr(events)
        json.loads(arguments or "0", parse_constant=pytest.fail)
