"""Requests that HTTP servers read in different ways, and garbage."""

import re
from typing import Final

_HIDDEN: Final = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
_CHUNKED: Final = b"0\r\n\r\n" + _HIDDEN
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def _post(*headers: bytes, body: bytes = _CHUNKED) -> bytes:
    return b"\r\n".join([b"POST /tokenize HTTP/1.1", b"Host: x", *headers, b"", body])


_LENGTH: Final = b"Content-Length: %d" % len(_CHUNKED)

# Cases are added to these two and never removed.
AMBIGUOUS: Final = {
    "length and chunks": _post(_LENGTH, b"Transfer-Encoding: chunked"),
    "chunks and length": _post(b"Transfer-Encoding: chunked", _LENGTH),
    "two lengths": _post(b"Content-Length: 0", _LENGTH, body=_HIDDEN),
    "a list of lengths": _post(b"Content-Length: 0, 5", body=_HIDDEN),
    "length with a sign": _post(b"Content-Length: +0", body=_HIDDEN),
    "negative length": _post(b"Content-Length: -1", body=_HIDDEN),
    "hexadecimal length": _post(b"Content-Length: 0x5", body=_HIDDEN),
    "length that is no number": _post(b"Content-Length: five", body=_HIDDEN),
    "length beyond 64 bits": _post(b"Content-Length: 18446744073709551616", body=_HIDDEN),
    "space before the colon": _post(b"Transfer-Encoding : chunked", _LENGTH),
    "tab before the colon": _post(b"Content-Length\t: 0", body=_HIDDEN),
    "unknown coding": _post(b"Transfer-Encoding: xchunked"),
    "chunked and then another coding": _post(b"Transfer-Encoding: chunked, identity"),
    "chunked twice": _post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "chunked in quotes": _post(b'Transfer-Encoding: "chunked"'),
    "vertical tab before the coding": _post(b"Transfer-Encoding:\x0bchunked"),
    "coding in a folded line": _post(b"Transfer-Encoding:\r\n chunked", _LENGTH),
    "folded header": _post(b"X: a\r\n Content-Length: 0", body=_HIDDEN),
    "bare line feed in a header": _post(b"X: a\nTransfer-Encoding: chunked", _LENGTH),
    "bare carriage return in a header": _post(b"X: a\rTransfer-Encoding: chunked", _LENGTH),
    "zero byte in a header": _post(b"X: a\0b", b"Content-Length: 0", body=_HIDDEN),
    "header without a name": _post(b": x", b"Content-Length: 0", body=_HIDDEN),
    "header without a colon": _post(b"Content-Length 5", body=_HIDDEN),
    "chunk size with a sign": _post(b"Transfer-Encoding: chunked", body=b"+0\r\n\r\n" + _HIDDEN),
    "chunk size in another base": _post(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n" + _HIDDEN),
    "chunk size beyond 64 bits": _post(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n" + _HIDDEN),
    "chunk longer than its size": _post(b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n" + _CHUNKED),
    "line feed in a chunk extension": _post(b"Transfer-Encoding: chunked", body=b"5;a\nb\r\n0\r\n\r\n" + _HIDDEN),
}
"""Each has a hidden request for /hidden, which some parsers accept. The only valid response is a 400."""

GARBAGE: Final = {
    "nothing": b"\r\n\r\n",
    "zeros": b"\0" * 4096,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": b"HACK / HTTP/1.1\r\n\r\n",
    "line break in the method": b"GET\r\n / HTTP/1.1\r\n\r\n",
    "space in the path": b"GET /a b HTTP/1.1\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\n\r\n",
    "absolute path elsewhere": b"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "upgrade": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "websocket": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "path of dots": b"GET /v1/models/../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "path of encoded dots": b"GET /v1/models/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded line break in the path": b"GET /a%0d%0aX-Injected:%20yes HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no UTF-8 in the path": b"GET /\xff%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no ASCII in the query": b"GET /v1/models?key=\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n",
    "terminal escape in the path": b"GET /%1b[2J%1b]0;owned%07 HTTP/1.1\r\nHost: x\r\n\r\n",
}
"""Each of these must be rejected or answered correctly. The server must answer the next request."""


def statuses(received: bytes) -> list[int]:
    """The statuses of the responses in these bytes."""
    return [int(status) for status in _STATUS.findall(received)]
