"""What a client is told that never got as far as the application: errors of HTTP itself, in the API's envelope."""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from server.protocol.errors import error_response


@dataclass(frozen=True)
class Refusal:
    """Why a connection is closed."""

    status: int
    message: str
    retry_after_s: int | None = None

    def encode(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """The whole HTTP/1.1 response; the connection is closed behind it."""
        phrase = HTTPStatus(self.status).phrase
        body = msgspec.json.encode(error_response(self.message, type=phrase, code=self.status))
        lines = [b"HTTP/1.1 %d %s" % (self.status, phrase.encode())]
        lines += [name + b": " + value for name, value in default_headers]
        if self.retry_after_s is not None:
            lines.append(b"retry-after: %d" % self.retry_after_s)
        lines += [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close", b"", body]
        return b"\r\n".join(lines)


class RefusedError(Exception):
    """Leaves the parser, which then takes no more of this connection."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
