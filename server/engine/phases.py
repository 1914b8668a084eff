"""The engine's start-up phases as spans on the monotonic clock, which all processes of a machine share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Collects (name, begin, end) in monotonic nanoseconds; travels to the API process in `EngineInfo.spans`."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, int, int]] = []
        self.current = "starting"
        """What the process is at."""

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Records how long the block takes, also when it raises."""
        begin = time.monotonic_ns()
        around, self.current = self.current, name
        try:
            yield
        finally:
            self.spans.append((name, begin, time.monotonic_ns()))
            self.current = around
