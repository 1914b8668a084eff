"""Takes long texts out of a JSON body before it is decoded.

Decoding holds the interpreter all the time, 64 ms for base64 of 67 MB: so long would every other request wait, whatever
thread it is done on. Looking for the end of such a text in pieces lets the others have their turns.
"""

import re
from collections.abc import Generator
from typing import Any, NamedTuple

_LONG_BYTES = 1 << 16
_AT_ONCE = 1 << 20
"""Looked through in a twentieth of a millisecond."""
_MAX_QUOTES = 10_000
"""Walking past a text takes longer than decoding it: after so many the rest of the body is left alone."""
_VALUE = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(\[?)")
_TEXT = re.compile(rb'[ \t\r\n,]*"')
_MARK = "#"
"""Begins the stand-ins; base64 has no such character, and who sends one himself gets a text of his own."""


class ShortBody(NamedTuple):
    """A body whose long texts are stand-ins."""

    body: bytes
    texts: list[memoryview]
    """The long texts in ASCII or UTF-8; those with escapes stay where they are."""

    def put_back(self, value: Any) -> Any:
        """A decoded field, one text or a list, with the long texts as bytes where their stand-ins were."""
        if isinstance(value, list):
            return [self.put_back(member) for member in value]
        if isinstance(value, str) and value.startswith(_MARK) and value[1:].isdecimal():
            index = int(value[1:])
            return self.texts[index] if index < len(self.texts) else value
        return value


def shorten(body: bytes, field: str) -> ShortBody:
    """Cuts the field's long texts out; a body that is no JSON stays as wrong as it is."""
    key = f'"{field}"'.encode()
    if _find(body, key, 0) < 0:
        return ShortBody(body, [])
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    texts: list[memoryview] = []
    kept = 0
    for begin, end in _Walk(body).texts_of(key):
        if end - begin >= _LONG_BYTES and _find(body, b"\\", begin, end) < 0:
            pieces += (view[kept:begin], f"{_MARK}{len(texts)}".encode())
            texts.append(view[begin:end])
            kept = end
    return ShortBody(b"".join((*pieces, view[kept:])), texts) if texts else ShortBody(body, [])


class _Walk:
    """Goes through a body from text to text, which is all of JSON that one has to know to find a key."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._quotes_left = _MAX_QUOTES

    def texts_of(self, key: bytes) -> Generator[tuple[int, int], None, None]:
        """Begin and end of every text that is the key's value or in the list that is."""
        position = 0
        while (begin := self._find_quote(position)) >= 0 and (end := self._find_end(begin + 1)) >= 0:
            position = end + 1
            if position - begin == len(key) and self._body.startswith(key, begin):
                position = yield from self._texts_of_value(position)

    def _texts_of_value(self, position: int) -> Generator[tuple[int, int], None, int]:
        value = _VALUE.match(self._body, position)
        if value is None:
            return position
        inside = value.end()
        while (text := _TEXT.match(self._body, inside)) and (end := self._find_end(text.end())) >= 0:
            yield text.end(), end
            inside = end + 1
            if not value[1]:
                break
        return inside

    def _find_end(self, begin: int) -> int:
        """The quote that ends a text."""
        end = self._find_quote(begin)
        while end >= 0 and self._is_escaped(end):
            end = self._find_quote(end + 1)
        return end

    def _is_escaped(self, position: int) -> bool:
        """Whether an odd number of backslashes stands before."""
        size = 64
        while True:
            before = self._body[max(0, position - size) : position]
            num_backslashes = len(before) - len(before.rstrip(b"\\"))
            if num_backslashes < len(before) or size >= position:
                return bool(num_backslashes % 2)
            size *= 16

    def _find_quote(self, begin: int) -> int:
        self._quotes_left -= 1
        return _find(self._body, b'"', begin) if self._quotes_left > 0 else -1


def _find(body: bytes, wanted: bytes, begin: int, end: int | None = None) -> int:
    """As `bytes.find`, but the interpreter is let go now and then."""
    end = len(body) if end is None else end
    for position in range(begin, end, _AT_ONCE):
        found = body.find(wanted, position, min(position + _AT_ONCE + len(wanted) - 1, end))
        if found >= 0:
            return found
    return -1
