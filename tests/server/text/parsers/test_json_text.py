"""JSON that Python reads but answers cannot have: single surrogates, NaN, infinity, deep nesting."""

import json
from types import SimpleNamespace

import pytest

from server.text.parsers.base import CallArguments, CallStart, Content
from server.text.parsers.chain import WholeCalls
from server.text.parsers.json_text import read_json, write_json
from server.text.parsers.registry import load_tool_parser
from tests.server.text.parsers.parsed import joined_events
from tests.support.properties import given, json_values, pieces, st

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


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", "-1e999", "9" * 5000, "[" * 201 + "]" * 201])
def test_values_that_cannot_be_written_are_not_read(text):
    with pytest.raises(ValueError, match="NaN|Infinity|1e999|Exceeds|nested"):
        read_json(text)


def test_long_and_deep_values_are_read():
    assert read_json("[" * 200 + "]" * 200)
    assert read_json(json.dumps([[{}]] * 1000)) == [[{}]] * 1000


NUMBERS = ("1e999", "-1e999", "[1e999]", "{'a': 1e999}", "0x" + "f" * 5000, "{1e999: 2}", "{b'a': 1}", "{1j: 2}", "1j")


@pytest.mark.parametrize("value", [pytest.param(value, id=value[:12]) for value in NUMBERS])
@pytest.mark.parametrize("name", ["pythonic", "llama4_pythonic"])
def test_python_values_that_json_does_not_have_are_content(name, value):
    parser = load_tool_parser(name)([OBJECT])
    text = f"[f(a={value})]"
    assert "".join(event.text for event in [*parser.feed(text, ()), *parser.finish()]) == text


_STRINGS = st.text('ab"\\\\{}[]<>,:\n é🙂', max_size=8)


@given(json_values(_STRINGS, st.integers(-9, 10**20) | st.none() | st.booleans()), st.booleans(), st.data())
def test_a_json_call_is_the_same_wherever_its_text_is_cut(value, is_ascii, data):
    call = json.dumps({"name": "f", "arguments": {"a": value}}, ensure_ascii=is_ascii)
    text = f"before <tool_call>\n{call}\n</tool_call> after"
    events = joined_events(load_tool_parser("hermes")([OBJECT]), data.draw(pieces(text)))
    assert events == joined_events(load_tool_parser("hermes")([OBJECT]), [text])
    assert [type(event) for event in events[:3]] == [Content, CallStart, CallArguments]
    assert json.loads(events[2].text) == {"a": value}


DEEP = ["[" * levels + "]" * levels for levels in range(850, 1000)]
"""Python can read but not write some of these values. Which ones depends on the stack."""


@pytest.mark.parametrize("values", [["NaN"], ["-Infinity"], ["1e999"], DEEP], ids=lambda values: values[0][:9])
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_xml", "<tool_call><function=f><parameter=b>%s</parameter></function></tool_call>"),
        ("gemma4", "<|tool_call>call:f{b:%s}<tool_call|>"),
    ],
)
def test_arguments_are_json(name, text, is_whole, values):
    for value in values:
        parser = load_tool_parser(name)([OBJECT])
        parser = WholeCalls(parser) if is_whole else parser
        events = [*parser.feed(text % value, ()), *parser.finish()]
        arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
        json.loads(arguments, parse_constant=pytest.fail)


def test_a_whole_call_with_nan_is_content():
    text = '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'
    parser = WholeCalls(load_tool_parser("hermes")([OBJECT]))
    assert [*parser.feed(text, ()), *parser.finish()][0].text == text
