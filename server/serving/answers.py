"""Answers that are no JSON."""

from typing import NamedTuple


class BinaryAnswer(NamedTuple):
    """Bytes as they are, and what is told about them in headers."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
