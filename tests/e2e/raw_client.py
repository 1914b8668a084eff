"""An HTTP client that sends the test's bytes unchanged and reads responses one after another."""

import json
import socket
import ssl
from typing import Any, NamedTuple, Self

_PATIENT_S = 120.0


class RawAnswer(NamedTuple):
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the API's error body."""
        error = json.loads(self.body)["error"]
        assert {"message", "type", "code"} <= error.keys()
        assert error["code"] == self.status
        return dict(error)


class RawClient:
    """One connection."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, context: ssl.SSLContext | None = None) -> None:
        """Uses TLS if there is a context."""
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(_PATIENT_S)
        self.socket.connect(("127.0.0.1", port))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        """Sends the bytes unchanged."""
        self.socket.sendall(data)
        return self

    def trickle(self) -> None:
        """Sends a byte every 50 ms until the server answers, for at most two minutes."""
        patience_s = self.socket.gettimeout()
        self.socket.settimeout(0.05)
        for _ in range(2400):
            try:
                self._receive()
                break
            except TimeoutError:
                self.send(b"a")
        self.socket.settimeout(patience_s)

    def post(self, path: str, body: Any, **headers: str) -> Self:
        """Sends a complete request."""
        return self.send(request_bytes(path, json.dumps(body).encode(), **headers))

    def read_head(self) -> RawAnswer:
        """The status and headers of the next response; its body stays unread."""
        while b"\r\n\r\n" not in self._pending:
            self._receive()
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return RawAnswer(int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}, b"")

    def read(self) -> RawAnswer:
        """The next response, which has a Content-Length."""
        head = self.read_head()
        size = int(head.headers.get("content-length", 0))
        while len(self._pending) < size:
            self._receive()
        body, self._pending = self._pending[:size], self._pending[size:]
        return head._replace(body=body)

    def read_to_end(self) -> bytes:
        """All data until the server closes the connection."""
        try:
            while data := self.socket.recv(1 << 16):
                self._pending += data
        except ConnectionError:
            pass
        return self._pending

    def read_stream(self) -> bytes:
        """The body of the next response, sent in chunks."""
        self.read_head()
        body = b""
        while True:
            while b"\r\n" not in self._pending:
                self._receive()
            size, _, self._pending = self._pending.partition(b"\r\n")
            while len(self._pending) < int(size, 16) + 2:
                self._receive()
            body += self._pending[: int(size, 16)]
            self._pending = self._pending[int(size, 16) + 2 :]
            if not int(size, 16):
                return body

    def is_closed(self) -> bool:
        """Waits until the server closes the connection; whether it sent nothing more."""
        return self.read_to_end() == b""

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        assert data, f"the connection ended after {self._pending!r}"
        self._pending += data


def request_bytes(path: str, body: bytes, *, method: str = "POST", **headers: str) -> bytes:
    """The bytes of a request; `_` in a header's name is a dash."""
    fields = {"host": "x", "content_type": "application/json", "content_length": str(len(body))} | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body
