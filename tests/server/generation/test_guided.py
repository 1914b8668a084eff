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
from tests.conversations.conversation import read_lines
from tests.server.engine.sampling.grammar_texts import build_grammar
from tests.server.generation.conftest import TIME, WEATHER, decode

LINES = [line for _, line in read_lines(Path(__file__).with_name("guided.jsonl"))]


@pytest.mark.parametrize("line", [line for line in LINES if "asks" in line], ids=lambda line: str(line["asks"]))
def test_constraint_is_found_and_compiles(model, line):
    constraint = find_constraint(decode(model, **line["asks"]))
    assert (constraint and constraint.guided) == (line["constraint"] and GuidedDecoding(*line["constraint"]))
    if constraint is not None:
        build_grammar(constraint.guided)


def test_schema_nested_too_deeply_is_rejected(model):
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        find_constraint(decode(model, structured_outputs={"json": schema}))


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


@pytest.mark.parametrize("line", [line for line in LINES if "forces" in line], ids=lambda line: str(line["accepts"]))
def test_a_forced_call_follows_its_schema(accepts, line):
    constraint = find_constraint(decode(ChatRequest, **line["forces"]))
    assert [text for text in line["accepts"] + line["rejects"] if accepts(constraint, text)] == line["accepts"]


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
