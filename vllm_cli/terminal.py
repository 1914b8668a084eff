"""Output of commands: tables, and a line on standard error that shows progress."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final, TypeVar

import click

from startup.logs.formatters import escape_controls
from startup.reports.timeline.live_line import LiveLine

F = TypeVar("F", bound=Callable[..., Any])

_REDRAW_S: Final = 0.1


def options(*decorators: Callable[[Any], Any]) -> Callable[[F], F]:
    """One decorator for several options or arguments, which the help shows in this order."""
    return lambda command: reduce(lambda decorated, decorate: decorate(decorated), reversed(decorators), command)


class Seconds(click.FloatRange):
    """A number of seconds, which the help shows as SECONDS."""

    def get_metavar(self, *_: object, **__: object) -> str:
        return "SECONDS"


SECONDS: Final = Seconds(0, min_open=True)
"""More than 0 seconds."""


class Reporter:
    """Shows progress: on a terminal in one line that changes, elsewhere in new lines at intervals.

    Only one thread uses a reporter. The reporter is closed before the command prints its result.
    """

    def __init__(self, *, is_quiet: bool = False, interval_s: float = math.inf) -> None:
        """`interval_s`: least seconds between two lines of progress if the output is not a terminal."""
        self.line: Final = LiveLine(sys.stderr)
        self._is_quiet = is_quiet
        self._interval_s = _REDRAW_S if self.line.is_on else interval_s
        self._state = ""
        self._next_s = time.monotonic() + (0.0 if self.line.is_on else interval_s)

    def update(self, text: str, state: str = "") -> None:
        """Replaces the line. Without a terminal, prints a line for a new `state` or after the interval."""
        now_s = time.monotonic()
        if self._is_quiet or (state == self._state and now_s < self._next_s):
            return
        self._state = state
        self._next_s = now_s + self._interval_s
        if self.line.is_on:
            self.line.show(text)
        else:
            click.echo(text, err=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if not self._is_quiet:
            self.line.clear()
            click.echo(text, err=True)

    def close(self) -> None:
        """Removes the line from the terminal."""
        self.line.close()


def printable(row: Sequence[str]) -> tuple[str, ...]:
    """Escapes control characters of untrusted text: names of models, responses of servers."""
    return tuple(escape_controls(cell).replace("\n", "\\n") for cell in row)


def align(rows: Sequence[Sequence[str]], *, are_figures: bool = False) -> list[str]:
    """One line per row. `are_figures` aligns all columns except the first to the right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        align_cell = str.rjust if are_figures and index else str.ljust
        columns.append([align_cell(cell, width) for cell in column])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
