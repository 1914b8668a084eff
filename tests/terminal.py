"""Reads what a program writes to a terminal."""

import os
from contextlib import suppress


def read_terminal(descriptor: int) -> str:
    """All output until the other end is closed, which Linux reports as EIO; closes this end."""
    data = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal, suppress(OSError):
        while piece := terminal.read(65536):
            data += piece
    return data.decode()


def read_until(descriptor: int, expected: bytes) -> str:
    """All output up to and including these bytes; later output stays unread."""
    data = b""
    while not data.endswith(expected):
        data += os.read(descriptor, 1)
    return data.decode()
