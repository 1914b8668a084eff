"""Writes the arguments of a tool call as a JSON object.

Some formats write every argument as text. This module converts an argument to the type in its schema.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from server.text.parsers.base import FunctionSignature
from server.text.parsers.json_text import read_json, write_json

_ALIASES: Final = {
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


class SchemaValues:
    """Converts values to the types of their schemas. Each parser has one object, which caches the types."""

    def __init__(self) -> None:
        self._types: dict[int, frozenset[str]] = {}
        """`id` of a schema -> its types. The ids stay valid, because the request keeps the schemas."""

    def types(self, schema: dict[str, Any]) -> frozenset[str]:
        found = self._types.get(id(schema))
        if found is None:
            found = self._types[id(schema)] = schema_types(schema)
        return found

    def fit(self, value: Any, schema: dict[str, Any]) -> Any:
        """Converts a JSON value, and the members of objects and arrays in it, to the types of a schema."""
        if isinstance(value, str):
            return text_to_value(value, self.types(schema))
        if isinstance(value, dict):
            properties = schema.get("properties")
            if not isinstance(properties, dict):
                return value
            return {
                name: self.fit(member, own) if isinstance(own := properties.get(name), dict) else member
                for name, member in value.items()
            }
        if isinstance(value, list):
            items = schema.get("items")
            return [self.fit(item, items) for item in value] if isinstance(items, dict) else value
        return text_to_value(json.dumps(value), self.types(schema))


def schema_types(schema: Any) -> frozenset[str]:
    """Returns the names of the types that a schema allows. This is `string` if the schema names no type."""
    return frozenset(_named_types(schema)) or frozenset(("string",))


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


def _named_types(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return {"string"}
    named = schema.get("type")
    names = {named} if isinstance(named, str) else {n for n in _list(named) if isinstance(n, str)}
    names = {_ALIASES.get(name, name) for name in (name.strip().lower() for name in names)}
    names |= {_TYPE_OF_PYTHON[type(value)] for value in _list(schema.get("enum"))}
    for choices in ("anyOf", "oneOf", "allOf"):
        for choice in _list(schema.get(choices)):
            names |= schema_types(choice)
    return names


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


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


ONLY_TEXT: Final = frozenset(("string",))


def argument_schemas(functions: Sequence[FunctionSignature], name: str) -> Mapping[str, Any]:
    """Returns argument -> schema for the function with this name. Empty if there is no such function."""
    parameters = next((function.parameters for function in functions if function.name == name), None)
    properties = (parameters or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


class ArgumentsWriter:
    """Writes a call's arguments: strings as they arrive, and other values when they are complete."""

    def __init__(self, write: Callable[[str], None], schemas: Mapping[str, Any], values: SchemaValues) -> None:
        self._write = write
        self._schemas = schemas
        self._values = values
        self._separator = "{"
        self._schema: Any = None
        self._is_text = True
        self._parts: list[str] = []
        """The parts of the open value, if the value can only be written when it is complete."""

    def open_text(self, name: str) -> None:
        """Begins a value that arrives as text."""
        self._schema = self._schemas.get(name)
        self._is_text = not isinstance(self._schema, dict) or self._values.types(self._schema) == ONLY_TEXT
        self._parts = []
        self._write_name(name)
        if self._is_text:
            self._write('"')

    def add_text(self, text: str) -> None:
        if self._is_text:
            self._write(write_json(text)[1:-1])
        else:
            self._parts.append(text)

    def close_text(self) -> None:
        self._write('"' if self._is_text else write_json(self._values.fit("".join(self._parts), self._schema)))

    def add_value(self, name: str, value: Any) -> None:
        """Adds a value that already has a type in the model's output. The schema's type takes precedence."""
        schema = self._schemas.get(name)
        self._write_name(name)
        self._write(write_json(self._values.fit(value, schema) if isinstance(schema, dict) else value))

    def close(self) -> None:
        self._write("{}" if self._separator == "{" else "}")

    def _write_name(self, name: str) -> None:
        self._write(f"{self._separator}{write_json(name)}: ")
        self._separator = ", "
