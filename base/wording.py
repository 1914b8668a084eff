"""Formats numbers of bytes, long lists, signals and errors for messages."""

import signal
from collections.abc import Sequence
from typing import Final

_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def format_bytes(count: float) -> str:
    """Returns text such as `1.5 GiB`. Numbers below 1 KiB are written in whole bytes."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def signal_name(number: int) -> str:
    """Returns text such as `SIGKILL`, or `signal 40` for a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def list_some(items: Sequence[str], most: int = 8) -> str:
    """The first `most` items and the number of the others, such as `a, b and 3 more`."""
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def one_line(err: BaseException) -> str:
    """The error's message without line breaks, or its type if it has no message."""
    return " ".join(str(err).split()) or type(err).__name__


def foreign_line(text: str | BaseException, most: int = 300) -> str:
    """The words of another program, on one line of at most so many characters.

    Characters that change a terminal are left out. An error without a message is named by its type.
    """
    line = one_line(text) if isinstance(text, BaseException) else " ".join(text.split())
    shown = "".join(filter(str.isprintable, line))
    return shown if len(shown) <= most else f"{shown[:most]}…"
