"""Finds the members of a JSON object, or the fields of a form, in a request's body.

The module scans the body in pieces, so that other threads can run in between. It decodes only keys.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import accumulate
from mmap import mmap
from typing import Final, NamedTuple

from python_multipart.multipart import parse_options_header

MOST_MEMBERS: Final = 1000
"""The most members of an object or parts of a form. Starlette has the same limit for forms."""
_LONGEST_KEY: Final = 4096
"""The most bytes of a key. Longer keys are ignored, because no known key is so long."""
_LONGEST_HEAD: Final = 16 << 10
"""The most bytes of the headers of a form's part. A field's value is also read only up to this number."""
_LONGEST_OPTIONS: Final = 1024
"""The most characters of a header with parameters, because the time to parse it grows quadratically."""
_PIECE_BYTES: Final = 8 << 10
NOT_JSON: Final = "is not valid JSON, or not an object"
_MARK: Final = re.compile(rb"[\[\]{}:,]|[^ \t\r\n\[\]{}:,]+")
_OTHER: Final = "other"
"""The kind of a number, of true, false and null, and of text that is not JSON."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NEXT: Final = {
    ("object", "{"): "first key",
    ("first key", '"'): "colon",
    ("first key", "}"): "end",
    ("key", '"'): "colon",
    ("colon", ":"): "value",
    **{("value", kind): "comma" for kind in ('"', "[", _OTHER)},
    ("comma", ","): "key",
    ("comma", "}"): "end",
}
"""(expected token, found token) -> the token that is expected next."""


class BodyFaultError(ValueError):
    """The body cannot be read. The message is the end of a sentence that begins with "The request body"."""


class Member(NamedTuple):
    """A member of a JSON object or a field of a form. Its numbers are positions in the body."""

    key: str
    begin: int
    """The position of the key, or in a form, of the part's headers."""
    value: int
    end: int


class Members(NamedTuple):
    """All members, in the order of the body. A key may occur several times."""

    all: tuple[Member, ...] = ()

    def last(self, key: str) -> Member | None:
        """The last member with this key, which counts if the key occurs several times."""
        return next((member for member in reversed(self.all) if member.key == key), None)


def json_members(body: bytes | mmap) -> Members:
    """The members of the outermost object. Values inside it are not checked. Raises BodyFaultError."""
    members: list[Member] = []
    expected, key, begin, last_end = "object", "", 0, 0
    for kind, at, end in _Scan().tokens(body):
        if kind == _OTHER and expected == "comma" and at == last_end:  # the end of a piece has split a number
            members[-1] = members[-1]._replace(end=end)
        elif (following := _NEXT.get((expected, kind))) is None:
            raise BodyFaultError(NOT_JSON)
        else:
            if following == "colon":
                key, begin = _key(body, at, end), at
            elif following == "comma":
                members.append(Member(key, begin, at, end))
                if len(members) > MOST_MEMBERS:
                    raise BodyFaultError(f"has more than {MOST_MEMBERS} members")
            expected = following
        last_end = end
    if expected != "end":
        raise BodyFaultError(NOT_JSON)
    return Members(tuple(members))


def form_fields(body: bytes | mmap, boundary: bytes) -> Members:
    """The fields of a multipart form, without files. Long values are cut. Raises BodyFaultError."""
    fields: list[Member] = []
    delimiter = b"\r\n--" + boundary
    is_first = body[: len(delimiter)] == delimiter[2:] + b"\r\n"
    begin, num_parts = len(delimiter) if is_first else _find(body, delimiter + b"\r\n", 0), 0
    while begin >= 0:
        num_parts += 1
        head = body[begin - 2 : begin + _LONGEST_HEAD]
        if num_parts > MOST_MEMBERS or (length := head.find(b"\r\n\r\n")) < 0:
            raise BodyFaultError(f"is not a valid form, or has more than {MOST_MEMBERS} parts")
        value = begin + length + 2
        if (name := _field_name(head[:length])) is not None:
            length = body[value : value + _LONGEST_HEAD].find(delimiter)
            end = value + (length if length >= 0 else _LONGEST_HEAD)
            fields.append(Member(name, begin, value, end))
        begin = _find(body, delimiter + b"\r\n", value - 2)
    if not num_parts:
        raise BodyFaultError("is not a valid form")
    return Members(tuple(fields))


def parse_options(header: str | bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Splits a header into its value and its parameters. Both are empty if it is too long or not ASCII."""
    if len(header) > _LONGEST_OPTIONS or not header.isascii():
        return b"", {}
    return parse_options_header(header)


class _Scan:
    """One pass over the outermost object in a body."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_text = False
        self._value = 0
        """The position of the string, list or object that is being read."""

    def tokens(self, body: bytes | mmap) -> Iterator[tuple[str, int, int]]:
        """Yields the kind, begin and end of each token of the object.

        The kinds are the object's punctuation, `"` for a string, `[` for a whole list or object, and `other`.
        """
        begin = len(codecs.BOM_UTF8) if body[:3] == codecs.BOM_UTF8 else 0
        while begin < len(body):
            piece = body[begin : begin + _PIECE_BYTES]
            num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
            if num_backslashes % 2 and begin + len(piece) < len(body):
                piece = piece[:-1]  # the next piece begins with the escaped character
            at, begin = begin, begin + len(piece)
            if self._is_in_text and b'"' not in piece:
                continue
            if b"\\" in piece:
                piece = piece.replace(b"\\\\", b"..").replace(b'\\"', b"..")
            parts = piece.split(b'"')
            if not self._skips(parts):
                yield from self._split(parts, at)

    def _skips(self, parts: list[bytes]) -> bool:
        """Whether the piece lies wholly within a nested value. `parts` is the piece, split at its quotes."""
        if self._depth < 2:
            return False
        outside_text = b"".join(parts[self._is_in_text :: 2])
        steps = memoryview(outside_text.translate(_STEPS, _NO_BRACKETS)).cast("b")
        if min(accumulate(steps, initial=self._depth)) < 2:
            return False
        self._depth += sum(steps)
        self._is_in_text ^= len(parts) % 2 == 0
        return True

    def _split(self, parts: list[bytes], at: int) -> Iterator[tuple[str, int, int]]:
        for number, part in enumerate(parts):
            if number:
                self._is_in_text = not self._is_in_text
                at += 1
                if self._depth < 2 and not self._is_in_text:
                    yield '"', self._value, at
                elif self._depth < 2:
                    self._value = at - 1
            if not self._is_in_text:
                for mark in _MARK.finditer(part):
                    begin, end = mark.span()
                    token = self._read(chr(part[begin]), at + begin, at + end)
                    if token is not None:
                        yield token
            at += len(part)

    def _read(self, mark: str, begin: int, end: int) -> tuple[str, int, int] | None:
        if mark in "[{":
            self._depth += 1
            if self._depth == 2:
                self._value = begin
            return (mark, begin, end) if self._depth == 1 else None
        if mark in "]}":
            self._depth -= 1
            if self._depth == 1:
                return "[", self._value, end
            return (mark, begin, end) if self._depth < 1 else None
        if self._depth >= 2:
            return None
        kind = mark if mark in ":," else _OTHER
        return kind, begin, end


def _key(body: bytes | mmap, begin: int, end: int) -> str:
    if end - begin > _LONGEST_KEY:
        return ""
    try:
        return str(json.loads(body[begin:end]))
    except ValueError as err:
        raise BodyFaultError(NOT_JSON) from err


def _field_name(head: bytes) -> str | None:
    """The name of a form's field. None if the part is a file."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            _, options = parse_options(value.strip())
            if b"name" in options and b"filename" not in options:
                return options[b"name"].decode("utf-8", "replace")
    return None


def _find(body: bytes | mmap, text: bytes, begin: int) -> int:
    """The position after the next occurrence of `text`, or -1 if there is none."""
    for at in range(begin, len(body), _PIECE_BYTES):
        found = body[at : at + _PIECE_BYTES + len(text) - 1].find(text)
        if found >= 0:
            return at + found + len(text)
    return -1
