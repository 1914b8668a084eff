"""Shows the progress of a long run: one line on a terminal, plain lines elsewhere, nothing during a round."""

from typing import TextIO

from startup.timeline.live_line import LiveLine, draw_bar


class Progress:
    """Progress on a text stream; writes only between rounds, and takes no processor time from a server."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._line = LiveLine(stream)
        self._num_steps = self._num_begun = 0

    def begin(self, num_steps: int) -> None:
        """The run will measure this many rounds."""
        self._num_steps = num_steps

    def step(self, text: str) -> None:
        """The next round begins."""
        if self._line.is_on:
            self._line.show(f"{draw_bar(self._num_begun / self._num_steps)} {text}")
        self._num_begun += 1
        if not self._line.is_on:
            self.report(f"[{self._num_begun}/{self._num_steps}] {text}")

    def report(self, text: str) -> None:
        """Shows a message between rounds."""
        self._line.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Removes the line from the terminal."""
        self._line.close()
