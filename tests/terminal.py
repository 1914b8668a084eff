"""Reading what a program writes to a terminal."""

import os
from contextlib import suppress


def read_terminal(descriptor: int) -> str:
    """All that is written until the other end is closed, which Linux tells by EIO; closes this end."""
    data = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal, suppress(OSError):
        while piece := terminal.read(65536):
            data += piece
    return data.decode()


def read_until(descriptor: int, expected: bytes) -> str:
    """All that is written up to these bytes; what comes later stays there to be read."""
    data = b""
    while not data.endswith(expected):
        data += os.read(descriptor, 1)
    return data.decode()
