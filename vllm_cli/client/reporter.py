"""Shows on standard error what a command waits for: one line on a terminal, elsewhere a line now and then."""

import math
import sys
import time
from typing import Final

import click

from startup.timeline.live_line import LiveLine

_REDRAW_S: Final = 0.1


class Reporter:
    """Used by one thread, and closed before the command prints its result."""

    def __init__(self, *, is_quiet: bool = False, interval_s: float = math.inf) -> None:
        """Without a terminal, lines that only bring news of progress are at least `interval_s` apart."""
        self.line: Final = LiveLine(sys.stderr)
        self._is_quiet = is_quiet
        self._interval_s = _REDRAW_S if self.line.is_on else interval_s
        self._state = ""
        self._next_s = time.monotonic() + (0.0 if self.line.is_on else interval_s)

    def update(self, text: str, state: str = "") -> None:
        """Replaces the line; without a terminal, prints one at a change of state and after the interval."""
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
