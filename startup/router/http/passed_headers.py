"""Which headers of a request and of its response are passed on."""

from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers about one connection, RFC 9110."""
_NOT_REQUESTED: Final = _HOP_BY_HOP | {"host", "expect"}
_HANDSHAKE: Final = "sec-websocket-"
_CORS: Final = "access-control-"


def headers_to_server(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """The headers of a request, in lower case: aiohttp's client keeps duplicates that are spelled alike."""
    dropped = _NOT_REQUESTED | dropped | _named_by_connection(headers)
    names = ((name.lower(), value) for name, value in headers.items())
    return CIMultiDict((name, value) for name, value in names if name not in dropped)


def headers_to_client(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers of a response; which pages may read it, only the router says (`cors.py`)."""
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    names = ((name, name.lower(), value) for name, value in headers.items())
    return CIMultiDict((name, value) for name, low, value in names if low not in dropped and not low.startswith(_CORS))


def headers_of_websocket(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """The headers of a WebSocket's request; aiohttp's client writes those of its own handshake."""
    handshake = frozenset(name.lower() for name in headers if name.lower().startswith(_HANDSHAKE))
    return headers_to_server(headers, dropped | handshake)


def _named_by_connection(headers: CIMultiDictProxy[str]) -> frozenset[str]:
    """Further headers that are about one connection only."""
    if hdrs.CONNECTION not in headers:
        return frozenset()
    return frozenset(name.strip().lower() for name in ",".join(headers.getall(hdrs.CONNECTION)).split(","))
