"""Reasoning between tags is found in texts that are cut at any place."""

import pytest

from server.terms.parser_paths import REASONING_FORMATS
from server.text.parsers.base import CallArguments, CallStart, Content, PromptEnd, Reasoning
from server.text.parsers.chain import ParserChain
from server.text.parsers.registry import load_reasoning_format
from server.text.parsers.tools.json_formats import HermesParser
from tests.server.text.parsers.parsed import parse_at_all_splits

TAG_FORMATS = [name for name, path in REASONING_FORMATS.items() if path.module == "reasoning_formats"]
THOUGHTS = "I <th </thin é 🎉\n1 < 2 "


def read(name, text, prompt_end=PromptEnd.SILENT):
    """Parses a text. Returns the reasoning and the answer."""
    events = parse_at_all_splits(lambda: load_reasoning_format(name).create_parser(prompt_end), text)
    assert [type(event) for event in events] in ([], [Reasoning], [Content], [Reasoning, Content])
    parts = {type(event): event.text for event in events}
    return parts.get(Reasoning), parts.get(Content)


@pytest.mark.parametrize("name", TAG_FORMATS)
def test_every_format_separates_reasoning_and_answer(name):
    tags = load_reasoning_format(name)
    is_stripped = tags.strips_reasoning
    expected = (THOUGHTS.rstrip() if is_stripped else THOUGHTS, "Paris </t")
    for start in (*tags.starts, "") if tags.is_open_at_start else tags.starts:
        for end in tags.ends:
            assert read(name, f"{start}{THOUGHTS}{end}Paris </t") == expected
    assert read(name, f"{THOUGHTS}{tags.ends[0]}Paris </t", PromptEnd.OPEN) == expected
    assert read(name, "Paris", PromptEnd.ENDED) == (None, "Paris")


@pytest.mark.parametrize("name", TAG_FORMATS)
def test_reasoning_that_does_not_end_is_reasoning(name):
    tags = load_reasoning_format(name)
    assert read(name, tags.starts[0] + "Hm </thi", PromptEnd.SILENT) == ("Hm </thi", None)
    assert read(name, "Hm", PromptEnd.SILENT) == (("Hm", None) if tags.is_open_at_start else (None, "Hm"))
    assert read(name, "", PromptEnd.OPEN) == (None, None)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("qwen3", "<think>\nA\n</think>\n\nB", ("\nA\n", "\n\nB"), id="qwen3 keeps white space"),
        pytest.param("glm45", "<think>\nA \n</think>\n\nB", ("\nA", "\n\nB"), id="glm45 strips the end"),
        pytest.param("glm45", "<think>A \n\n b \n", ("A \n\n b", None), id="only the end is stripped"),
        pytest.param("granite_thinking_parser", "<think>A\n</think>\n\n\nB\n", ("A", "B\n"), id="granite 4"),
        pytest.param("deepseek_r1", "A</think>B</think>C", ("A", "B</think>C"), id="the first end counts"),
        pytest.param("ernie45", "A\n</think>\n\n<response>\nB\n</response>\n", ("A\n", "\nB\n"), id="ernie45"),
        pytest.param("ernie45", "A</think><response>B</response>\n\nC\nD\n", ("A", "BC\nD\n"), id="ernie45, more"),
        pytest.param("ernie45", "A</think>\n<resp", ("A", "<resp"), id="ernie45, cut"),
        pytest.param("ernie45", "A</think>\nB", ("A", "B"), id="ernie45 without a response tag"),
        pytest.param("hunyuan_a13b", "<think>\nA\n</think>\n<answer>\nB\n</answer>", ("A", "B"), id="hunyuan"),
        pytest.param("hunyuan_a13b", "<think>\n\n</think>\n<answer>\nB", (None, "B"), id="hunyuan, no thoughts"),
        pytest.param("granite", "Here is my thought", (None, "Here is my thought"), id="granite, cut"),
        pytest.param(
            "granite",
            "Ah. Here is my thought process: A Here is my response: B",
            (None, "Ah. Here is my thought process: A Here is my response: B"),
            id="granite, not at the beginning",
        ),
        pytest.param("qwen3", 'A<tool_call>{"n', ("A", '<tool_call>{"n'), id="a tool call ends the reasoning"),
        pytest.param("gemma4", "<|channel>thought\nA\n<channel|>B", ("A", "B"), id="gemma4's label"),
        pytest.param("gemma4", "<|channel>though<channel|>B", ("though", "B"), id="gemma4 without its label"),
        pytest.param("gemma4", "<|channel>thou", ("thou", None), id="gemma4, cut in its label"),
    ],
)
def test_rules_of_formats(name, text, expected):
    assert read(name, text) == expected


def test_mistrals_text_before_the_reasoning_is_content():
    events = parse_at_all_splits(
        lambda: load_reasoning_format("mistral").create_parser(PromptEnd.SILENT), "[TH]x[THINK]A \n[/THINK]B"
    )
    assert events == [Content("[TH]x"), Reasoning("A"), Content("B")]


@pytest.mark.parametrize(
    ("name", "kwargs", "is_used"),
    [
        ("qwen3", {}, True),
        ("qwen3", {"enable_thinking": False}, False),
        ("deepseek_v3", {}, False),
        ("deepseek_v3", {"thinking": True}, True),
        ("deepseek_v3", {"enable_thinking": True, "thinking": False}, True),
        ("holo2", {}, True),
        ("holo2", {"thinking": False}, False),
        ("step3p5", {"enable_thinking": False}, True),
    ],
)
def test_template_variables_switch_reasoning_off(name, kwargs, is_used):
    assert load_reasoning_format(name).is_used(kwargs) is is_used


def test_the_answer_goes_to_the_parser_of_tool_calls():
    text = '<think>A <tool</think>\nI call.<tool_call>{"name": "f", "arguments": {"x": "</think>"}}</tool_call>'
    events = parse_at_all_splits(
        lambda: ParserChain(load_reasoning_format("deepseek_r1").create_parser(PromptEnd.SILENT), HermesParser([])),
        text,
    )
    assert events == [
        Reasoning("A <tool"),
        Content("\nI call."),
        CallStart("f"),
        CallArguments('{"x": "</think>"}'),
    ]
