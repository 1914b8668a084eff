"""Checks a body's shape before it is decoded: the depth of nesting and the number of values.

Three bytes of JSON can become an object of sixty bytes, and every level of nesting needs stack in later
steps. Decoding holds the GIL, for a body that consists of numbers half a second. A short body, which is
decoded on the event loop, is checked by a few operations on all of its bytes. A long one is scanned, skipping
its texts; the scan releases the GIL between pieces, like `long_texts`.
"""

import re
from collections.abc import Iterator

from server.errors import RequestError
from server.http_body.long_texts import find_in_pieces
from server.limits import LimitsConfig, flag_of

_SHORT_BYTES = 32 << 10
_PIECE_BYTES = 1 << 20
_MARK = re.compile(rb'["\[\]{}]')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_OPENING = frozenset(b"[{")
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_OTHER_BYTES = bytes(set(range(256)) - set(b"[]{}"))


class NestingCheck:
    """Checks bodies against the limits; one instance serves all requests of a route."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._max_depth = limits.max_json_depth
        self._max_values = limits.max_json_values

    def check(self, body: bytes) -> None:
        """Raises RequestError for a body with too many levels or values; the body need not be valid JSON."""
        if len(body) <= min(_SHORT_BYTES, self._max_values):
            if body.count(b"[") + body.count(b"{") > self._max_depth:
                self._check_brackets(body)
            return
        self._walk(body)
        # n commas separate at least n + 1 values.
        if _num_commas(body, self._max_values) >= self._max_values:
            raise self._too_many()

    def _check_brackets(self, body: bytes) -> None:
        """Removes pairs of brackets, the innermost level each time; unpaired ones are left to the decoder."""
        without_escapes = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        outside_texts = b"".join(without_escapes.split(b'"')[::2])
        brackets = outside_texts.translate(_TO_SQUARE, _OTHER_BYTES)
        for _ in range(self._max_depth):
            brackets = brackets.replace(b"[]", b"")
        if b"[]" in brackets:
            raise self._too_deep()

    def _walk(self, body: bytes) -> None:
        depth = num_values = 0
        for mark in _marks(body):
            if mark in _OPENING:
                depth += 1
                if depth > self._max_depth:
                    raise self._too_deep()
            elif mark != _QUOTE:
                depth -= 1
                continue
            num_values += 1
            if num_values > self._max_values:
                raise self._too_many()

    def _too_deep(self) -> RequestError:
        most, flag = self._max_depth, flag_of("max_json_depth")
        return RequestError(f"The request body is nested too deeply: more than {most} levels ({flag}).")

    def _too_many(self) -> RequestError:
        most, flag = self._max_values, flag_of("max_json_values")
        return RequestError(f"The request body has more than {most} objects, lists, texts and numbers ({flag}).")


def _marks(body: bytes) -> Iterator[int]:
    """Yields the brackets outside of texts, and one quote for each text."""
    position, size = 0, len(body)
    while position < size:
        found = _MARK.search(body, position, position + _PIECE_BYTES)
        if found is None:
            position += _PIECE_BYTES
            continue
        position = found.end()
        mark = body[position - 1]
        yield mark
        if mark == _QUOTE:
            position = _skip_text(body, position)


def _num_commas(body: bytes, enough: int) -> int:
    """Counts commas outside of texts up to `enough`.

    The count includes texts if even the total is below `enough`.
    """
    num = _count(body, 0, len(body))
    if num < enough:
        return num
    num = position = 0
    while position < len(body) and num < enough:
        quote = find_in_pieces(body, b'"', position)
        end = len(body) if quote < 0 else quote
        num += _count(body, position, end)
        position = _skip_text(body, end + 1)
    return num


def _count(body: bytes, begin: int, end: int) -> int:
    return sum(body.count(b",", at, min(at + _PIECE_BYTES, end)) for at in range(begin, end, _PIECE_BYTES))


def _skip_text(body: bytes, position: int) -> int:
    """The position after the quote that ends the text at `position`."""
    end = body.find(b'"', position)
    if end >= 0 and body.find(b"\\", position, end) < 0:
        return end + 1
    size = len(body)
    while position < size:
        match = _TEXT.match(body, position, position + _PIECE_BYTES)
        position = match.end() if match else position
        if position < size and body[position] == _QUOTE:
            return position + 1
        if position < size and body[position] == _BACKSLASH:
            position += 2  # the piece ended between the backslash and the escaped character
    return size
