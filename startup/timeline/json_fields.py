"""Reads members of JSON from untrusted files and checks their types."""

import math
from collections.abc import Callable
from typing import Any


class JsonFields:
    """A JSON object; a member of an unexpected type raises a ValueError with its name and value."""

    def __init__(self, content: Any, what: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{what} is not a JSON object")
        self.content: dict[str, Any] = content
        self._what = what

    def text(self, name: str) -> str:
        """A string."""
        return str(self._take(name, "a text", lambda value: isinstance(value, str)))

    def amount(self, name: str) -> float:
        """A finite number, 0 or more."""
        return float(self._take(name, "a number, 0 or more", _is_amount))

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        return list(self._take(name, "a list", lambda value: isinstance(value, list)))

    def mapping(self, name: str) -> "JsonFields":
        """An inner object."""
        return JsonFields(self._take(name, "an object", lambda value: isinstance(value, dict)), name)

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        return self.content.get(name) is not None

    def _take(self, name: str, expected: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self.content.get(name)
        if not is_valid(value):
            raise ValueError(f"{name} of {self._what} is {value!r:.40}, not {expected}")
        return value


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf
