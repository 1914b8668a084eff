"""Schemas allow exactly the values that they describe, as with vLLM's backend."""

import json
from typing import Any

import pytest

from server.terms.types import GuidedDecoding
from tests.server.engine.sampling.grammar_texts import accepted_texts, assert_vllm_accepts
from tests.support.peer_vllm import needs_vllm

_NUMBER = {"type": "integer"}
_A = {"type": "object", "properties": {"a": _NUMBER}}
_B = {"type": "object", "properties": {"b": _NUMBER}, "required": ["b"]}

SCHEMAS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "no additionalProperties": (_A, ["{}", '{"a":1}'], ['{"b":1}', '{"a":1,"b":2}']),
    "no type": ({"properties": {"a": _NUMBER}}, ['{"a":1}'], ['{"a":1,"b":2}', "3"]),
    "two types": (_A | {"type": ["object", "null"]}, ['{"a":1}', "null"], ['{"a":1,"b":2}']),
    "no properties": ({"type": "object", "description": "d"}, ["{}", '{"b":1}'], ["[]"]),
    "empty properties": ({"type": "object", "properties": {}}, ["{}"], ['{"b":1}']),
    "additionalProperties": (_A | {"additionalProperties": True}, ['{"a":1,"b":2}'], []),
    "schema of others": (
        _A | {"additionalProperties": {"type": "string"}},
        ['{"a":1,"b":"c"}'],
        ['{"a":1,"b":2}'],
    ),
    "nested": ({"type": "object", "properties": {"o": _A}}, ['{"o":{"a":1}}'], ['{"o":{"a":1,"b":2}}']),
    "items": ({"type": "array", "items": _A}, ['[{"a":1}]'], ['[{"b":2}]']),
    "$ref": ({"$defs": {"P": _A}, "$ref": "#/$defs/P"}, ['{"a":1}'], ['{"b":2}']),
    "$ref elsewhere": ({"other": {"in": {"P": _A}}, "$ref": "#/other/in/P"}, ['{"a":1}'], ['{"b":2}']),
    "$ref with siblings": (
        {"$defs": {"P": _A}, "type": "object", "properties": {"p": {"$ref": "#/$defs/P", "description": "d"}}},
        ['{"p":{"a":1}}'],
        ['{"p":{"b":2}}'],
    ),
    "anyOf": ({"anyOf": [_A, {"type": "null"}]}, ['{"a":1}', "null"], ['{"a":1,"b":2}']),
    "oneOf": ({"oneOf": [_A, _B]}, ['{"a":1}', '{"b":2}'], ['{"a":1,"b":2}']),
    "allOf of one": ({"allOf": [_A]}, ['{"a":1}'], ['{"a":1,"b":2}']),
    "allOf of several": ({"allOf": [_A, _B]}, ['{"a":1,"b":2}', '{"a":1,"b":2,"c":3}'], ['{"a":1}']),
    "properties and branches": (
        {"type": "object", "properties": {"k": _NUMBER}, "anyOf": [_B, {"$ref": "#/$defs/P"}], "$defs": {"P": _A}},
        ['{"k":1,"b":2}', '{"k":1,"a":2}'],
        ['{"k":"x","b":2}'],
    ),
    "properties and alternatives of required": (
        {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}, "anyOf": [{"required": [n]} for n in "ab"]},
        ['{"a":1}', '{"b":2}', '{"a":1,"b":2}'],
        ["{}", '{"a":1,"c":3}'],
    ),
    "patternProperties": (
        {"type": "object", "patternProperties": {r"^x\d$": _NUMBER}},
        ["{}", '{"x1":1}'],
        ['{"y1":1}', '{"x1":"a"}', '{"x\u0661":1}'],
    ),
    "propertyNames by pattern": (
        {"type": "object", "propertyNames": {"pattern": "^[ab]$"}, "additionalProperties": _NUMBER},
        ['{"a":1,"b":2}'],
        ['{"c":1}', '{"a":"x"}'],
    ),
    "propertyNames from a list": (
        {"type": "object", "propertyNames": {"enum": ["a", "b c", "d.e"]}},
        ['{"a":1}', '{"b c":2}', '{"d.e":3}'],
        ['{"c":1}', '{"dxe":1}'],
    ),
    "unevaluatedProperties": (
        _A | {"unevaluatedProperties": {"type": "string"}},
        ['{"a":1,"b":"c"}'],
        ['{"a":1,"b":2}'],
    ),
    "no unevaluatedProperties": (_A | {"unevaluatedProperties": False}, ['{"a":1}'], ['{"b":2}']),
    "no unevaluatedProperties beside allOf": (
        {"allOf": [_A], "unevaluatedProperties": False},
        ["{}", '{"a":1}'],
        ['{"a":1,"c":3}'],
    ),
    "no unevaluatedProperties beside $ref": (
        {"$defs": {"P": _A}, "$ref": "#/$defs/P", "unevaluatedProperties": False},
        ["{}", '{"a":1}'],
        ['{"a":1,"c":3}'],
    ),
    "no unevaluatedProperties beside several": (
        {"allOf": [_A, _B], "unevaluatedProperties": False},
        ['{"b":2}', '{"a":1,"b":2}'],
        ['{"a":1}'],
    ),
    "no unevaluatedProperties beside properties and branches": (
        {"properties": {"k": _NUMBER}, "anyOf": [_A], "unevaluatedProperties": False},
        ['{"a":1}', '{"k":1,"a":2}'],
        ['{"k":"x"}'],
    ),
    "no unevaluatedProperties beside alternatives of required": (
        _A | {"anyOf": [{"required": ["a"]}], "unevaluatedProperties": False},
        ['{"a":1}'],
        ["{}", '{"a":1,"c":3}'],
    ),
    "no unevaluatedItems beside allOf": (
        {"allOf": [{"type": "array", "prefixItems": [_NUMBER]}], "unevaluatedItems": False},
        ["[1]"],
        ["[1,2]"],
    ),
    "prefixItems": ({"type": "array", "prefixItems": [_NUMBER]}, ["[]", "[1]"], ["[1,2]"]),
    "prefixItems and items": (
        {"type": "array", "prefixItems": [_NUMBER], "items": {"type": "null"}},
        ["[1,null]"],
        ["[1,2]"],
    ),
    "unevaluatedItems": (
        {"type": "array", "prefixItems": [_NUMBER], "unevaluatedItems": {"type": "null"}},
        ["[1,null]"],
        ["[1,2]"],
    ),
    "a property named properties": (
        {"type": "object", "properties": {"properties": {"type": "string"}}},
        ['{"properties":"a"}'],
        ['{"properties":"a","b":1}'],
    ),
    "instances": ({"enum": [{"properties": {}}, 2]}, ['{"properties":{}}', "2"], ["3"]),
    "keywords without effect": (
        _A | {"not": _B, "if": _A, "then": _B, "else": _B, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {}},
        ['{"a":1}'],
        ['{"a":1,"b":2}'],
    ),
    "pattern": ({"type": "string", "pattern": r"^\d\w\s$"}, ['"1a "'], ['"\u0661a "', '"1\xe4 "', '"1a\u2003"']),
    "pattern is searched for": ({"type": "string", "pattern": "b"}, ['"b"', '"abc"'], ['"ac"']),
}


OWN = {
    "pattern is searched for": "vLLM's backend reads every pattern as ^(...)$",
    "properties and branches": "vLLM's backend ignores the properties",
    "properties and alternatives of required": "vLLM's backend ignores the properties",
    "no unevaluatedProperties beside properties and branches": "vLLM's backend ignores the properties",
    "no unevaluatedProperties beside alternatives of required": "vLLM's backend ignores the properties",
    "no unevaluatedProperties beside several": "vLLM rejects it",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_allows_what_it_lists(name):
    schema, accepted, rejected = SCHEMAS[name]
    assert accepted_texts(GuidedDecoding("json_schema", json.dumps(schema)), accepted + rejected) == accepted


@pytest.mark.slow
@needs_vllm
def test_vllms_schemas_accept_the_same_texts(tmp_path):
    cases = [("json", json.dumps(SCHEMAS[name][0]), *SCHEMAS[name][1:]) for name in SCHEMAS.keys() - OWN]
    assert_vllm_accepts(cases, tmp_path)
