"""Writes the JSON object of a call's arguments while their values arrive as text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from server.parsers.base import FunctionDefinition
from server.parsers.json_text import write_json
from server.parsers.schema_values import SchemaValues

ONLY_TEXT: Final = frozenset(("string",))


def argument_schemas(functions: Sequence[FunctionDefinition], name: str) -> Mapping[str, Any]:
    """The schemas of a function's arguments by name; empty for functions that are not known."""
    parameters = next((function.parameters for function in functions if function.name == name), None)
    properties = (parameters or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


class ArgumentsWriter:
    """Strings are written as they arrive, values of other types when they are complete."""

    def __init__(self, write: Callable[[str], None], schemas: Mapping[str, Any], values: SchemaValues) -> None:
        self._write = write
        self._schemas = schemas
        self._values = values
        self._separator = "{"
        self._schema: Any = None
        self._is_text = True
        self._parts: list[str] = []
        """Of a value that is written when it is complete."""

    def open_text(self, name: str) -> None:
        """Begins a value that arrives as text."""
        self._schema = self._schemas.get(name)
        self._is_text = not isinstance(self._schema, dict) or self._values.types(self._schema) == ONLY_TEXT
        self._parts = []
        self._write_name(name)
        if self._is_text:
            self._write('"')

    def add_text(self, text: str) -> None:
        """Adds to the open value."""
        if self._is_text:
            self._write(write_json(text)[1:-1])
        else:
            self._parts.append(text)

    def close_text(self) -> None:
        """Ends the open value."""
        self._write('"' if self._is_text else write_json(self._values.fit("".join(self._parts), self._schema)))

    def add_value(self, name: str, value: Any) -> None:
        """A value that the format wrote with a type; the schema's type applies."""
        schema = self._schemas.get(name)
        self._write_name(name)
        self._write(write_json(self._values.fit(value, schema) if isinstance(schema, dict) else value))

    def close(self) -> None:
        """Ends the object."""
        self._write("{}" if self._separator == "{" else "}")

    def _write_name(self, name: str) -> None:
        self._write(f"{self._separator}{write_json(name)}: ")
        self._separator = ", "
