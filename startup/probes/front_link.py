"""The connection of a server to the front that has started it (`vllm-cli serve --idle-stop`).

The front owns the port and accepts for as long as it lives; the server accepts nothing. The server uses the
connection as it would use a responder of its own (`startup.probes.responder`).
"""

import socket
from typing import Any, NamedTuple, NoReturn, Self

from envs import foreign
from envs.registry import env
from startup.errors import StartupError
from startup.probes.serving_messages import ServingSettings


class FrontOffer(NamedTuple):
    """What a front passes to the server that it starts, in VCLI_FRONT."""

    pid: int
    """The process that it starts; a server that a standby forks for it has the variable readdressed."""
    link_fd: int
    """A SEQPACKET socket to the front."""
    listener_fd: int
    idle_s: float
    """After how many seconds without a request the server is to end."""
    num_idle_stops: int
    """How often the front's servers have ended so before."""
    num_wakes: int
    """How often a request has started a server, this start included."""

    def encode(self) -> str:
        """The value of VCLI_FRONT."""
        return " ".join(map(str, self))

    @classmethod
    def of_environment(cls) -> Self | None:
        """The offer to this process; None without a front."""
        if not foreign.has_front():
            return None
        pid, link_fd, listener_fd, idle_s, num_idle_stops, num_wakes = (env.VCLI_FRONT.get() or "").split(" ")
        return cls(int(pid), int(link_fd), int(listener_fd), float(idle_s), int(num_idle_stops), int(num_wakes))


class FrontLink:
    """Implements `startup.probes.probe_link.Responder`.

    Its descriptors stay inheritable: a start may execute this program again in the same process.
    """

    def __init__(self, offer: FrontOffer) -> None:
        self.offer = offer
        self.listener = socket.socket(fileno=offer.listener_fd)
        """That of the front; must never accept."""
        self._link = socket.socket(fileno=offer.link_fd)

    @classmethod
    def of_environment(cls) -> "FrontLink | None":
        """The link to the front that has started this process, if one has."""
        offer = FrontOffer.of_environment()
        return None if offer is None else cls(offer)

    def __enter__(self) -> Self:
        self._link.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    @property
    def address(self) -> Any:
        """The listener's address."""
        return self.listener.getsockname()

    def update(self, message: bytes) -> None:
        """Sends the current state; dropped if the front's queue is full. Called on any thread."""
        try:
            self._link.send(message)
        except OSError:  # of a front that has ended, too: this process ends with it
            return

    def hand_over(self) -> NoReturn:
        """The HTTP server wants to accept itself.

        Raises:
            StartupError: always.
        """
        raise StartupError("--idle-stop: this server cannot be started without accepting on the port itself")

    def keep(self, settings: ServingSettings) -> socket.socket | None:
        """Tells the front that the HTTP server runs; returns the connection, on which `Report`s arrive."""
        try:
            self._link.send(settings.encode())
        except OSError:
            return None
        return self._link

    def kill(self) -> None:
        """Does nothing: this process ends with the front, not the other way round."""
