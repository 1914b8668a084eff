"""The tests' HTTP client: sends requests to servers that may be gone, or any bytes on a connection."""

import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

_ANSWER_S = 60.0
_PATIENT_S = 120.0

Address = int | str | tuple[str, int]
"""A port of 127.0.0.1, the path of a UNIX socket, or host and port."""


class Answer(NamedTuple):
    """A response of any status. Without a response, the status is 0 and the body is empty."""

    status: int
    body: bytes
    headers: dict[str, str]
    """Name in lower case -> value."""

    @property
    def json(self) -> Any:
        """The parsed JSON of the body. None if the body is empty."""
        return json.loads(self.body) if self.body else None

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the API's error body."""
        error: dict[str, Any] = self.json["error"]
        assert {"message", "type", "code"} <= error.keys()
        assert error["code"] == self.status
        return error


def ask(
    url: str,
    body: object = None,
    *,
    timeout_s: float = _ANSWER_S,
    key: str | None = None,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Sends a POST with the body as JSON, or a GET if there is no body, on a new connection."""
    parts = urlsplit(url)
    headers = {"host": parts.netloc, "connection": "close", "authorization": f"Bearer {key}" if key else ""}
    path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    try:
        with RawClient((parts.hostname or "", parts.port or 80), context=context, timeout_s=timeout_s) as client:
            return (client.get(path, **headers) if body is None else client.post(path, body, **headers)).read()
    except OSError:  # also when the connection ends within the response
        return Answer(0, b"", {})


class RawClient:
    """One connection, on which a test sends any bytes."""

    def __init__(
        self,
        address: Address,
        *,
        receive_buffer: int | None = None,
        context: ssl.SSLContext | None = None,
        timeout_s: float = _PATIENT_S,
    ) -> None:
        target = ("127.0.0.1", address) if isinstance(address, int) else address
        is_ipv6 = not isinstance(target, str) and ":" in target[0]
        family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self.socket = socket.socket(family)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self._pending = bytearray()
        try:
            self.socket.connect(target)
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
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

    def get(self, path: str, **headers: str) -> Self:
        return self.send(request_bytes(path, method="GET", **headers))

    def post(self, path: str, body: Any, **headers: str) -> Self:
        return self.send(request_bytes(path, json.dumps(body).encode(), **headers))

    def read_head(self) -> Answer:
        """Reads status and headers of the next response. The body stays unread."""
        first, *lines = self._take_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        return Answer(int(first.split()[1]), b"", {name.lower(): value.strip() for name, _, value in fields})

    def read(self, method: str = "") -> Answer:
        """Reads the next response. If `method` is HEAD, the response has no body."""
        head = self.read_head()
        if method == "HEAD" or head.status in (204, 304):
            return head
        return head._replace(body=b"".join(self.read_parts(head)))

    def read_parts(self, head: Answer) -> Iterator[bytes]:
        """Yields the body as it arrives: by chunks, by its length, or until the connection ends."""
        if "chunked" in head.headers.get("transfer-encoding", ""):
            while size := int(self._take_until(b"\r\n"), 16):
                yield self._take(size)
                self._take(2)
            self._take_until(b"\r\n")
        elif "content-length" in head.headers:
            yield self._take(int(head.headers["content-length"]))
        else:
            yield self.read_to_end()

    def read_to_end(self) -> bytes:
        try:
            while data := self.socket.recv(1 << 16):
                self._pending += data
        except ConnectionError:
            pass
        return bytes(self._pending)

    def is_closed(self) -> bool:
        """Waits until the server closes the connection. Returns whether the server sent nothing more."""
        return self.read_to_end() == b""

    def _take_until(self, end: bytes) -> bytes:
        while end not in self._pending:
            self._receive()
        taken = self._take(self._pending.index(end))
        self._take(len(end))
        return taken

    def _take(self, size: int) -> bytes:
        while len(self._pending) < size:
            self._receive()
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the connection ended after {bytes(self._pending[-1000:])!r}")
        self._pending += data


def request_bytes(path: str, body: bytes = b"", *, method: str = "POST", **headers: str) -> bytes:
    """The bytes of a request. In a header's name, `_` becomes a dash. Empty headers are left out."""
    fields = {"host": "x"}
    if body or method == "POST":
        fields |= {"content_type": "application/json", "content_length": str(len(body))}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (fields | headers).items() if value]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + body
