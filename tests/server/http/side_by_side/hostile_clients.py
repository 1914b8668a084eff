"""What hostile clients send, for measurements of two servers side by side."""

from collections.abc import Callable
from typing import Final, NamedTuple

_MIB: Final = 1 << 20
_ONE_BYTE: Final = b"1\r\na\r\n"
_HOST: Final = b"Host: x\r\n"
_CHUNKED: Final = _HOST + b"Transfer-Encoding: chunked\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
HEALTH: Final = b"GET /health HTTP/1.1\r\n" + _HOST + b"\r\n"
_UNREAD_PAGE: Final = b"GET /page HTTP/1.1\r\n" + _HOST + b"\r\n"


class Attack(NamedTuple):
    """Bytes that some connections send at the same time."""

    create: Callable[[], bytes]
    num_connections: int = 1
    reads: bool = True
    """Whether the clients read the responses."""
    piece_bytes: int = 1 << 18
    """How many bytes the clients send at once."""


def _head(line: str, fields: bytes) -> bytes:
    return line.encode() + b" HTTP/1.1\r\n" + fields


def _body(length: int) -> bytes:
    return _HOST + b"Content-Length: %d\r\n\r\n" % length + b"b" * length


def _chunks(line: str, chunk: bytes, num_bytes: int = 4 * _MIB) -> bytes:
    return _head(line, _CHUNKED) + chunk * (num_bytes // len(chunk)) + _LAST_CHUNK


STALLS: Final = {
    "a body in chunks of a byte": Attack(lambda: _chunks("POST /read", _ONE_BYTE)),
    "chunks of a byte of a request that is answered": Attack(lambda: _chunks("POST /nowhere", _ONE_BYTE)),
    "chunks of a byte behind GET /health": Attack(lambda: _chunks("GET /health", _ONE_BYTE)),
    "four clients with chunks of a byte": Attack(lambda: _chunks("POST /nowhere", _ONE_BYTE), num_connections=4),
    "eight clients whose chunks are read": Attack(
        lambda: _chunks("POST /read", _ONE_BYTE, 2 * _MIB), num_connections=8
    ),
    "chunks with extensions": Attack(lambda: _chunks("POST /read", b"1;a=b\r\nc\r\n")),
    "chunks of empty lines": Attack(lambda: _chunks("POST /read", b"4\r\n\r\n\r\n\r\n")),
    "chunks that look like the last": Attack(lambda: _chunks("POST /read", b"9\r\n\r\n0\r\n\r\n\r\n\r\n")),
    "chunks with leading zeros": Attack(lambda: _chunks("POST /nowhere", b"01\r\na\r\n")),
    "many trailers": Attack(lambda: _chunks("POST /nowhere", _ONE_BYTE, 6)[:-2] + b"a:b\r\n" * 200_000),
    "many headers": Attack(lambda: _head("GET /health", b"a:b\r\n" * 200_000)),
    "a large body that is not read": Attack(lambda: _head("POST /nowhere", _body(16 * _MIB))),
    "a large body that is read": Attack(lambda: _head("POST /read", _body(16 * _MIB))),
    "many requests at once": Attack(lambda: HEALTH * 20_000),
    "many requests behind chunks": Attack(lambda: _chunks("POST /read", _ONE_BYTE, 600) + HEALTH * 20_000),
    "many requests without headers": Attack(lambda: b"GET /health HTTP/1.1\r\n\r\n" * 20_000, num_connections=4),
    "empty lines": Attack(lambda: b"\r\n" * (2 * _MIB)),
    "a head byte by byte": Attack(lambda: _head("GET /health", b"a: " + b"b" * 4000 + b"\r\n\r\n"), piece_bytes=1),
    "chunks byte by byte": Attack(lambda: _chunks("POST /nowhere", _ONE_BYTE, 4000), 4, piece_bytes=1),
}
"""Attacks on the event loop."""

FLOODS: Final = {
    "bodies behind an unread response": Attack(
        lambda: _UNREAD_PAGE + _head("POST /read", _body(_MIB)), num_connections=100, reads=False
    ),
    "many bodies behind an unread response": Attack(
        lambda: _UNREAD_PAGE + _head("POST /read", _body(60_000)) * 32, num_connections=100, reads=False
    ),
    "small chunks behind an unread response": Attack(
        lambda: _UNREAD_PAGE + _chunks("POST /read", _ONE_BYTE, _MIB), num_connections=50, reads=False
    ),
    "many small requests behind an unread response": Attack(
        lambda: _UNREAD_PAGE + HEALTH * 20_000, num_connections=50, reads=False, piece_bytes=4000
    ),
    "unread responses": Attack(lambda: _UNREAD_PAGE * 50, num_connections=100, reads=False),
    "bodies that are held": Attack(lambda: _head("POST /read", _body(_MIB))[:-1], num_connections=50, reads=False),
    "small chunks that are held": Attack(
        lambda: _chunks("POST /read", _ONE_BYTE, _MIB)[:-5], num_connections=20, reads=False
    ),
    "heads without an end": Attack(
        lambda: _head("GET /health", b"a: " + b"b" * 60_000), num_connections=200, reads=False
    ),
    "answered requests whose bodies never end": Attack(
        lambda: _head("POST /nowhere", _body(_MIB))[:-1], num_connections=100, reads=False
    ),
    "silent clients": Attack(lambda: b"", num_connections=500, reads=False),
}
"""Attacks on memory."""
