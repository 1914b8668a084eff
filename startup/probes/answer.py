"""The HTTP response to one path, and the interface of the object that chooses it."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol


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


class Answers(Protocol):
    """Chooses the answer to each path; the responder's process works on its own copy."""

    def answer(self, path: str) -> Answer:
        """The current answer to a path."""

    def follow(self, message: bytes) -> None:
        """Updates the copy to the state in the API process's message."""
