"""The constraint of a request's text: its field, the grammars of tool calls, and unusable constraints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from base.errors import RequestError
from server.generation.guided import Constraint, find_constraint, find_strict_constraint
from server.generation.request import ChatRequest
from server.terms.types import GuidedDecoding
from server.text.parsers.formats import TOOL_FORMATS
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.requests import NAMED, TIME, WEATHER, decode


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, GuidedDecoding("json_object")),
        ({"structured_outputs": {"json_object": True}}, GuidedDecoding("json_object")),
        ({"structured_outputs": {"regex": "a+"}}, GuidedDecoding("regex", "a+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, GuidedDecoding("choice", '["yes", "no"]')),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, GuidedDecoding("grammar", 'root ::= "a"')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, GuidedDecoding("grammar", 'start: "a"')),
        ({"structured_outputs": {"json": '{"type": "integer"}'}}, GuidedDecoding("json_schema", '{"type": "integer"}')),
        ({"structured_outputs": {"json": {"type": "integer"}}}, GuidedDecoding("json_schema", '{"type": "integer"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}},
            GuidedDecoding("json_schema", '{"type": "integer"}'),
        ),
    ],
    ids=str,
)
def test_constraint_is_found_and_compiles(model, fields, guided):
    constraint = find_constraint(decode(model, **fields))
    assert (constraint and constraint.guided) == guided
    if constraint is not None:
        build_grammar(constraint.guided)


def test_schema_nested_too_deeply_is_rejected(model):
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        find_constraint(decode(model, structured_outputs={"json": schema}))


PLAN = {
    "function": {
        "name": "plan",
        "parameters": {
            "properties": {"when": {"$ref": "#/$defs/day"}},
            "required": ["when"],
            "$defs": {"day": {"enum": ["today", "tomorrow"]}},
        },
    }
}
Accepts = Callable[[Constraint | None, str], bool]


@pytest.fixture(scope="module")
def accepts(model_path: Path) -> Accepts:
    """A function that checks whether the engine's grammar accepts a text as complete."""
    tokenizer = LLTokenizer((model_path / "tokenizer.json").read_text(), n_vocab=49152, eos_token=2)

    def accepts(constraint: Constraint | None, text: str) -> bool:
        assert constraint is not None
        matcher = LLMatcher(tokenizer, build_grammar(constraint.guided))
        return bool(matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting())

    return accepts


CALL_TIME = '{"name": "get_time", "parameters": {}}'


@pytest.mark.parametrize(
    ("fields", "accepted", "rejected"),
    [
        pytest.param(
            {"tools": [WEATHER, TIME], "tool_choice": NAMED},
            ['{"city": "Rome", "days": 3}'],
            ['{"days": 3}', '{"city": "Rome"\n\n\n\n}'],
            id="named",
        ),
        pytest.param(
            {"tools": [WEATHER, TIME], "tool_choice": "required"},
            [f"[{CALL_TIME}]", f'[{{"name": "get_weather", "parameters": {{"city": "x"}}}}, {CALL_TIME}]'],
            ["[]", '[{"name": "other", "parameters": {}}]', '[{"name": "get_weather", "parameters": {}}]'],
            id="required",
        ),
        pytest.param(
            {"tools": [TIME], "tool_choice": "required", "parallel_tool_calls": False},
            [f"[{CALL_TIME}]"],
            [f"[{CALL_TIME}, {CALL_TIME}]"],
            id="one call",
        ),
        pytest.param(
            {"tools": [PLAN], "tool_choice": "required"},
            ['[{"name": "plan", "parameters": {"when": "today"}}]'],
            ['[{"name": "plan", "parameters": {"when": "never"}}]'],
            id="definitions",
        ),
        pytest.param(
            {"tools": [TIME], "tool_choice": "required", "response_format": {"type": "json_object"}},
            [f"[{CALL_TIME}]"],
            ["{}"],
            id="before response_format",
        ),
    ],
)
def test_a_forced_call_follows_its_schema(accepts, fields, accepted, rejected):
    constraint = find_constraint(decode(ChatRequest, **fields))
    assert [text for text in accepted + rejected if accepts(constraint, text)] == accepted


def strict_constraint(*tools: dict[str, Any]) -> Constraint | None:
    """The constraint for calls in the format `hermes`. The first tool is strict."""
    first = {"function": tools[0]["function"] | {"strict": True}}
    call_format = TOOL_FORMATS["hermes"].call_format
    assert call_format is not None
    return find_strict_constraint(decode(ChatRequest, tools=[first, *tools[1:]]), call_format, trigger_id=None)


def test_chosen_calls_of_strict_tools_follow_their_schema(accepts):
    constraint = strict_constraint(WEATHER, TIME)

    def calls(name: str, arguments: str) -> bool:
        text = f'Wait <b>. <tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        return accepts(constraint, text)

    assert accepts(constraint, "No call <tool")
    assert calls("get_weather", '{"city": "Rome"}')
    assert calls("get_time", '{"zone": 1}')
    assert not calls("get_weather", '{"days": 1}')
    assert not calls("get_weather", '{"city": "Rome", "more": 1}')
    assert not calls("other", "{}")


def test_names_and_schemas_of_strict_tools_may_be_strange(accepts):
    constraint = strict_constraint({"function": {"name": 'a"NAME\\', "parameters": {"type": "object"}}})
    assert accepts(constraint, '<tool_call>{"name": "a\\"NAME\\\\", "arguments": {}}</tool_call>')
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"properties": {"a": deep}}
    with pytest.raises(RequestError, match="nested too deeply"):
        strict_constraint({"function": {"name": "f", "parameters": deep}})


@pytest.mark.parametrize("pattern", [5, {}, None])
def test_a_pattern_of_names_that_is_no_text_is_left_to_the_grammars_compiler(pattern, accepts):
    names = {"type": "object", "propertyNames": {"pattern": pattern}}
    constraint = strict_constraint({"function": {"name": "f", "parameters": names}})
    assert constraint is not None
