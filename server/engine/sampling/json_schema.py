"""Prepares the JSON schemas of requests for llguidance, so that they allow what vLLM's backend allows."""

import json
import re
from collections.abc import Iterator
from typing import Any

from server.engine.sampling.regex_syntax import translate_regex

Schema = dict[str, Any]

SCHEMA_OPTIONS = {"coerce_one_of": True}
"""llguidance's options: `oneOf` whose branches may overlap is read as `anyOf`."""

_MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions"])
_INSTANCES = frozenset(["enum", "const", "default", "examples"])
_BRANCHES = ("anyOf", "oneOf", "allOf")
_MEMBERS = frozenset(["properties", "patternProperties", "additionalProperties", "unevaluatedProperties"])
_APPLIED = frozenset(["$ref", *_BRANCHES])
_OTHER_TYPES = frozenset(["type", "enum", "const", *_APPLIED])
_IGNORED = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas")
"""vLLM's backend ignores them, llguidance rejects them."""


def prepare_schema(text: str) -> str:
    """The schema, in which objects and tuples are closed unless they say otherwise.

    If several schemas describe one object (`allOf`, or branches beside `properties`), all objects stay open:
    a closed one would exclude the members of the others.

    Raises:
        ValueError: the text is not JSON.
    """
    schema = json.loads(text)
    if not isinstance(schema, dict):
        return text
    nodes = list(_walk(schema))
    is_closed = not any(map(_is_combined, nodes))
    for node in nodes:
        _prepare(node, is_closed=is_closed)
    return json.dumps(schema)


def _walk(schema: Schema) -> Iterator[Schema]:
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        yield node
        for key, value in node.items():
            if key not in _INSTANCES:
                waiting += _schemas(list(value.values()) if key in _MAPS and isinstance(value, dict) else value)


def _schemas(value: object) -> list[Schema]:
    return [member for member in (value if isinstance(value, list) else [value]) if isinstance(member, dict)]


def _is_combined(node: Schema) -> bool:
    """Whether several schemas describe one object."""
    if len(_schemas(node.get("allOf"))) > 1:
        return True
    branches = [branch for name in _BRANCHES for branch in _schemas(node.get(name))]
    has_others = "$ref" in node or any("$ref" in branch or _MEMBERS & branch.keys() for branch in branches)
    own = _MEMBERS & node.keys()
    if node.get("unevaluatedProperties") is False:
        own -= {"unevaluatedProperties"}
    return bool(own) and has_others


def _prepare(node: Schema, *, is_closed: bool) -> None:
    if _MEMBERS & node.keys() and not _OTHER_TYPES & node.keys():
        node["type"] = "object"
    _close(node, ("properties", "patternProperties"), "additionalProperties", "unevaluatedProperties", is_closed)
    _close(node, ("prefixItems",), "items", "unevaluatedItems", is_closed)
    for name in _IGNORED:
        node.pop(name, None)
    _restrict_names(node)
    if isinstance(pattern := node.get("pattern"), str):
        node["pattern"] = translate_regex(pattern, is_whole=False)
    if isinstance(patterns := node.get("patternProperties"), dict):
        node["patternProperties"] = {translate_regex(key, is_whole=False): value for key, value in patterns.items()}


def _restrict_names(node: Schema) -> None:
    """Replaces names by a pattern or from a list with a pattern of properties, which llguidance supports."""
    names = node.get("propertyNames")
    if not isinstance(names, dict) or "properties" in node or "patternProperties" in node:
        return
    pattern, listed = names.get("pattern"), names.get("enum")
    if isinstance(listed, list):
        pattern = f"^(?:{'|'.join(re.escape(str(name)) for name in listed)})$"
    if pattern is not None:
        del node["propertyNames"]
        node["patternProperties"] = {pattern: node.pop("additionalProperties", True)}
        node["additionalProperties"] = False


def _close(node: Schema, listed: tuple[str, ...], others: str, unevaluated: str, is_closed: bool) -> None:
    rest = node.pop(unevaluated, None)
    if rest is False and _APPLIED & node.keys():
        rest = None  # members that these schemas allow are evaluated
    if rest is None and is_closed and any(name in node for name in listed):
        rest = False
    if rest is not None:
        node.setdefault(others, rest)
