"""Times phases of the engine process's start, by the monotonic clock that all processes share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Collects spans (name, begin, end) in nanoseconds. `EngineInfo.spans` sends them to the API process."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, int, int]] = []
        self.current = "starting"

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Records how long the block takes, even if it raises."""
        begin = time.monotonic_ns()
        around, self.current = self.current, name
        try:
            yield
        finally:
            self.spans.append((name, begin, time.monotonic_ns()))
            self.current = around
