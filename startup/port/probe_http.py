"""HTTP for probes. Parses a plain GET of a probe's path, and encodes the response."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

PATH = "/health"
LIVE_PATH, READY_PATH = "/livez", "/readyz"
"""`/livez` gets 200 while the server runs. `/readyz` is answered like `PATH`. Plain vLLM has neither path."""
MAX_HEAD_BYTES = 4096
MODEL_STATE_HEADER = "Model-State"
"""Header with the model's state, in the 200 for a probe of a stopped model.

The next request starts such a model (`--idle-stop`)."""

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
    """The probe in the bytes. None for any other request, and if a body or header may change the answer."""
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
        """The whole response, with the header `Connection: close`."""
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", f"Content-Length: {len(self.body)}"]
        if self.body:
            head.append(f"Content-Type: {self.content_type}")
        if self.retry_after_s is not None:
            head.append(f"Retry-After: {self.retry_after_s}")
        head += (f"{name}: {value}" for name, value in self.headers)
        head.append("Connection: close")
        return "\r\n".join([*head, "", ""]).encode() + self.body
