"""A response whose body is not JSON."""

from typing import NamedTuple


class BinaryResponse(NamedTuple):
    """A body of bytes, and the headers that describe it."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
