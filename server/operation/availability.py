"""Whether requests are accepted: the 503 body of each state of the lifecycle."""

from collections.abc import Mapping
from typing import Any, Protocol

from server.http_body.errors import UnavailableInfo, UnavailableResponse
from server.lifecycle import Lifecycle


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


class Availability:
    """Whether requests are accepted; read by every probe and request."""

    def __init__(self, lifecycle: Lifecycle, start: StartView) -> None:
        self._lifecycle = lifecycle
        self._start = start

    @property
    def problem(self) -> UnavailableResponse | None:
        """The body of a 503; None while requests are accepted."""
        lifecycle = self._lifecycle
        match lifecycle.state:
            case "ready":
                return None
            case "starting":
                return UnavailableResponse(
                    UnavailableInfo(message="Loading model"), "starting", **self._start.progress()
                )
            case "restarting":
                return UnavailableResponse(
                    UnavailableInfo(message=f"The engine died and is being started again: {lifecycle.reason}"),
                    "restarting",
                    phase="restart_engine",
                    progress=None,
                    elapsed_s=round(lifecycle.restart_elapsed_s, 3),
                    eta_s=None,
                )
            case "draining":
                return UnavailableResponse(UnavailableInfo(message="The server is shutting down"), "draining")
            case "dead":
                return UnavailableResponse(UnavailableInfo(message=f"The engine died: {lifecycle.reason}"), "dead")
