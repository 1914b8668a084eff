"""Finds a marker in a text that arrives in pieces."""

from typing import NamedTuple


class Split(NamedTuple):
    """A text, split at a marker."""

    before: str
    """The text before the marker; without the end that may be the beginning of one."""
    is_found: bool
    rest: str
    """The text after the marker; if there is none, the end that may be the beginning of one."""


def split_at(text: str, marker: str) -> Split:
    """Splits at the first marker; prepend `rest` to the next piece if it is not found."""
    start = text.find(marker)
    if start >= 0:
        return Split(text[:start], True, text[start + len(marker) :])
    cut = len(text) - partial_length(text, marker)
    return Split(text[:cut], False, text[cut:])


def partial_length(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins the marker without being all of it."""
    start = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while start >= 0 and not marker.startswith(text[start:]):
        start = text.find(marker[0], start + 1)
    return len(text) - start if start >= 0 else 0
