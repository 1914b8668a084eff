"""The states of a model that is started on request, their transitions and the back-off."""

import math
from collections.abc import Mapping
from typing import Final, Literal

from startup.processes.back_off import BackOff

State = Literal["starting", "ready", "paused", "stopping", "stopped", "failed"]
"""`paused`: the server has asked for no more requests, to look whether it is idle, or because it ends.
`stopping`: it ends because it is idle. `stopped` and `failed`: there is no server."""

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    "starting": frozenset({"ready", "failed"}),
    "ready": frozenset({"paused", "failed"}),
    "paused": frozenset({"ready", "stopping", "failed"}),
    "stopping": frozenset({"stopped"}),
    "stopped": frozenset({"starting"}),
    "failed": frozenset({"starting"}),
}
"""The states that may follow each state."""


class ModelState:
    """The state of one model; times are in seconds of any clock that the caller chooses."""

    def __init__(self, now: float) -> None:
        self.state: State = "starting"
        self.since_s = now
        """When the state began."""
        self.has_been_ready = False
        self.reason = ""
        """Why the last server has failed; empty if it has not."""
        self.num_idle_stops = 0
        self.num_wakes = 0
        self._back_off = BackOff()
        self._retry_s = -math.inf

    @property
    def has_server(self) -> bool:
        """Whether there is a server's process."""
        return self.state not in ("stopped", "failed")

    def wake(self, now: float) -> None:
        """A request has come, and another server is started."""
        self.num_wakes += 1
        self._enter("starting", now)

    def become_ready(self, now: float) -> None:
        """The server answers requests."""
        self.has_been_ready = True
        self.reason = ""
        self._back_off.reset()
        self._enter("ready", now)

    def pause(self, now: float) -> None:
        """The server wants no more requests; repeated, or before it is ready, this changes nothing."""
        if self.state == "ready":
            self._enter("paused", now)

    def resume(self, now: float) -> None:
        """The server wants requests again."""
        if self.state == "paused":
            self._enter("ready", now)

    def begin_stop(self, now: float) -> None:
        """The server ends because it is idle."""
        if self.state == "paused":
            self.num_idle_stops += 1
            self._enter("stopping", now)

    def end(self, reason: str, now: float) -> None:
        """The server's process has ended; the reason counts unless it was idle."""
        if self.state == "stopping":
            self._enter("stopped", now)
            return
        self.reason = reason
        self._retry_s = now + self._back_off.take_s()
        self._enter("failed", now)

    def may_start(self, now: float) -> bool:
        """Whether a request starts another server now."""
        return self.state == "stopped" or (self.state == "failed" and now >= self._retry_s)

    def retry_after_s(self, now: float) -> int:
        """Whole seconds until a request may start another server, at least 1."""
        return max(1, math.ceil(self._retry_s - now)) if self.state == "failed" else 1

    def _enter(self, state: State, now: float) -> None:
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a model that is {self.state} cannot become {state}")
        self.state = state
        self.since_s = now
