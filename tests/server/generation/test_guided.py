"""The constraint of a request's text: where it may be given, and what makes it unusable."""

import json
import tracemalloc
from typing import Any

import pytest

from server.engine.sampling import grammar
from server.errors import RequestError
from server.generation.guided import Constraint, check_constraint, find_constraint
from server.types import GuidedDecoding
from tests.server.generation.requests import Model, decode

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
def test_constraint_is_found_and_compiles(model: Model, fields: dict[str, Any], guided: GuidedDecoding | None) -> None:
    constraint = find_constraint(decode(model, **fields))
    assert (constraint and constraint.guided) == guided
    if constraint is not None:
        check_constraint(constraint)


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
def test_constraint_that_cannot_be_used_is_rejected_with_its_field(model: Model, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        constraint = find_constraint(decode(model, **fields))
        assert constraint is not None
        check_constraint(constraint)
    assert caught.value.status == 400
    assert caught.value.param


def test_checked_constraints_do_not_keep_their_specs() -> None:
    check_constraint(Constraint("json", GuidedDecoding("json_schema", "{}")))  # imports the compiler
    tracemalloc.start()
    try:
        for i in range(20):
            spec = json.dumps({"description": str(i) + "x" * 1_000_000})
            check_constraint(Constraint("json", GuidedDecoding("json_schema", spec)))
        del spec
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_constraint_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Constraint("regex", GuidedDecoding("regex", "once-[0-9]"))
    check_constraint(constraint)
    again: list[object] = []
    monkeypatch.setattr(grammar, "build_grammar", again.append)
    check_constraint(constraint)
    assert again == []


def test_schema_nested_too_deeply_is_rejected(model: Model) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        find_constraint(decode(model, structured_outputs={"json": schema}))
