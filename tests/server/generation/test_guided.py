"""The constraint of a request's text: where it may be given, and what makes it unusable."""

import json
from typing import Any

import pytest

from base.errors import RequestError
from server.engine.sampling.grammar import GrammarError, build_grammar
from server.generation.guided import find_constraint
from server.types import GuidedDecoding
from tests.server.generation.requests import decode

_STRUCTURES = [{"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}]


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
        (
            {"structured_outputs": {"structural_tag": '{"format": {"type": "any_text"}}'}},
            GuidedDecoding("structural_tag", '{"format": {"type": "any_text"}}'),
        ),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
            GuidedDecoding("structural_tag", '{"format": {"type": "any_text"}}'),
        ),
        (
            {"response_format": {"type": "structural_tag", "structures": _STRUCTURES, "triggers": ["<f"]}},
            GuidedDecoding("structural_tag", json.dumps({"structures": _STRUCTURES, "triggers": ["<f"]})),
        ),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
            GuidedDecoding("json_schema", '{"type": "object", "x-guidance": {"whitespace_flexible": false}}'),
        ),
        (
            {"structured_outputs": {"json": {"type": "integer"}, "whitespace_pattern": " ?"}},
            GuidedDecoding("json_schema", '{"type": "integer", "x-guidance": {"whitespace_pattern": " ?"}}'),
        ),
    ],
    ids=str,
)
def test_constraint_is_found_and_compiles(model, fields, guided):
    constraint = find_constraint(decode(model, **fields))
    assert (constraint and constraint.guided) == guided
    if constraint is not None:
        build_grammar(constraint.guided)


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": {"type": "nonsense"}}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"json": "3"}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": [""]}},
        {"structured_outputs": {"grammar": "start: missing"}},
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"json_object": True, "regex": "a"}},
        {"structured_outputs": {"structural_tag": "{}"}},
        {"structured_outputs": {"structural_tag": "{"}},
        {"structured_outputs": {"structural_tag": '{"format": {"type": "any_text"}}', "regex": "a"}},
        {"response_format": {"type": "structural_tag"}},
        {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}},
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"response_format": {"type": "structural_tag", "format": {}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nonsense"}}}},
    ],
    ids=str,
)
def test_constraint_that_cannot_be_used_is_rejected_with_its_field(model, fields):
    with pytest.raises((RequestError, GrammarError)) as caught:
        constraint = find_constraint(decode(model, **fields))
        assert constraint is not None
        assert constraint.param
        build_grammar(constraint.guided)
    assert isinstance(caught.value, GrammarError) or caught.value.param


def test_schema_nested_too_deeply_is_rejected(model):
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        find_constraint(decode(model, structured_outputs={"json": schema}))
