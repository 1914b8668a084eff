"""Formats whose calls are JSON, in texts that are cut everywhere."""

import re

import pytest

from server.parsers.base import CallArguments, CallStart, Content
from server.parsers.registry import TOOL_PARSERS, load_tool_parser
from tests.server.parsers.pieces import parse_at_all_splits

NESTED = '{"a": "x\\"}] <", "b": [1, {"c": "é🎉"}]}'
F = f'{{"name": "f", "arguments": {NESTED}}}'
F_PARAMETERS = f'{{"name": "f", "parameters": {NESTED}}}'
G = '{"arguments": {}, "name": "g"}'
BOTH = [("f", NESTED), ("g", "{}")]
BEGIN, END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
ALL_BEGIN, ALL_END, SEP = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁sep｜>"

CALLS = [
    ("deepseek_v3", f"hi{ALL_BEGIN}{BEGIN}function{SEP}f\n```json\n{NESTED}\n```{END}\n"
        f"{BEGIN}function{SEP}g\n```json\n{{}}\n```{END}{ALL_END}", ["hi", *BOTH]),
    ("deepseek_v31", f"{ALL_BEGIN}{BEGIN}f{SEP}{NESTED}{END}{BEGIN}g{SEP}{{}}{END}{ALL_END} bye", [*BOTH, " bye"]),
    ("granite", f"a<|tool_call|> [{F}, {G}] b", ["a", *BOTH, " b"]),
    ("granite", f"<tool_call>[{F}]", [("f", NESTED)]),
    ("granite", '<tool_call>[{"name": "f"}]', [("f", "{}")]),
    ("granite-20b-fc", f"<function_call> {F} <function_call> {G}", BOTH),
    ("granite4", 'a<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"é\\"}"}</tool_call>b',
        ["a", ("f", '{"x": "é"}'), "b"]),
    ("internlm", f"a<|action_start|><|plugin|>\n{F_PARAMETERS}<|action_end|>\n", ["a", ("f", NESTED)]),
    ("jamba", f"<tool_calls>[\n{F},\n{G}\n]</tool_calls>", BOTH),
    ("llama3_json", f"<|python_tag|>{F_PARAMETERS}; {G}", BOTH),
    ("llama3_json", f"a {F} b", ["a ", ("f", NESTED), " b"]),
    ("mistral", f"[TOOL_CALLS] [{F}, {G}] a", [*BOTH, " a"]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": "{\\"x\\": 1}"}]', [("f", '{"x": 1}')]),
    ("mistral", f"a[TOOL_CALLS]f[ARGS]{NESTED}[TOOL_CALLS]g{{}}", ["a", *BOTH]),
    ("phi4_mini_json", f"functools[{F_PARAMETERS}, {G}]", BOTH),
    ("xlam", f"[{F}, {G}]", BOTH),
    ("xlam", f"a\n```json\n[{F}]\n```\nb", ["a\n", ("f", NESTED), "\nb"]),
    ("xlam", f"</think><tool_call>[{F}]</tool_call>", ["</think>", ("f", NESTED)]),
]  # fmt: skip


def read(name, text):
    """Content as text, calls as pairs of name and arguments."""
    read = []
    for event in parse_at_all_splits(lambda: load_tool_parser(name)([]), text):
        match event:
            case Content(text):
                read.append(text)
            case CallStart(name):
                read.append((name, ""))
            case CallArguments(text):
                read[-1] = (read[-1][0], read[-1][1] + text)
    return read


@pytest.mark.parametrize(("name", "text", "parts"), CALLS, ids=[f"{case[0]}-{i}" for i, case in enumerate(CALLS)])
def test_calls_and_content(name, text, parts):
    assert read(name, text) == parts


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deepseek_v3", f"{ALL_BEGIN}{BEGIN}function{SEP}\n```json\n{{}}\n```"),
        ("deepseek_v31", f"{BEGIN}" + "f" * 600),
        ("granite", "<tool_call>[]"),
        ("granite", "<|tool_call|>[1, 2]"),
        ("llama3_json", 'a {b} {"c": 1} {"name": "x", "n": {"y": 2}} {'),
        ("mistral", "[TOOL_CALLS]f"),
        ("phi4_mini_json", "I like functools[1] because"),
        ("xlam", "x[1][2] ```python\na=[]\n```"),
    ],
)
def test_what_is_no_call_is_content(name, text):
    assert read(name, text) == [text]


def test_ids_of_mistral_are_those_that_its_tokenizers_accept(monkeypatch):
    monkeypatch.undo()
    (start, _) = load_tool_parser("mistral")([]).feed("[TOOL_CALLS]f[ARGS]{}", ())
    assert re.fullmatch("[a-zA-Z0-9]{9}", start.id)
    (start, _) = load_tool_parser("mistral")([]).feed("[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", ())
    assert start == CallStart("f", "123456789")


def test_all_names_can_be_loaded():
    assert all(load_tool_parser(name)([]).feed("text", ()) is not None for name in TOOL_PARSERS if name != "openai")
