"""Whether requests are accepted: the 503 body of each state of the lifecycle."""

from base.errors import ServerError
from base.lifecycle import Lifecycle, StartView
from server.http_body.errors import UnavailableInfo, UnavailableResponse


class UnavailableError(ServerError):
    """No requests are accepted at the moment; becomes a 503 with this body."""

    def __init__(self, body: UnavailableResponse) -> None:
        super().__init__(body.error.message)
        self.body = body


class Availability:
    """Whether requests are accepted; read by every probe and request."""

    def __init__(self, lifecycle: Lifecycle, start: StartView) -> None:
        self._lifecycle = lifecycle
        self._start = start

    def check(self) -> None:
        """Raises UnavailableError unless requests are accepted."""
        if (problem := self.problem) is not None:
            raise UnavailableError(problem)

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
