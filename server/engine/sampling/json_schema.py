"""Prepares JSON schemas and regular expressions for llguidance, so that they mean the same as in vLLM."""

import json
import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

SCHEMA_OPTIONS = {"coerce_one_of": True}
"""Options of llguidance that make it read `oneOf` with overlapping branches as `anyOf`."""

_MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions"])
_INSTANCES = frozenset(["enum", "const", "default", "examples"])
_BRANCHES = ("anyOf", "oneOf", "allOf")
_MEMBERS = frozenset(["properties", "patternProperties", "additionalProperties", "unevaluatedProperties"])
_APPLIED = frozenset(["$ref", *_BRANCHES])
_OTHER_TYPES = frozenset(["type", "enum", "const", *_APPLIED])
_IGNORED = ("not", "if", "then", "else", "dependentRequired", "dependentSchemas")
"""Keywords that vLLM's backend ignores and llguidance rejects."""

_ESCAPE = r"\\(?:u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|.)"
_OUTSIDE = re.compile(_ESCAPE + r"|\[\^?\]?|.", re.DOTALL)
_INSIDE = re.compile(_ESCAPE + r"|\[:\^?[a-z]{1,8}:\]|--|.", re.DOTALL)
"""`_OUTSIDE` and `_INSIDE` match one token of an expression, outside or inside of a character class."""
_CLASSES = {
    "d": "[0-9]",
    "D": "[^0-9]",
    "w": "[a-zA-Z0-9_]",
    "W": "[^a-zA-Z0-9_]",
    "s": r"[\t-\r \xa0]",
    "S": r"[^\t-\r \xa0]",
}
_CONTROLS = {"0": r"\x00", "e": r"\x1b"}
_KEPT_ESCAPES = frozenset("abfnprtuvxBPUk123456789")
_ANCHORS = frozenset(["^", "$", r"\A", r"\z", r"\Z"])
_EMPTY = "(?:)"


def prepare_schema(text: str) -> str:
    """Closes a schema's objects and tuples (no unlisted members), unless the schema allows such members.

    If several schemas describe one object (`allOf`, or branches beside `properties`), all objects stay
    open, because a closed object would exclude the members that the other schemas describe.

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
    members = value if isinstance(value, list) else [value]
    return [member for member in members if isinstance(member, dict)]


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
    """Turns `propertyNames` with a pattern or list into `patternProperties`, which llguidance supports."""
    names = node.get("propertyNames")
    if not isinstance(names, dict) or "properties" in node or "patternProperties" in node:
        return
    pattern, listed = names.get("pattern"), names.get("enum")
    if isinstance(listed, list):
        pattern = f"^(?:{'|'.join(re.escape(str(name)) for name in listed)})$"
    if isinstance(pattern, str):  # llguidance rejects all other schemas
        del node["propertyNames"]
        node["patternProperties"] = {pattern: node.pop("additionalProperties", True)}
        node["additionalProperties"] = False


def _close(node: Schema, listed: tuple[str, ...], others: str, unevaluated: str, is_closed: bool) -> None:
    rest = node.pop(unevaluated, None)
    if rest is False and _APPLIED & node.keys():
        rest = None  # members that these schemas allow count as evaluated
    if rest is None and is_closed and any(name in node for name in listed):
        rest = False
    if rest is not None:
        node.setdefault(others, rest)


def translate_regex(pattern: str, *, is_whole: bool = True) -> str:
    """Translates an expression for llguidance.

    `is_whole`: whether the expression describes a whole text. A JSON schema's pattern may match anywhere.
    """
    parts: list[str] = []
    position, is_in_class = 0, False
    while (match := (_INSIDE if is_in_class else _OUTSIDE).match(pattern, position)) is not None:
        token, position = match.group(), match.end()
        if token in _ANCHORS and not is_in_class:
            parts.append(_EMPTY if is_whole else token.replace("Z", "z"))
        elif token[0] == "\\" and len(token) > 1:
            parts.append(_escape(token[1:], is_in_class=is_in_class))
        elif is_in_class:
            is_in_class = token != "]"
            parts.append("\\" + token if token in ("[", "--", "&", "~") else token)
        else:
            is_in_class = token[0] == "["
            parts.append("(?s:.)" if is_whole and token == "." else token)
    return "".join(parts)


def _escape(name: str, *, is_in_class: bool) -> str:
    if name[0] == "c" and len(name) == 2:
        return f"\\x{ord(name[1]) % 32:02x}"
    if name == "b" and is_in_class:
        return r"\x08"
    if name in _CLASSES or name in _CONTROLS:
        return _CLASSES.get(name) or _CONTROLS[name]
    is_mark = name.isascii() and not name.isalnum() and name not in "<> "
    return "\\" + name if is_mark or name[0] in _KEPT_ESCAPES else name
