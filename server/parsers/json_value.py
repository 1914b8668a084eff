"""Finds the end of a JSON value that arrives in pieces."""

import re
from typing import Final, Literal

_SPACE: Final = re.compile(r"\s*")
_IN_STRING: Final = re.compile(r'["\\]')
_IN_CONTAINER: Final = re.compile(r'["{}\[\]<]')
_AFTER_LITERAL: Final = re.compile(r"[\s,\]}<]")


class JsonValueEnd:
    """One per value. It counts brackets and checks nothing else.

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
