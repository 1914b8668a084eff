"""The HTTP of probes: the plain GET whose answer is known in advance, and the response to a path."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

PATH = "/health"
LIVE_PATH, READY_PATH = "/livez", "/readyz"
"""200 as long as the server lives; the answer of `PATH`. Plain vLLM has neither."""
MAX_HEAD_BYTES = 4096
MODEL_STATE_HEADER = "Model-State"
"""Header of a 200 to a probe while no model runs, as a request would start it (`--idle-stop`): its state."""

_HEAD = re.compile(
    rb"GET (/(?:health|livez|readyz)) HTTP/(1\.[01])\r\n((?:[!#-'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)\r\n"
)
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


class Probe(NamedTuple):
    """A plain GET of a probe path."""

    path: str
    http_version: str


def parse_probe(received: bytes) -> Probe | None:
    """The probe, a GET without body, if the bytes are one; None for anything else."""
    match = _HEAD.fullmatch(received)
    if match is None:
        return None
    for line in match[3].splitlines():
        name, _, value = line.partition(b":")
        if (name := name.lower()) in _MAY_CHANGE_THE_ANSWER:
            return None
        if name == b"connection" and value.strip().lower() not in (b"", b"close", b"keep-alive"):
            return None
    return Probe(match[1].decode(), match[2].decode())


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
