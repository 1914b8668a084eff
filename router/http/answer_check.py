"""Checks what a model's server answers by the rules for what a client sends (RFC 9110, RFC 9112)."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from base.http_requests import decode

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUSES: Final = range(200, 600)
_WITHOUT_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT)
_DOTS: Final = (".", "..")


def answer_fault(status: int, headers: Iterable[tuple[bytes, bytes]], *, is_handshake: bool = False) -> str | None:
    """Why a response is not passed on. None if it is valid.

    Args:
        status: an interim response (1xx) counts as faulty, because it was not asked for.
        headers: names and values as they were received.
        is_handshake: whether a WebSocket was requested, so that the status 101 is allowed.
    """
    is_switch = is_handshake and status == HTTPStatus.SWITCHING_PROTOCOLS
    if status not in _STATUSES and not is_switch:
        return f"its status is {status}"
    for name, value in headers:
        if _NAME.fullmatch(name) is None:
            return "the name of a header is no token"
        if _CONTROL.search(value):
            return f"the header {name.decode()} has a control character"
        if status in _WITHOUT_BODY and _announces_body(name.lower(), value):
            return f"it has a body, which {status} forbids"
    return None


def _announces_body(name: bytes, value: bytes) -> bool:
    return name == b"transfer-encoding" or (name == b"content-length" and value.strip().strip(b"0") != b"")


def own_reason(reason: bytes) -> bytes:
    """The reason of a status line. Empty if it has control characters."""
    return b"" if _CONTROL.search(reason) else reason


def leads_up(raw_path: str) -> bool:
    """Whether a server could read a path as one outside of the folder that the path begins with."""
    segments = re.split(r"[/\\]", decode(raw_path))
    return any(segment.partition(";")[0] in _DOTS for segment in segments)


def below(prefix: bytes, own_address: bytes, location: bytes) -> bytes:
    """A server's address of its own, as a path below `prefix`. Other addresses stay as they are.

    The path has one slash at its beginning. With two, it would be the address of another host.
    """
    if not location.startswith(own_address):
        return location
    return prefix + b"/" + location[len(own_address) :].lstrip(b"/\\\t ")
