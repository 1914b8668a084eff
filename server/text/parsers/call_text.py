"""Reads the text of a complete tool call. Each reader raises ValueError for text that is no call.

Some formats write every argument as text. Such an argument gets the type that the function's schema names.
"""

import ast
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

import regex

from server.text.parsers.json_text import is_unicode, read_json, write_json

Found = regex.Match[str]
Schema = dict[str, Any]


class Call(NamedTuple):
    """A call, with its arguments as JSON."""

    name: str
    arguments: str
    id: str | None = None


class Functions:
    """The functions in the request's `tools`, with the types of their arguments."""

    def __init__(self, parameters: Mapping[str, Schema | None]) -> None:
        """`parameters`: name of a function -> the JSON schema of its arguments, if it has one."""
        self._parameters = parameters
        self._types: dict[tuple[str, str], frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def typed(self, name: str, key: str, value: Any) -> Any:
        """Converts an argument that is text to the type in the function's schema, if the schema has it."""
        if not isinstance(value, str):
            return value
        if (types := self._types.get((name, key))) is None:
            schemas = (self._parameters.get(name) or {}).get("properties")
            types = schema_types(schemas.get(key) if isinstance(schemas, dict) else None)
            self._types[name, key] = types
        return text_to_value(value, types)


Reader = Callable[[Found, str, Functions], list[Call]]
"""Reads the calls in a text. The match is the call's opening, which may have the groups `name` and `id`."""


def read_json_calls(opening: Found, text: str, functions: Functions) -> list[Call]:
    """Reads `{"name": …, "arguments": …}` or a list of these. Reads arguments if the opening has a name."""
    value, groups = read_json(text), opening.groupdict()
    if groups.get("name"):
        return [_call(groups["name"].strip(), value, groups.get("id"))]
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ValueError("no call")
    return [_call_of_object(item, may_omit_arguments=bool(opening[0])) for item in items]


def _call_of_object(item: Any, *, may_omit_arguments: bool) -> Call:
    """Only text behind a marker may be a call without arguments. Other JSON often has a `name`, too."""
    if not isinstance(item, dict):
        raise ValueError("not an object")
    arguments = [item[key] for key in ("arguments", "parameters") if key in item]
    if not arguments and not (may_omit_arguments and item.keys() == {"name"}):
        raise ValueError("no arguments")
    return _call(item.get("name"), arguments[0] if arguments else {})


def _call(name: Any, arguments: Any, call_id: str | None = None) -> Call:
    """Makes a call. Its arguments may be a text that contains JSON."""
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise ValueError("no name")
    return Call(name, write_json(read_json(arguments) if isinstance(arguments, str) else arguments), call_id)


def tagged(tags: str, *, only_known: bool = False) -> Reader:
    """Returns a reader of arguments between tags, which match `tags` with the groups `key` and `value`.

    With `only_known`, only functions of the request's `tools` can be called.
    """

    def read(opening: Found, text: str, functions: Functions) -> list[Call]:
        pattern = regex.compile(tags, regex.DOTALL)  # takes time, but `regex` keeps it
        if pattern.sub("", text).strip(", \t\n"):
            raise ValueError("text between arguments")
        name = opening["name"].strip()
        if only_known and name not in functions:
            raise ValueError("unknown function")
        arguments = {found["key"].strip(): found["value"] for found in pattern.finditer(text)}
        return [write_typed_call(name, arguments, functions)]

    return read


_GEMMA_PART: Final = regex.compile(
    r'<\|"\|>(?P<text>.*?)<\|"\|>|(?P<bare>[^\s{}()\[\],:<][^{}()\[\],:<]*+)', regex.DOTALL
)


def read_gemma_call(opening: Found, text: str, functions: Functions) -> list[Call]:
    """Reads Gemma 4's `{KEY:<|"|>TEXT<|"|>,KEY:NUMBER}`. The text becomes JSON first."""
    arguments = read_json(_GEMMA_PART.sub(_gemma_part_as_json, text))
    return [write_typed_call(opening["name"], arguments, functions)]


def _gemma_part_as_json(found: Found) -> str:
    bare = found["bare"]
    if bare is None:
        return json.dumps(found["text"])
    if not found.string.startswith(":", found.end()):
        with suppress(ValueError):
            read_json(bare)
            return bare
    return json.dumps(bare.strip())


_STRING: Final = regex.compile(r"""'(?:\\[\s\S]|[^'\\])*+(?:'|\\?\Z)|"(?:\\[\s\S]|[^"\\])*+(?:"|\\?\Z)""")
"""A string literal. A literal without a closing quote extends to the end of the text."""
_ESCAPES: Final = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\x00"})
_JSON_NAMES: Final = {"null": None, "true": True, "false": False}


def read_python_calls(opening: Found, text: str, functions: Functions) -> list[Call]:
    """Reads calls in Python's syntax: a list of calls, or one call in each line."""
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            # Python allows no line breaks in string literals, but models write them.
            escaped = _STRING.sub(lambda found: found[0].translate(_ESCAPES), text.strip())
            body = ast.parse(escaped).body
        calls = [_python_call(node) for statement in body for node in _nodes(statement)]
    except (SyntaxError, RecursionError, MemoryError) as err:
        raise ValueError("not Python") from err
    if not calls:
        raise ValueError("no call")
    return calls


def _nodes(statement: ast.stmt) -> list[ast.expr]:
    if not isinstance(statement, ast.Expr):
        raise ValueError("not an expression")
    return statement.value.elts if isinstance(statement.value, ast.List) else [statement.value]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keywords")
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return Call(".".join(reversed(list(_names(node.func)))), write_json(arguments))


def _names(function: ast.expr) -> Iterator[str]:
    while isinstance(function, ast.Attribute):
        yield function.attr
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("not a name")
    yield function.id


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | str() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(key is not None for key in keys):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
    raise ValueError("not a JSON value")


def _key(node: ast.expr | None) -> Any:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, None | str | int | float):
        raise ValueError("not a JSON key")
    return node.value


def write_typed_call(name: str, arguments: Any, functions: Functions) -> Call:
    """Makes a call. Each argument that is text gets the type in the function's schema, if it has one."""
    if not isinstance(arguments, dict):
        raise ValueError("not an object")
    typed = {key: functions.typed(name, key, value) for key, value in arguments.items()}
    return _call(name, typed)


_ALIASES: Final[Mapping[str, str]] = {
    alias: name
    for name, aliases in {
        "string": "str text varchar char enum",
        "integer": "int int32 int64 uint uint32 uint64 long short unsigned",
        "number": "float float32 float64 double",
        "boolean": "bool",
        "object": "dict",
        "array": "arr list sequence",
    }.items()
    for alias in aliases.split()
}

_TYPE_OF_PYTHON: Final[dict[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def schema_types(schema: Any) -> frozenset[str]:
    """Returns the names of the types that a schema allows. This is `string` if the schema names no type."""
    if not isinstance(schema, dict):
        return frozenset(("string",))
    named = schema.get("type")
    given = [named] if isinstance(named, str) else _list(named)
    lower = [name.strip().lower() for name in given if isinstance(name, str)]
    names = {_ALIASES.get(name, name) for name in lower}
    names |= {_TYPE_OF_PYTHON[type(value)] for value in _list(schema.get("enum"))}
    for choices in ("anyOf", "oneOf", "allOf"):
        for choice in _list(schema.get(choices)):
            names |= schema_types(choice)
    return frozenset(names or ("string",))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def text_to_value(text: str, types: frozenset[str]) -> Any:
    """Converts a text to the first of the types that fits. Null is tried first, string last."""
    for name, read in _READERS.items():
        if name in types:
            with suppress(ValueError):
                return read(text)
    try:
        return read_json(text)
    except ValueError:
        return text


def _read_null(text: str) -> None:
    if text.lower() != "null":
        raise ValueError(text)


def _read_number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return int(number) if number.is_integer() else number


def _read_boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return word in ("true", "1")


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "null": _read_null,
    "integer": int,
    "number": _read_number,
    "boolean": _read_boolean,
    "object": read_json,
    "array": read_json,
    "string": str,
}
"""Name of a type -> the function that reads a value of this type. The types are tried in this order."""
