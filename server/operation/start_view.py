"""The HTTP server's view of the start; the launcher implements it."""

from collections.abc import Mapping
from typing import Any, Protocol


class StartView(Protocol):
    """The progress and the timeline of the start; every method is cheap and may be called at any time."""

    def progress(self) -> dict[str, Any]:
        """Members of a 503 body: `phase`, `progress` (0 to 1), `elapsed_s`, `eta_s`; None if unknown.

        There is no `detail`: only a download has one, and it ends before this server starts.
        """

    def report(self) -> bytes:
        """The timeline so far as JSON: the body of /startupz."""

    def elapsed_s(self) -> float:
        """Seconds from the kernel's start of the process to readiness, or until now."""

    def uptime_s(self) -> float:
        """Seconds since the kernel's start of the process."""

    def phase_seconds(self) -> Mapping[str, float]:
        """Seconds that the start waited for each phase so far, by `process:phase`."""
