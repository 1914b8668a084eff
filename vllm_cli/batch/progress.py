"""Shows how far a batch is: a line that changes on a terminal, elsewhere a new one now and then."""

import sys
import time
from typing import Final

import click

from startup.timeline.live_line import LiveLine, draw_bar
from vllm_cli.batch.tally import Tally

_REDRAW_S: Final = 0.1
_HEARTBEAT_S: Final = 10.0


class BatchProgress:
    """Writes to standard error."""

    def __init__(self, tally: Tally, *, is_quiet: bool) -> None:
        self._tally = tally
        self._is_quiet = is_quiet
        self._line = LiveLine(sys.stderr)
        self._next_s = time.monotonic() + _HEARTBEAT_S

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        if not self._is_quiet:
            self._line.clear()
            click.echo(text, err=True)

    def show(self) -> None:
        """To be called whenever a request is done."""
        now_s = time.monotonic()
        if self._is_quiet or now_s < self._next_s:
            return
        if self._line.is_on:
            self._line.show(self._describe())
        else:
            click.echo(self._describe(), err=True)
        self._next_s = now_s + (_REDRAW_S if self._line.is_on else _HEARTBEAT_S)

    def begin(self) -> None:
        """The first request is about to be sent."""
        self._tally.begin()
        self._next_s = 0.0 if self._line.is_on else time.monotonic() + _HEARTBEAT_S

    def close(self) -> None:
        """Takes the line away."""
        self._line.close()

    def _describe(self) -> str:
        tally = self._tally
        num_done = tally.num_skipped + tally.num_done
        failed = f", {tally.num_failed} failed" if tally.num_failed else ""
        eta = f", about {tally.eta_s:.0f} s left" if tally.eta_s is not None else ""
        rate = tally.num_done / max(tally.elapsed_s, 1e-9)
        return f"{draw_bar(num_done / tally.num_total)}  {num_done}/{tally.num_total}{failed}, {rate:.1f}/s{eta}"
