"""Looks at a body's shape before it is decoded: how deep it is nested, and of how many values it consists.

Three bytes of JSON can make an object of sixty, and every level costs stack wherever the value goes later; decoding
holds the interpreter all the time, half a second for a body of numbers alone. A short body is let through by counting
brackets; a long one is walked through, its texts being skipped. The walk lets the interpreter go now and then, as
`long_texts` does.
"""

import re
from collections.abc import Iterator

from server.errors import RequestError
from server.limits import LimitsConfig, flag_of

_SHORT_BYTES = 32 << 10
_AT_ONCE = 1 << 20
_MARK = re.compile(rb'["\[\]{}]')
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE, _BACKSLASH = b'"'[0], b"\\"[0]
_OPENING = frozenset(b"[{")


class NestingCheck:
    """What bodies may look like; one instance serves all requests."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._max_depth = limits.max_json_depth
        self._max_values = limits.max_json_values

    def check(self, body: bytes) -> None:
        """Raises RequestError for a body that is nested too deeply or consists of too much; it need not be JSON."""
        is_short = len(body) <= min(_SHORT_BYTES, self._max_values)
        if not is_short or body.count(b"[") + body.count(b"{") > self._max_depth:
            self._walk(body)
        if not is_short and _num_commas(body, self._max_values) >= self._max_values:  # a value on either side of each
            raise self._too_many()

    def _walk(self, body: bytes) -> None:
        depth = num_values = 0
        for mark in _marks(body):
            if mark in _OPENING:
                depth += 1
                if depth > self._max_depth:
                    most, flag = self._max_depth, flag_of("max_json_depth")
                    raise RequestError(f"The request body is nested too deeply: more than {most} levels ({flag}).")
            elif mark != _QUOTE:
                depth -= 1
                continue
            num_values += 1
            if num_values > self._max_values:
                raise self._too_many()

    def _too_many(self) -> RequestError:
        most, flag = self._max_values, flag_of("max_json_values")
        return RequestError(f"The request body has more than {most} objects, lists, texts and numbers ({flag}).")


def _marks(body: bytes) -> Iterator[int]:
    """Brackets outside of texts, and a quote for each text."""
    position, size = 0, len(body)
    while position < size:
        found = _MARK.search(body, position, position + _AT_ONCE)
        if found is None:
            position += _AT_ONCE
            continue
        position = found.end()
        mark = body[position - 1]
        yield mark
        if mark == _QUOTE:
            position = _skip_text(body, position)


def _num_commas(body: bytes, enough: int) -> int:
    """Those outside of texts; where there are not enough of them anyway, those in texts are counted, too."""
    num = _count(body, 0, len(body))
    if num < enough:
        return num
    num = position = 0
    while position < len(body) and num < enough:
        quote = _find_quote(body, position)
        num += _count(body, position, quote)
        position = _skip_text(body, quote + 1)
    return num


def _count(body: bytes, begin: int, end: int) -> int:
    return sum(body.count(b",", at, min(at + _AT_ONCE, end)) for at in range(begin, end, _AT_ONCE))


def _find_quote(body: bytes, position: int) -> int:
    """Where the next text begins; the body's end where there is none."""
    for at in range(position, len(body), _AT_ONCE):
        found = body.find(b'"', at, at + _AT_ONCE)
        if found >= 0:
            return found
    return len(body)


def _skip_text(body: bytes, position: int) -> int:
    """Behind the quote that ends the text which begins here."""
    end = body.find(b'"', position)
    if end >= 0 and body.find(b"\\", position, end) < 0:
        return end + 1
    size = len(body)
    while position < size:
        match = _TEXT.match(body, position, position + _AT_ONCE)
        position = match.end() if match else position
        if position < size and body[position] == _QUOTE:
            return position + 1
        if position < size and body[position] == _BACKSLASH:
            position += 2  # a piece ends between the backslash and what it escapes
    return size
