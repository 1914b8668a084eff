"""Formats with a marker for each part of a call, and calls as in Python, in texts that are cut everywhere."""

import json

import pytest

from server.parsers.base import CallArguments, CallStart, Content
from server.parsers.registry import load_tool_parser
from tests.server.parsers.formats import FORMATS
from tests.server.parsers.parsed import DEFINITIONS, join, parse
from tests.server.parsers.pieces import parse_at_all_splits

QWEN = (
    '<tool_call>\n<function=get_weather>\n<parameter=city>\nParis "1"\n</parameter>\n'
    "<parameter=days>\n2\n</parameter>\n"
)
PARIS = ("get_weather", {"city": 'Paris "1"', "days": 2})
NOW = ("now", {})

TEXTS = [
    ("qwen3_xml", f"a\n{QWEN}</function>\n</tool_call>\n<tool_call><function=now></function></tool_call>",
        "a\n\n", [PARIS, NOW]),
    ("qwen3_xml", f"{QWEN}</tool_call> b", "b", [PARIS]),
    ("qwen3_xml", "<tool_call>\nno call</tool_call>", "<tool_call>\nno call</tool_call>", []),
    ("qwen3_xml", "<tool_call>\n<function=", "<tool_call>\n<function=", []),
    ("mimo", "<function=run_code><parameter=code>\nx\n</parameter></function>", "", [("run_code", {"code": "\nx\n"})]),
    ("glm45", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>\"é</arg_value></tool_call>", "",
        [("get_weather", {"city": '"é'})]),
    ("glm47", "<tool_call>unknown</tool_call>", "<tool_call>unknown</tool_call>", []),
    ("functiongemma", "a<start_function_call>call:search{limit:<escape>2<escape>,query:<escape>{}<escape>}"
        "<end_function_call>", "a", [("search", {"limit": 2, "query": "{}"})]),
    ("gemma4", 'a<|tool_call>call:search{query:<|"|>"{é<|"|>,filters:{year:7,x:[<|"|>}<|"|>,[]]},tags:[]}'
        "<tool_call|>b",
        "ab", [("search", {"query": '"{é', "filters": {"year": 7, "x": ["}", []]}, "tags": []})]),
    ("gemma4", "<|tool_call>call:now{}<|tool_call>call:now{}", "", [NOW, NOW]),
    ("lfm2", "a<|tool_call_start|>[now(), run_code(code='x\ny')]<|tool_call_end|>b", "ab",
        [NOW, ("run_code", {"code": "x\ny"})]),
    ("pythonic", "[get_weather(city='Paris \"1\"', days=+2), now()] b", "b", [PARIS, NOW]),
    ("pythonic", "[now(), [1, 2]]", "[1, 2]]", [NOW]),
    ("pythonic", "[now(1)]", "[now(1)]", []),
    ("pythonic", "a [now()]", "a [now()]", []),
    ("llama4_pythonic", "<|python_start|>[now()]<|python_end|>", "", [NOW]),
    ("olmo3", "a\n<function_calls>\nnow()\nsearch(limit=null,\n tags=['\\'é)'])\n</function_calls>b", "a\nb",
        [NOW, ("search", {"limit": None, "tags": ["'é)"]})]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), TEXTS)
def test_calls(name, text, content, calls):
    parsed = join(parse_at_all_splits(lambda: load_tool_parser(name)(DEFINITIONS), text))
    assert parsed.content.rstrip() == content.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls


def test_strings_are_reported_as_they_arrive():
    parser = load_tool_parser("qwen3_xml")(DEFINITIONS)
    parser.feed("<tool_call><function=run_code>", ())
    parser.feed("<parameter=code>ab", ())
    assert parser.feed("cd", ()) == [CallArguments("cd")]
    assert parser.feed('e"</para', ()) == [CallArguments('e\\"')]
    assert parser.finish() == [CallArguments("</para")]


def test_other_values_are_reported_when_complete():
    parser = load_tool_parser("glm45")(DEFINITIONS)
    begin = parser.feed("<tool_call>get_weather<arg_key>days</arg_key><arg_value>1", ())
    assert begin == [CallStart("get_weather"), CallArguments('{"days": ')]
    assert parser.feed("0</arg_value>", ()) == [CallArguments("10")]


@pytest.mark.parametrize("name", ["qwen3_xml", "glm45", "olmo3"])
def test_little_text_is_held_back(name):
    """What is held back, and so the cost of a piece, does not grow with the text."""
    parser = load_tool_parser(name)(DEFINITIONS)
    reported = 0
    for index in range(3000):
        reported += sum(len(event.text) for event in parser.feed(" < {[('\"", ()) if isinstance(event, Content))
        assert reported >= index * 8


def test_blanks_before_a_call_are_no_content():
    parser = load_tool_parser("glm45")(DEFINITIONS)
    events = [event for _ in range(3) for event in parser.feed(" \n", ())]
    assert [*events, *parser.feed("<tool_call>now</tool_call>\n", ()), *parser.finish()] == [
        CallStart("now"),
        CallArguments("{}"),
    ]


def test_deeply_nested_values_of_gemma4_are_text():
    nested = "[" * 10_000
    form = next(form for form in FORMATS if form.name == "gemma4")
    parsed = parse(form, [f"<|tool_call>call:search{{tags:{nested}{']' * 10_000}}}<tool_call|>"])
    assert "[" in parsed.calls[0].arguments


@pytest.mark.parametrize("end", ["}", "}<tool_call|>", "<tool_call|>", "a}", '<|"|><|"|>}', "[}"])
def test_a_list_of_gemma4_that_is_not_closed_ends(end):
    parser = load_tool_parser("gemma4")(DEFINITIONS)
    assert parser.feed(f"<|tool_call>call:search{{tags:[{end}", ())
    parser.finish()


def test_deeply_nested_values_are_text():
    nested = "[" * 200_000
    form = next(form for form in FORMATS if form.name == "glm45")
    text = f"<tool_call>search<arg_key>tags</arg_key><arg_value>{nested}</arg_value></tool_call>"
    assert json.loads(parse(form, [text]).calls[0].arguments) == {"tags": nested}
