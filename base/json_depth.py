"""Limits the nesting of JSON that other programs have written, before a parser reads it.

Parsers call themselves for each level. How many levels they can read depends on the interpreter, the thread's
stack and the caller: less than 1,000 with Python 3.11, tens of thousands with 3.14.
"""

import json
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from mmap import mmap

MOST_LEVELS: Final = 200
"""Most objects and arrays inside one another, as in Pydantic's parser. Python functions that call themselves
two or three times per level then stay below the interpreter's limit of 1,000 calls."""

_PIECE_BYTES: Final = 1 << 17
"""Bytes that are read at a time. Other threads may run between two pieces."""
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")
_NO_MARKS: Final = bytes(set(range(256)) - set(b'",[]{}'))


class JsonDepthError(ValueError):
    """The text is nested too deeply."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {MOST_LEVELS} levels deep")


class JsonPiece(NamedTuple):
    """A piece of JSON."""

    marks: bytes
    """The commas and brackets outside of strings, in order. Braces are written as brackets."""
    num_quotes: int


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    check_depth(text)
    return json.loads(text)


def check_depth(text: "str | bytes | mmap") -> None:
    """Raises JsonDepthError if the text, which need not be valid, is nested too deeply. Bytes are UTF-8."""
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if count(content, b"[{") <= MOST_LEVELS:
        return
    depth = 0
    for marks, _ in split_json(content):
        num_opened = marks.count(b"[")
        if depth + num_opened > MOST_LEVELS:
            steps = memoryview(marks.translate(_STEPS, b",")).cast("b")
            if max(accumulate(steps, initial=depth)) > MOST_LEVELS:
                raise JsonDepthError
        depth += num_opened - marks.count(b"]")


def count(text: "bytes | mmap", marks: bytes) -> int:
    """How often these ASCII characters occur, inside and outside of strings."""
    pieces = (text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES))
    return sum(piece.count(mark) for piece in pieces for mark in marks)


def split_json(text: "bytes | mmap") -> Iterator[JsonPiece]:
    """Yields the structure of a JSON text in pieces. A piece that lies inside a long string is skipped."""
    begin, is_in_text = 0, False
    while begin < len(text):
        piece = text[begin : begin + _PIECE_BYTES]
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if num_backslashes % 2 and begin + len(piece) < len(text):
            piece = piece[:-1]  # the escaped character is in the next piece
        begin += len(piece)
        if is_in_text and b'"' not in piece:
            continue
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        marks = piece.translate(_BRACKETS, _NO_MARKS)
        inside_and_outside = marks.replace(b'""', b"").split(b'"')
        yield JsonPiece(b"".join(inside_and_outside[is_in_text::2]), marks.count(b'"'))
        is_in_text ^= len(inside_and_outside) % 2 == 0
