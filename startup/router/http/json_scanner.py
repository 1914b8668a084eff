"""Finds the requested model in a body of JSON."""

import json
import re
from typing import TYPE_CHECKING, Final

from startup.router.http.model_scanner import LONGEST_NAME, ModelScanner

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_KEY: Final = 64
"""Bytes of a key or a number that are kept: `stream` with every letter escaped has 36."""
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_SCALAR: Final = re.compile(rb'[^ \t\r\n,{}\[\]":]*+')
_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
"""The rest of a string up to its closing quote."""
_OTHER_MEMBERS: Final = re.compile(
    rb"""
    (?:
      [ \t\r\n]*+ "(?!model"|stream")[^"\\]*+"
      [ \t\r\n]*+ :
      [ \t\r\n]*+ (?:[^ \t\r\n,{}\[\]":]++ | "[^"\\]*+(?:\\.[^"\\]*+)*+")
      [ \t\r\n]*+ ,
    )*+
    """,
    re.DOTALL | re.VERBOSE,
)
"""Whole members that are not looked for and have no nested value."""
_FLAT: Final = re.compile(
    rb"""
    (?:
      [^"{}\[\]]++
      | "[^"\\]*+(?:\\.[^"\\]*+)*+"
      | [{\[] (?: [^"{}\[\]]++ | "[^"\\]*+(?:\\.[^"\\]*+)*+" )*+ [}\]]
    )*+
    """,
    re.DOTALL | re.VERBOSE,
)
"""All of a nested value up to a bracket that is not closed soon, or to a string whose end has not arrived."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPENING = frozenset(b"{[")
_OBJECT, _END_OF_OBJECT = b"{}"


class JsonScanner(ModelScanner):
    """Reads an object. What it skips is not checked: the server that gets the request does that."""

    def __init__(self) -> None:
        super().__init__()
        self._read: Callable[[bytes, int], int] = self._read_begin
        """Reads the token that is expected, or a part of it; returns where it ends."""
        self._key = ""
        """The current member, if it is one of those that are looked for."""
        self._may_end = True
        """Whether the object may end instead of another key: it is empty."""
        self._depth = 0
        """Open brackets of a nested value."""
        self._kept = bytearray()
        """What has arrived of a key, a number, or a text that is looked for."""
        self._is_kept = False
        """Whether the current text is looked for."""
        self._is_escaped = False
        """Whether the last part ended between a backslash and the character behind it."""
        self._mark = b""
        """What has arrived of a byte order mark."""

    def feed(self, data: bytes) -> None:
        """Reads the next part of the body; whatever is wrong with it, no error is raised."""
        position = 0
        while position < len(data) and not self.is_complete:
            position = self._read(data, position)

    def _read_begin(self, data: bytes, position: int) -> int:
        byte = data[position]
        if self._mark or byte == _BYTE_ORDER_MARK[0]:
            self._mark += bytes((byte,))
            if self._mark == _BYTE_ORDER_MARK:
                self._mark = b""
            elif not _BYTE_ORDER_MARK.startswith(self._mark):
                self._fail()
            return position + 1
        position = _end(_SPACE.match(data, position))
        if position < len(data):
            if data[position] != _OBJECT:
                self._fail()
            self._read = self._read_key
        return position + 1

    def _read_key(self, data: bytes, position: int) -> int:
        begin, position = position, _end(_OTHER_MEMBERS.match(data, position))
        if position > begin:
            self._may_end = False
        position = _end(_SPACE.match(data, position))
        if position == len(data):
            return position
        if data[position] == _QUOTE:
            self._kept.clear()
            self._is_kept = True
            self._read = self._read_rest_of_key
        elif data[position] == _END_OF_OBJECT and self._may_end:
            self.is_complete = True
        else:
            self._fail()
        self._may_end = False
        return position + 1

    def _read_rest_of_key(self, data: bytes, position: int) -> int:
        position, is_whole = self._read_text(data, position)
        if is_whole:
            self._key = (_decode(self._kept) or "") if len(self._kept) <= _LONGEST_KEY else ""
            self._read = self._read_colon
        return position

    def _read_colon(self, data: bytes, position: int) -> int:
        position = _end(_SPACE.match(data, position))
        if position == len(data):
            return position
        if data[position] != _COLON:
            self._fail()
        self._read = self._read_value
        return position + 1

    def _read_value(self, data: bytes, position: int) -> int:
        position = _end(_SPACE.match(data, position))
        if position == len(data):
            return position
        self._kept.clear()
        if data[position] == _QUOTE:
            self._is_kept = self._key == "model"
            self._read = self._read_rest_of_text
            return position + 1
        if data[position] in _OPENING:
            self._depth = 1
            self._note_value()
            self._read = self._read_nested
            return position + 1
        self._read = self._read_scalar
        return position

    def _read_rest_of_text(self, data: bytes, position: int) -> int:
        position, is_whole = self._read_text(data, position)
        if is_whole:
            self._note_value(self._decode_name() if self._is_kept else None)
            self._read = self._read_comma
        return position

    def _read_scalar(self, data: bytes, position: int) -> int:
        end = _end(_SCALAR.match(data, position))
        self._keep(data[position:end], _LONGEST_KEY)
        if end == len(data):
            return end
        if not self._kept:
            self._fail()
        self._note_value(scalar=bytes(self._kept))
        self._read = self._read_comma
        return end

    def _read_nested(self, data: bytes, position: int) -> int:
        depth = self._depth
        while (position := _end(_FLAT.match(data, position))) < len(data):
            byte = data[position]
            position += 1
            if byte == _QUOTE:
                self._is_kept = False
                self._read = self._read_nested_text
                break
            depth += 1 if byte in _OPENING else -1
            if not depth:
                self._read = self._read_comma
                break
        self._depth = depth
        return position

    def _read_nested_text(self, data: bytes, position: int) -> int:
        position, is_whole = self._read_text(data, position)
        if is_whole:
            self._read = self._read_nested
        return position

    def _read_comma(self, data: bytes, position: int) -> int:
        position = _end(_SPACE.match(data, position))
        if position == len(data):
            return position
        if data[position] == _END_OF_OBJECT:
            self.is_complete = True
        elif data[position] != _COMMA:
            self._fail()
        self._read = self._read_key
        return position + 1

    def _read_text(self, data: bytes, position: int) -> "tuple[int, bool]":
        """Reads on up to the closing quote; returns where that ends, and whether the quote has arrived."""
        begin = position
        if self._is_escaped:
            self._is_escaped = False
            position += 1
        end = data.find(b'"', position)
        if end < 0:
            end = len(data)
        if data.find(b"\\", position, end) >= 0:
            end = _end(_STRING.match(data, position))
        self._is_escaped = end < len(data) and data[end] == _BACKSLASH
        is_whole = end < len(data) and not self._is_escaped
        if self._is_kept:
            self._keep(data[begin : end + self._is_escaped], LONGEST_NAME)
        return min(end + 1, len(data)), is_whole

    def _note_value(self, text: str | None = None, *, scalar: bytes = b"") -> None:
        """Notes the value of the current member: a text, a number or literal, or something else."""
        if self._key == "model":
            self.set_model(text, is_other_type=text is None and scalar != b"null")
        elif self._key == "stream":
            self.is_stream = scalar == b"true"

    def _keep(self, part: bytes, most: int) -> None:
        """Keeps a part of the token, but only one byte beyond the longest one that matters."""
        self._kept += part[: most + 1 - len(self._kept)]

    def _decode_name(self) -> str | None:
        """The name that was kept; a longer one without its end, which no model is named."""
        if len(self._kept) > LONGEST_NAME:
            return self._kept[:LONGEST_NAME].decode("utf-8", "replace")
        name = _decode(self._kept)
        if name is None:
            self._fail()
        return name

    def _fail(self) -> None:
        """The body is not JSON, or no object: it requests no model."""
        self._key = ""
        self.set_model(None)
        self.is_stream = False
        self.is_complete = self.is_invalid = True


def _end(found: re.Match[bytes] | None) -> int:
    """Where the match of a pattern that always matches ends."""
    assert found is not None
    return found.end()


def _decode(text: bytearray) -> str | None:
    """What stands between two quotes; None if it is not valid JSON."""
    try:
        return str(json.loads(b'"' + text + b'"'))
    except ValueError:
        return None
