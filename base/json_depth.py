"""Limits how deeply JSON of other programs is nested, before a parser reads it.

Parsers call themselves for each level. How many levels they can read depends on the interpreter, the thread's
stack and the caller: less than 1,000 in Python 3.11, and tens of thousands in Python 3.14.
"""

import json
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from mmap import mmap

MOST_LEVELS: Final = 200
"""The most nested levels of objects and arrays. Pydantic's parser has the same limit. With it, functions that
call themselves two or three times per level stay below Python's limit of 1,000 calls."""

_PIECE_BYTES: Final = 1 << 17
"""The bytes that are read at a time. Other threads can run between two reads."""
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")
_NO_MARKS: Final = bytes(set(range(256)) - set(b'",[]{}'))


class JsonDepthError(ValueError):
    """The text is nested too deeply."""

    def __init__(self) -> None:
        super().__init__(f"nested more than {MOST_LEVELS} levels deep")


class JsonPiece(NamedTuple):
    """The structure of a part of a JSON text."""

    marks: bytes
    """The commas and brackets outside of strings, in order. Braces are converted to brackets."""
    num_quotes: int


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    check_depth(text)
    return json.loads(text)


def check_depth(text: "str | bytes | mmap") -> None:
    """Raises JsonDepthError if the text is nested too deeply. It need not be valid JSON. Bytes are UTF-8."""
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
    """Counts how often these ASCII characters occur, both inside and outside of strings."""
    pieces = (text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES))
    return sum(piece.count(mark) for piece in pieces for mark in marks)


def split_json(text: "bytes | mmap") -> Iterator[JsonPiece]:
    """Yields the structure of a JSON text in pieces. Pieces that lie wholly in a string are skipped."""
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
