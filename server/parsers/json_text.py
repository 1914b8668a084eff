"""JSON as an answer can hold it, which Python's own goes beyond.

JSON has no NaN and no infinity, and a text with half of a surrogate pair cannot be sent as UTF-8.
"""

import json
import math
import re
from typing import Any, Final, Literal

_MOST_NESTED: Final = 500
"""Levels of a value; Python's own limit depends on the caller, and it can read more than it can write."""

_SPACE: Final = re.compile(r"\s*")
_IN_STRING: Final = re.compile(r'["\\]')
_IN_CONTAINER: Final = re.compile(r'["{}\[\]<]')
_AFTER_LITERAL: Final = re.compile(r"[\s,\]}<]")


def write_json(value: Any) -> str:
    """The value as JSON, in characters; as ASCII with escapes if a text holds half of a surrogate pair.

    Raises:
        ValueError: it holds NaN, an infinity or an integer of thousands of digits.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if is_unicode(text) else json.dumps(value)


def read_json(text: str) -> Any:
    """The value of a JSON text that can be written again.

    Raises:
        ValueError: it is not JSON, holds a number that is too large, or is nested too deeply.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as err:
        raise ValueError("nested too deeply") from err
    if text.count("[") + text.count("{") > _MOST_NESTED and is_nested_deeper(value, _MOST_NESTED):
        raise ValueError("nested too deeply")
    return value


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Whether an object or array has more levels than these; looks at no more of it."""
    layer = [value]
    for _ in range(levels):
        children = (node.values() if isinstance(node, dict) else node for node in layer)
        layer = [child for each in children for child in each if isinstance(child, dict | list)]
        if not layer:
            return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)


class JsonValueEnd:
    """Finds the end of a value that arrives in pieces. It counts brackets and checks nothing else.

    The value also ends before a `<` outside its strings: JSON has none, but markers of formats begin with it.
    """

    def __init__(self) -> None:
        self._state: Literal["before", "container", "string", "escape", "literal", "done"] = "before"
        self._depth = 0

    def find(self, text: str) -> int | None:
        """The index behind the value in the next piece; None if the value goes on."""
        position = 0
        while position < len(text) and self._state != "done":
            if self._state == "before":
                position = self._begin(text, position)
            elif self._state == "string":
                position = self._read_string(text, position)
            elif self._state == "escape":
                self._state, position = "string", position + 1
            else:
                position = self._read_outside(text, position)
        return position if self._state == "done" else None

    def _begin(self, text: str, position: int) -> int:
        """Reads blanks and the value's first character."""
        position += len(_SPACE.match(text, position)[0])  # type: ignore[index]
        first = text[position : position + 1]
        if first == '"':
            self._state = "string"
        elif first in ("{", "["):
            self._state, self._depth = "container", 1
        elif first:
            self._state = "literal"
            return position
        return position + 1

    def _read_string(self, text: str, position: int) -> int:
        found = _IN_STRING.search(text, position)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._state = "escape"
        else:
            self._state = "container" if self._depth else "done"
        return found.end()

    def _read_outside(self, text: str, position: int) -> int:
        """Reads up to the next character that matters, in a list, an object or a literal."""
        is_literal = self._state == "literal"
        found = (_AFTER_LITERAL if is_literal else _IN_CONTAINER).search(text, position)
        if found is None:
            return len(text)
        if is_literal or found[0] == "<":
            self._state = "done"
            return found.start()
        if found[0] == '"':
            self._state = "string"
        else:
            self._depth += 1 if found[0] in "{[" else -1
            if not self._depth:
                self._state = "done"
        return found.end()
