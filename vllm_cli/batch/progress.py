"""Shows the progress of a batch: one updated line on a terminal, elsewhere a new line every 10 s."""

import sys
import time
from typing import Final

import click

from startup.timeline.live_line import LiveLine, draw_bar
from vllm_cli.batch.tally import Tally

_REDRAW_S: Final = 0.1
_INTERVAL_S: Final = 10.0


class BatchProgress:
    """Writes to standard error."""

    def __init__(self, tally: Tally, *, is_quiet: bool) -> None:
        self._tally = tally
        self._is_quiet = is_quiet
        self._line = LiveLine(sys.stderr)
        self._next_s = time.monotonic() + _INTERVAL_S

    def report(self, text: str) -> None:
        """Shows a message on a line of its own."""
        if not self._is_quiet:
            self._line.clear()
            click.echo(text, err=True)

    def show(self) -> None:
        """Called after each finished request."""
        now_s = time.monotonic()
        if self._is_quiet or now_s < self._next_s:
            return
        if self._line.is_on:
            self._line.show(self._describe())
        else:
            click.echo(self._describe(), err=True)
        self._next_s = now_s + (_REDRAW_S if self._line.is_on else _INTERVAL_S)

    def begin(self) -> None:
        """Called before the first request is sent."""
        self._tally.begin()
        self._next_s = 0.0 if self._line.is_on else time.monotonic() + _INTERVAL_S

    def close(self) -> None:
        """Removes the line from the terminal."""
        self._line.close()

    def _describe(self) -> str:
        tally = self._tally
        num_done = tally.num_skipped + tally.num_done
        failed = f", {tally.num_failed} failed" if tally.num_failed else ""
        eta = f", about {tally.eta_s:.0f} s left" if tally.eta_s is not None else ""
        rate = tally.num_done / max(tally.elapsed_s, 1e-9)
        return f"{draw_bar(num_done / tally.num_total)}  {num_done}/{tally.num_total}{failed}, {rate:.1f}/s{eta}"
