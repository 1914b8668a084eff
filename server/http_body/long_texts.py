"""Replaces long texts in a JSON body by short stand-ins before the body is decoded.

Decoding holds the GIL, for base64 of 67 MB 64 ms, during which all other requests wait. This module searches
for the end of such a text in pieces and releases the GIL between them.
"""

import re
from collections.abc import Generator
from typing import Any, NamedTuple

_LONG_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20
"""Bytes per piece; searching one takes 0.05 ms."""
_MAX_QUOTES = 10_000
"""Most quotes to scan: skipping short texts is slower than decoding them."""
_VALUE = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(\[?)")
_TEXT = re.compile(rb'[ \t\r\n,]*"')
_MARK = "#"
"""Begins a stand-in; not used in base64. A client that sends a stand-in only gets a text of its own."""


class ShortBody(NamedTuple):
    """A body with stand-ins for its long texts."""

    body: bytes
    texts: list[memoryview]
    """The long texts in ASCII or UTF-8; texts with escapes stay in the body."""

    def restore(self, value: Any) -> Any:
        """Replaces the stand-ins in a decoded field, one text or a list, by the long texts as bytes."""
        if isinstance(value, list):
            return [self.restore(member) for member in value]
        if isinstance(value, str) and value.startswith(_MARK) and value[1:].isdecimal():
            index = int(value[1:])
            return self.texts[index] if index < len(self.texts) else value
        return value


def shorten(body: bytes, field: str) -> ShortBody:
    """Replaces the field's long texts by stand-ins; a body that is not valid JSON stays invalid."""
    key = f'"{field}"'.encode()
    if find_in_pieces(body, key, 0) < 0:
        return ShortBody(body, [])
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    texts: list[memoryview] = []
    kept = 0
    for begin, end in _TextFinder(body).texts_of(key):
        if end - begin >= _LONG_BYTES and find_in_pieces(body, b"\\", begin, end) < 0:
            pieces += (view[kept:begin], f"{_MARK}{len(texts)}".encode())
            texts.append(view[begin:end])
            kept = end
    return ShortBody(b"".join((*pieces, view[kept:])), texts) if texts else ShortBody(body, [])


class _TextFinder:
    """Finds the texts of a key by scanning a body from text to text, without parsing the rest of JSON."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._quotes_left = _MAX_QUOTES

    def texts_of(self, key: bytes) -> Generator[tuple[int, int], None, None]:
        """Begin and end of every text that is the key's value, or a member of the list that is its value."""
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
        """Position of the quote that ends a text."""
        end = self._find_quote(begin)
        while end >= 0 and self._is_escaped(end):
            end = self._find_quote(end + 1)
        return end

    def _is_escaped(self, position: int) -> bool:
        """Whether an odd number of backslashes precedes the position."""
        size = 64
        while True:
            before = self._body[max(0, position - size) : position]
            num_backslashes = len(before) - len(before.rstrip(b"\\"))
            if num_backslashes < len(before) or size >= position:
                return bool(num_backslashes % 2)
            size *= 16

    def _find_quote(self, begin: int) -> int:
        self._quotes_left -= 1
        return find_in_pieces(self._body, b'"', begin) if self._quotes_left > 0 else -1


def find_in_pieces(body: bytes, wanted: bytes, begin: int, end: int | None = None) -> int:
    """As `bytes.find`, but releases the GIL between pieces."""
    end = len(body) if end is None else end
    for position in range(begin, end, _PIECE_BYTES):
        found = body.find(wanted, position, min(position + _PIECE_BYTES + len(wanted) - 1, end))
        if found >= 0:
            return found
    return -1
