"""A response whose body is not JSON."""

from typing import NamedTuple


class BinaryResponse(NamedTuple):
    """A body of bytes, its type, and further headers that describe it."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/octet-stream"
