"""Reads the lines of a log of any size with bounded memory."""

from collections.abc import Iterator
from typing import BinaryIO, Final

from startup.causes.log_line import LONGEST_LINE

_CHUNK: Final = 1 << 18


def read_lines(stream: BinaryIO) -> Iterator[str]:
    r"""The lines of a stream, without their ends, cut to `LONGEST_LINE` bytes.

    The states of a progress bar, which end with \r, are lines of their own and keep it; so `CauseFinder` can
    tell the number of a line.
    """
    rest = b""
    while chunk := stream.read(_CHUNK):
        lines = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\r\n").split(b"\n")
        rest = lines.pop()[:LONGEST_LINE]
        for line in lines:
            yield _decode(line)
    if rest:
        yield _decode(rest)


def _decode(line: bytes) -> str:
    if len(line) > LONGEST_LINE:
        line = line[:LONGEST_LINE] + (b"\r" if line.endswith(b"\r") else b"")
    return line.decode("utf-8", "replace")
