"""A request of a client, with what the router notes about it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from base.http_requests import decode, query_value
from router.http.answers import CLOSES, FailedRequestError
from router.metrics import RequestRecord
from server.http.transport.http_request import Request, announces_body, find_header

_SINGLE: Final = (b"host", b"content-type", b"transfer-encoding")
"""Headers that may occur only once. A model's server could read another one than the router."""


@dataclass(frozen=True)
class ClientRequest:
    """A request whose head has been read."""

    http: Request
    raw_path: str
    """The path as the client has spelled it, without the router's root path and final slashes."""
    record: RequestRecord = field(default_factory=RequestRecord)

    @property
    def method(self) -> str:
        return self.http.method

    @cached_property
    def path(self) -> str:
        return decode(self.raw_path)

    @property
    def is_read(self) -> bool:
        """Whether the request only reads, by its method."""
        return self.method in ("GET", "HEAD")

    @property
    def has_body(self) -> bool:
        return announces_body(self.http.headers)

    def header(self, name: bytes) -> str | None:
        """The value of a header. `name` is in lower case."""
        return find_header(self.http.headers, name)

    def query_value(self, name: str) -> str | None:
        """The value of a parameter of the query."""
        return query_value(self.http.query, name)

    def check_head(self) -> None:
        """Raises FailedRequestError if the head has a fault that the server's parser accepts."""
        names, version = [name for name, _ in self.http.headers], self.http.version
        is_old = version == "1.0"
        is_doubled = any(names.count(name) > 1 for name in _SINGLE)
        lacks_host = not is_old and b"host" not in names
        if is_doubled or lacks_host or (is_old and b"transfer-encoding" in names) or version not in ("1.0", "1.1"):
            raise FailedRequestError(400, "The request is not valid HTTP/1.1.", headers=CLOSES)
