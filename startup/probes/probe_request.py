"""Recognizes a request whose answer is known in advance: a plain GET of a probe's path."""

import re
from collections.abc import Container
from typing import NamedTuple

PATH = "/health"
MAX_HEAD_BYTES = 4096

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
