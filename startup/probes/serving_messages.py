"""Messages between the API process and the responder's process while the HTTP server serves.

Each is one packet of their SOCK_SEQPACKET pair. Both processes run the same program.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Self

from startup.probes.probe_http import PATH

SERVE: Final = b"serve "
"""From the API process, with `ServingSettings`: from now on the responder accepts for the HTTP server."""
BEAT: Final = b"beat "
"""From the API process, with `HealthAnswer`: the event loop runs. The responder replies `Kind.ECHO`."""
LEND: Final = b"lend "
"""From the API process, with `Loan` and a duplicate: the responder waits for the next probe."""
FIRST_LENT_ID: Final = 1 << 63
"""Numbers of lent connections begin here; the responder numbers those that it accepts from 1."""


@dataclass(frozen=True)
class ServingSettings:
    """What the responder's process needs to know about the HTTP server."""

    keep_alive_s: float
    """How long a connection stays open after an answer."""
    reports_probes: bool
    """Whether the API process writes an access log."""
    wants_realtime: bool
    """Whether the process requests real-time priority."""
    paths: Sequence[str] = (PATH,)
    """Paths with the answer of `/health`."""
    accept_delay_s: float = 0.0
    """How long a connection waits for the HTTP server to accept it; 0 if that does not accept."""

    def encode(self) -> bytes:
        return SERVE + json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        return cls(**json.loads(message.removeprefix(SERVE)))


@dataclass(frozen=True)
class HealthAnswer:
    """The HTTP server's own answer to `GET /health`."""

    status: int
    head: bytes
    """Status line and headers, without the empty line."""
    body: bytes

    def response(self, *, keeps_alive: bool) -> bytes:
        """All bytes of the response, as uvicorn writes them."""
        return self.head + (b"\r\n" if keeps_alive else b"connection: close\r\n\r\n") + self.body

    def encode(self) -> bytes:
        return BEAT + json.dumps((self.status, self.head.decode("latin-1"), self.body.decode("latin-1"))).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self | None:
        """None if the HTTP server has to answer each probe itself."""
        content = message.removeprefix(BEAT)
        if not content:
            return None
        status, head, body = json.loads(content)
        return cls(status, head.encode("latin-1"), body.encode("latin-1"))


class Loan(NamedTuple):
    """A connection that the HTTP server has accepted, and on which there were only probes."""

    connection_id: int
    client: str
    """Address and port; empty for a UNIX socket."""

    def encode(self) -> bytes:
        return LEND + json.dumps(self).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        return cls(*json.loads(message.removeprefix(LEND)))


class Kind(IntEnum):
    """What the responder's process reports about a connection, or about itself."""

    HOLD = 1
    """A duplicate of a connection on which no request has begun: kept, in case the responder is killed."""
    TAKE = 2
    """The HTTP server must serve the connection: the message has it, or it was held or lent."""
    DROP = 3
    """A connection that was held or lent is closed."""
    ECHO = 4
    """The reply to a `BEAT`."""
    ANSWERED = 5
    """A probe was answered; the message has an `AnsweredProbe`."""


class AnsweredProbe(NamedTuple):
    """What the access log says about a probe."""

    client: str
    """Address and port; empty for a UNIX socket."""
    path: str
    http_version: str
    status: int


class Report(NamedTuple):
    """A message of the responder's process."""

    kind: Kind
    connection_id: int = 0
    probe: AnsweredProbe | None = None

    def encode(self) -> bytes:
        return json.dumps(self).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        kind, connection_id, probe = json.loads(message)
        return cls(Kind(kind), connection_id, AnsweredProbe(*probe) if probe else None)
