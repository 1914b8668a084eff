"""Shows the progress of a long run: a bar on a terminal, plain lines elsewhere, nothing during a round."""

from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress(Protocol):
    """Receives the progress of a run."""

    def begin(self, num_steps: int) -> None:
        """The run will measure this many rounds."""

    def step(self, text: str) -> None:
        """The next round begins."""

    def report(self, text: str) -> None:
        """Shows a message between rounds."""


class StreamProgress:
    """Progress on a text stream.

    The bar is drawn only between rounds: a redrawing thread would take processor time from the server.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self._console, auto_refresh=False, transient=True)
        self._num_steps = self._num_begun = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def begin(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._bar.add_task("", total=num_steps)

    def step(self, text: str) -> None:
        self._num_begun += 1
        if self._console.is_terminal:
            self._bar.update(self._bar.task_ids[0], completed=self._num_begun - 1, description=text)
            self._bar.refresh()
        else:
            self.report(f"[{self._num_begun}/{self._num_steps}] {text}")

    def report(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
