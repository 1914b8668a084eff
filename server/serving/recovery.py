"""What becomes of an engine that dies: another one, as often as the user allows."""

import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Recovery:
    """One per server; used on the event loop only."""

    num_left: int = 0
    """How many more engines may be started (`--engine-restarts`)."""
    reason: str | None = None
    """Why the last engine died, while the next one starts."""
    _begin_s: float = 0.0

    @property
    def is_possible(self) -> bool:
        """Whether the server outlives its engine."""
        return self.num_left > 0 or self.reason is not None

    @property
    def elapsed_s(self) -> float:
        """Since the engine's death."""
        return time.monotonic() - self._begin_s

    def begin(self, reason: str) -> None:
        """Another engine is being started, one of those that are left."""
        self.num_left -= 1
        self.reason = reason
        self._begin_s = time.monotonic()

    def end(self) -> None:
        """It is there, or has failed."""
        self.reason = None

    def forbid(self) -> None:
        """The server is about to end anyway."""
        self.num_left = 0

    def progress(self) -> dict[str, Any]:
        """Members of a 503 body, as those of the start."""
        elapsed_s = round(self.elapsed_s, 3) if self.reason is not None else 0.0
        return {"phase": "restart_engine", "progress": None, "elapsed_s": elapsed_s, "eta_s": None}
