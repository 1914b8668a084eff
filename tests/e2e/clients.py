"""HTTP clients: one that sends a test's own bytes, one that reads a stream, many that keep a server busy."""

import http.client
import json
import socket
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from tests.support.http_answer import ask

_PATIENT_S = 120.0
_STREAM_S = 200.0
_BODY = {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
_ANSWER_S = 120.0
SOON_REFUSALS = 30
"""Of `count_refusals`: ten in half a second, 100 in five."""


def count_refusals(url: str, stop: Callable[[], object]) -> int:
    """The number of 503s that a client gets which asks twenty times a second until the port is closed."""
    num_refusals = 0
    ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 1})
    stop()
    while status := ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 1}).status:
        num_refusals += status == 503
        time.sleep(0.05)
    return num_refusals


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
        self._pending = b""
        try:
            self.socket.connect(("127.0.0.1", port))
            if context is not None:
                self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        except BaseException:
            self.socket.close()
            raise

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


class StreamReader:
    """Waits for the first event, then reads the rest in a thread."""

    def __init__(self, url: str, max_tokens: int, *, key: str = "none") -> None:
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        self.response = urllib.request.urlopen(request, timeout=_STREAM_S)
        self.lines = [self.response.readline()]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self.response:
            self.lines += self.response.readlines()

    def finish(self) -> list[Any]:
        """Waits for the end of the stream; all events, None for `[DONE]`."""
        self._thread.join(_STREAM_S)
        assert not self._thread.is_alive()
        events = [line[6:].strip() for line in self.lines if line.startswith(b"data: ")]
        return [json.loads(e) if e != b"[DONE]" else None for e in events]


class LoadClients:
    """Each client sends one request after another on its connection; every second client requests streams."""

    def __init__(self, port: int, *, num_clients: int) -> None:
        self._port = port
        self.endings: Counter[str] = Counter()
        """`answered`, `rejected` (503), `failed` (an error event or 500), `not accepted` and `lost`."""
        self.losses: list[str] = []
        self.num_repeated = 0
        """Requests sent again because the idle connection was closed before a response began."""
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n % 2 == 0,)) for n in range(num_clients)]

    def start(self) -> None:
        """Starts the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stops each client after its current request."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(_ANSWER_S)
            assert not thread.is_alive()

    def _run(self, wants_stream: bool) -> None:
        connection = self._connect()
        while not self._is_over.is_set():
            is_fresh = connection.sock is None
            ending = self._send(connection, wants_stream, is_fresh)
            if ending == "again":  # a server may close an idle connection at any time (RFC 9112, 9.6)
                connection.close()
                self.num_repeated += 1
                continue
            with self._lock:
                self.endings[ending] += 1
            if ending == "not accepted":
                return
            if ending != "answered":
                connection.close()
                self._is_over.wait(0.05)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_S)

    def _send(self, connection: http.client.HTTPConnection, wants_stream: bool, is_fresh: bool) -> str:
        try:
            if is_fresh:
                connection.connect()
        except ConnectionError:
            return "not accepted"
        try:
            body = json.dumps(_BODY | {"stream": wants_stream})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as err:
            if not is_fresh:
                return "again"
            self.losses.append(repr(err))
            return "lost"
        return self._judge(response, content, wants_stream)

    def _judge(self, response: http.client.HTTPResponse, content: bytes, wants_stream: bool) -> str:
        if response.status == 503 and response.getheader("retry-after") is not None:
            return "rejected"
        if response.status == 500 and b'"error"' in content:
            return "failed"
        if response.status == 200:
            is_whole = content.rstrip().endswith(b"[DONE]") if wants_stream else b'"length"' in content
            if is_whole:
                return "failed" if b'"error"' in content else "answered"
        self.losses.append(f"{response.status} {content[-200:]!r}")
        return "lost"
