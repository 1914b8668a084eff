"""Grammars that cost llguidance stack, memory or time. Each function of `n` makes one of about this size."""

import json
from collections.abc import Callable
from typing import Any

from server.terms.types import GuidedDecoding

Make = Callable[[int], GuidedDecoding]

_NULL = {"type": "null"}


def _schema(schema: dict[str, Any]) -> GuidedDecoding:
    return GuidedDecoding("json_schema", json.dumps(schema))


def _lark(*lines: str) -> GuidedDecoding:
    return GuidedDecoding("grammar", "\n".join(lines))


def _regex(pattern: str) -> GuidedDecoding:
    return GuidedDecoding("regex", pattern)


_LINKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "$ref": lambda ref: ref,
    "anyOf": lambda ref: {"anyOf": [ref, _NULL]},
    "oneOf": lambda ref: {"oneOf": [{"type": "string"}, ref]},
    "allOf": lambda ref: {"allOf": [ref]},
    "allOf of two": lambda ref: {"allOf": [{"type": ["null", "object"]}, ref]},
    "$ref beside properties": lambda ref: ref | {"type": "object", "properties": {"a": {}}},
    "properties": lambda ref: {"type": "object", "properties": {"a": ref}, "required": ["a"]},
    "additionalProperties": lambda ref: {"type": "object", "additionalProperties": ref},
    "patternProperties": lambda ref: {"type": "object", "patternProperties": {"^a": ref}},
    "items": lambda ref: {"type": "array", "items": ref},
    "prefixItems": lambda ref: {"type": "array", "prefixItems": [ref], "minItems": 1},
    "not": lambda ref: {"type": "null", "not": ref},
    "if": lambda ref: {"if": ref, "then": ref, "else": ref},
}


def _chain(link: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    def make(n: int) -> GuidedDecoding:
        num = n // len(json.dumps({"d1000": link({"$ref": "#/$defs/d1000"})}))
        definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(num)}
        return _schema({"$ref": "#/$defs/d0", "$defs": definitions | {f"d{num}": _NULL}})

    return make


def _rules(rule: str, last: str, *head: str) -> Make:
    """A chain of rules. `{0}` in a rule is its number, `{1}` the next one."""

    def make(n: int) -> GuidedDecoding:
        num = n // len(rule.format(1000, 1001) + "\n")
        return _lark(*head, *(rule.format(i, i + 1) for i in range(num)), last.format(num))

    return make


def _around(begin: str, middle: str, end: str, kind: str = "regex", head: str = "", tail: str = "") -> Make:
    def make(n: int) -> GuidedDecoding:
        num = n // len(begin + end)
        return GuidedDecoding(kind, head + begin * num + middle + end * num + tail)  # type: ignore[arg-type]

    return make


CHAINS: dict[str, Make] = {
    **{f"schema: {name}": _chain(link) for name, link in _LINKS.items()},
    "schema: a loop of $ref": lambda n: _schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "schema: tree of $ref": lambda n: _schema(
        {
            "$ref": "#/$defs/d0",
            "$defs": {
                f"d{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "ab"}}
                for i in range(n // 100)
            }
            | {f"d{n // 100}": _NULL},
        }
    ),
    "lark: schema": lambda n: _lark("start: %json " + _chain(_LINKS["properties"])(n).spec),
    "lark: rules": _rules('r{0}: r{1} | "x"', 'r{0}: "x"', "start: r0"),
    "lark: rules alone": _rules("r{0}: r{1}", 'r{0}: "x"', "start: r0"),
    "lark: rules with an end": _rules('r{0}: "(" r{1} ")"', 'r{0}: "x"', "start: r0"),
    "lark: terminals": _rules('T{0}: "a" T{1} | "x"', 'T{0}: "x"', "start: T0"),
    "lark: terminals twice": _rules("T{0}: T{1} T{1}", 'T{0}: "x"', "start: T0"),
    "schema: arrays twice": _chain(
        lambda ref: {"type": "array", "prefixItems": [ref, ref, {"const": "a" * 99}], "minItems": 3, "items": False}
    ),
    "lark: optional": _rules("r{0}: r{1}?", 'r{0}: "x"', "start: r0"),
    "lark: nullable": _rules("r{0}: r{1} r{1}", "r{0}:", 'start: r0 "x"'),
    "lark: groups": _around("(", '"x"', ")", "grammar", "start: "),
    "lark: groups of a terminal": _around("(", '"x"', ")", "grammar", "start: T\nT: "),
    "lark: brackets": _around("[", '"x"', "]", "grammar", "start: "),
    "lark: repeated groups": _around("(", '"x"', "){2}", "grammar", "start: "),
    "lark: not": _around("~(", '"x"', ")", "grammar", "start: T\nT: "),
    "lark: groups in expressions": _around("(", "x", ")", "grammar", "start: /", "/"),
    "gbnf: rules": _rules('r{0} ::= "a" r{1} | "x"', 'r{0} ::= "x"', "root ::= r0"),
    "gbnf: groups": _around("(", '"x"', ")", "grammar", "root ::= "),
    "regex: groups": _around("(", "a", ")"),
    "regex: repeated groups": _around("(", "a", "){2}"),
    "regex: optional groups": _around("(a", "", ")?"),
    "regex: alternatives": _around("(b|", "a", ")"),
    "regex: many alternatives": lambda n: _regex("|".join(f"a{i}" for i in range(n // 6))),
}
"""Long chains and deep nesting, which take stack."""


def _numbers(**keywords: Callable[[int], Any]) -> Make:
    return lambda n: _schema({name: value(n) for name, value in keywords.items()})


def _as_is(n: int) -> int:
    return n


def _of(value: Any) -> Callable[[int], Any]:
    return lambda n: value


_ITEMS = {"type": "array", "items": {"type": "integer"}}

NUMBERS: dict[str, Make] = {
    "integer: multipleOf": _numbers(type=_of("integer"), multipleOf=_as_is),
    "number: multipleOf": _numbers(type=_of("number"), multipleOf=lambda n: n + 0.001),
    "integer: multipleOf in a property": lambda n: _schema(
        {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": n}}, "required": ["a"]}
    ),
    "integer: multipleOf, bounded": _numbers(type=_of("integer"), multipleOf=_as_is, minimum=_of(1), maximum=_as_is),
    "integer: many multipleOf": lambda n: _schema(
        {"allOf": [{"type": "integer", "multipleOf": n + i} for i in range(9)]}
    ),
    "lark: multipleOf": lambda n: _lark('start: %json {"type": "integer", "multipleOf": ' + str(n) + "}"),
    "lark: hidden multipleOf": lambda n: _lark('start: %json {"type": "integer", "\\u006dultipleOf": ' + str(n) + "}"),
    "string: minLength": _numbers(type=_of("string"), minLength=_as_is),
    "string: maxLength": _numbers(type=_of("string"), maxLength=_as_is),
    "string: both": _numbers(type=_of("string"), minLength=_as_is, maxLength=lambda n: n + 1),
    "string: pattern and maxLength": _numbers(type=_of("string"), pattern=_of("a.*b.*c"), maxLength=_as_is),
    "array: minItems": lambda n: _schema(_ITEMS | {"minItems": n}),
    "array: maxItems": lambda n: _schema(_ITEMS | {"maxItems": n}),
    "array: nested": lambda n: _schema({"type": "array", "items": _ITEMS | {"minItems": n}, "minItems": n}),
    "array: uniqueItems": lambda n: _schema(_ITEMS | {"uniqueItems": True, "maxItems": n}),
    "object: minProperties": _numbers(type=_of("object"), minProperties=_as_is),
    "object: maxProperties": _numbers(type=_of("object"), maxProperties=_as_is),
    "integer: digits": lambda n: _schema(
        {"type": "integer", "minimum": -(10 ** min(n, 18)), "maximum": 10 ** min(n, 18)}
    ),
    "number: digits": lambda n: _schema(
        {"type": "number", "minimum": -(10.0 ** min(n, 300)), "maximum": 10.0 ** min(n, 300)}
    ),
    "number: small": lambda n: _schema({"type": "number", "minimum": 10.0 ** -min(n, 300), "maximum": 1.5}),
    "number: multipleOf tiny": lambda n: _schema({"type": "number", "multipleOf": 10.0 ** -min(n, 300)}),
    "regex: repetition": lambda n: _regex(f"a{{{n}}}"),
    "regex: range": lambda n: _regex(f"[a-z]{{1,{n}}}b"),
    "regex: any": lambda n: _regex(f".{{{n}}}"),
    "regex: repetition twice": lambda n: _regex(f"((ab?){{1,{n}}}c){{1,{n}}}"),
    "regex: repetition thrice": lambda n: _regex(f"(((a|bc){{1,{n}}}d?){{1,{n}}}e?){{1,{n}}}"),
    "regex: far choice": lambda n: _regex(f"[ab]*a[ab]{{{n}}}"),
    "regex: far choice of any": lambda n: _regex(f"(.*x.{{{n}}})+"),
    "regex: choices": lambda n: _regex(f"(a?b?c?d?){{{n}}}[a-d]{{{n}}}"),
    "pattern: far choice": lambda n: _schema({"type": "string", "pattern": f"a.{{{n}}}$"}),
    "pattern: repetition": lambda n: _schema({"type": "string", "pattern": f"^(a|bc){{{n}}}$", "maxLength": n * 3}),
    "pattern: unicode": lambda n: _schema({"type": "string", "pattern": rf"^\p{{L}}{{1,{n}}}$"}),
    "schema: long items": lambda n: _schema({"type": "array", "minItems": n, "items": {"const": "a" * 5000}}),
    "regex: forced": lambda n: _regex(f"(a{{{n}}}){{{n}}}"),
    "regex: forced, twice repeated": lambda n: _regex(f"a{{{n}}}{{{n}}}"),
    "pattern: forced": lambda n: _schema({"type": "string", "pattern": f'^((a"){{{n}}}){{{n}}}$'}),
    "lark: long literal": lambda n: _lark(f"start: a{{{n}}}", f'a: "{"ab" * 500}"{{{n}}}'),
    "lark: long expression": lambda n: _lark(f"start: a{{{n}}}", f"a: /{'ab' * 500}/"),
    "lark: terminal of a terminal": lambda n: _lark("start: T", f"T: U{{{n}}}", f'U: "a"{{{n}}}'),
    "lark: tilde": lambda n: _lark("start: T", f'T: ("ab" ~ {n}) ~ {n}'),
    "lark: repetition": lambda n: _lark(f'start: "a"{{{n}}}'),
    "lark: repetition twice": lambda n: _lark(f"start: a{{{n}}}", f'a: "a"{{{n}}}'),
    "lark: terminal": lambda n: _lark("start: T", f"T: (/[a-c]/ | /bd/){{1,{n}}} /x/{{{n}}}"),
    "lark: and": lambda n: _lark("start: T", f"T: /([ab]*a[ab]{{{n}}})/ & ~/([ab]*b[ab]{{{n}}}b)/"),
    "lark: expression": lambda n: _lark(f"start: /[ab]*a[ab]{{{n}}}/"),
    "lark: ambiguous": lambda n: _lark("start: s", f's: s s | s s s | "a" | "b" | " " | "c"{{{n}}}'),
    "lark: substrings": lambda n: _lark("start: %regex " + json.dumps({"substring_chars": "abcde " * (n // 6)})),
}
"""Large numbers, which take time and memory."""


def _product(n: int) -> GuidedDecoding:
    either = [{"properties": {f"p{i}": {"type": "integer"}}, "required": [f"p{i}"]} for i in range(6)]
    return _schema({"allOf": [{"anyOf": either} for _ in range(n // 400)]})


TEXTS: dict[str, Make] = {
    "schema: product of alternatives": _product,
    "schema: many properties": lambda n: _schema(
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(n // 30)}}
    ),
    "schema: many patterns": lambda n: _schema(
        {"type": "object", "patternProperties": {f"a.*{i}b": {"type": "null"} for i in range(n // 30)}}
    ),
    "schema: long enum": lambda n: _schema({"enum": [f"w{i * 7919 % 10007}" for i in range(n // 10)]}),
    "schema: oneOf": lambda n: _schema(
        {"oneOf": [{"type": "object", "properties": {f"a{i}": {"type": "null"}}} for i in range(n // 60)]}
    ),
    "regex: optional ones": lambda n: _regex("a?" * (n // 3) + "a" * (n // 3)),
    "regex: stars": lambda n: _regex("(a*b*)*" * (n // 7)),
    "regex: any between": lambda n: _regex(".*x" * (n // 3)),
    "regex: unicode": lambda n: _regex(r"\p{L}+\P{N}*" * (n // 12)),
    "regex: case": lambda n: _regex("(?i)" + "äöß" * (n // 3)),
    "choice: words": lambda n: GuidedDecoding(
        "choice", json.dumps([f"{i * 7919 % 10007} words" for i in range(n // 14)])
    ),
    "choice: long": lambda n: GuidedDecoding("choice", json.dumps(["a" * n])),
    "lark: many rules": lambda n: _lark(
        "start: " + " | ".join(f"r{i}" for i in range(n // 24)), *(f'r{i}: "a{i}" | "b{i}"' for i in range(n // 24))
    ),
    "lark: many terminals": lambda n: _lark(
        "start: " + " ".join(f"T{i}?" for i in range(n // 24)), *(f"T{i}: /a.*b{i}/" for i in range(n // 24))
    ),
    "lark: ignored": lambda n: _lark('start: "a"*', *(f"%ignore /a{i}b*/" for i in range(n // 18))),
    "lark: and not": lambda n: _lark("start: T", "T: /.*/" + "".join(f" & ~/.*a.*b{i}.*/" for i in range(n // 18))),
}
"""Plain texts that may cost more than in proportion to their length."""
