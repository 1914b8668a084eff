"""The HTTP of probes: the plain GET whose answer is known in advance, and the response to a path."""

import re
from collections.abc import Container
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, Protocol

PATH = "/health"
MAX_HEAD_BYTES = 4096
MODEL_STATE_HEADER = "Model-State"
"""Header of a 200 to a probe while no model runs, as a request would start it (`--idle-stop`): its state."""

_HEAD = re.compile(rb"GET (/[a-z]+) HTTP/1\.([01])\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)\r\n")
_MAY_CHANGE_THE_ANSWER = frozenset(
    [
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
        b"origin",  # the answer gets CORS headers
        b"x-request-id",  # may be repeated in the answer
        b"x-forwarded-for",  # changes the client's address in the access log
        b"x-forwarded-proto",
    ]
)


class ProbeRequest(NamedTuple):
    """A probe: a GET without body."""

    num_bytes: int
    """Length of the head, which is the whole request."""
    path: str
    http_version: str
    keeps_alive: bool
    """Whether the client may send another request on this connection."""


def parse_probe(received: bytes, paths: Container[str] = (PATH,)) -> ProbeRequest | None:
    """The probe at the start of these bytes; None for any other, unusual or incomplete request."""
    match = _HEAD.match(received)
    if match is None or (path := match[1].decode()) not in paths:
        return None
    is_old, connection = match[2] == b"0", b""
    for line in match[3].splitlines():
        name, _, value = line.partition(b":")
        if (name := name.lower()) in _MAY_CHANGE_THE_ANSWER:
            return None
        if name == b"connection":
            connection = value.strip().lower()
    if connection not in (b"", b"close", b"keep-alive"):
        return None
    return ProbeRequest(match.end(), path, f"1.{match[2].decode()}", not is_old and connection != b"close")


@dataclass(frozen=True)
class Answer:
    """An HTTP/1.1 response."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    retry_after_s: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """The whole response; it announces that the connection is closed afterwards."""
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"Content-Length: {len(self.body)}"]
        if self.body:
            head.append(f"Content-Type: {self.content_type}")
        if self.retry_after_s is not None:
            head.append(f"Retry-After: {self.retry_after_s}")
        head += (f"{name}: {value}" for name, value in self.headers)
        head.append("Connection: close")
        return "\r\n".join([*head, "", ""]).encode() + self.body


class Answers(Protocol):
    """Chooses the answer to each path; the responder's process works on its own copy."""

    def answer(self, path: str) -> Answer:
        """The current answer to a path."""

    def follow(self, message: bytes) -> None:
        """Updates the copy to the state in the API process's message."""
