"""HTTP errors for requests that do not reach the application, with a body in the API's error format."""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from server.http_body.errors import error_response


@dataclass(frozen=True)
class Rejection:
    """An error response, after which the connection is closed."""

    status: int
    message: str
    retry_after_s: int | None = None

    def encode(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """The whole HTTP/1.1 response, with `connection: close`."""
        phrase = HTTPStatus(self.status).phrase
        body = msgspec.json.encode(error_response(self.message, type=phrase, code=self.status))
        lines = [b"HTTP/1.1 %d %s" % (self.status, phrase.encode())]
        lines += [name + b": " + value for name, value in default_headers]
        if self.retry_after_s is not None:
            lines.append(b"retry-after: %d" % self.retry_after_s)
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close", b"", body]
        return b"\r\n".join(lines)


class RejectedError(Exception):
    """Raised in a callback of the parser, which then stops parsing the connection's input."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.message)
        self.rejection = rejection
