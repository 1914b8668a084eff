"""Shows what `vllm-cli bake` waits for: one line that is rewritten on a terminal, else a line per phase."""

import sys
from types import TracebackType
from typing import Self

import click

from startup.timeline.live_line import LiveLine
from vllm_cli.client.readiness import Readiness


class BakeProgress:
    """Writes to standard error; a context manager that erases its last line."""

    def __init__(self) -> None:
        self._live = LiveLine(sys.stderr)
        self._last = ""

    def show(self, readiness: Readiness, waited_s: float) -> None:
        """The state of the start."""
        phase = (readiness.phase or "starting").replace("_", " ")
        if self._live.is_on:
            self._live.show(f"{waited_s:6.1f} s  {phase}")
        else:
            self.step(phase, waited_s)

    def step(self, text: str, waited_s: float | None = None) -> None:
        """A line of its own; repeated lines are left out."""
        if text != self._last:
            self._last = text
            self._live.clear()
            click.echo(text if waited_s is None else f"{waited_s:6.1f} s  {text}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.close()
