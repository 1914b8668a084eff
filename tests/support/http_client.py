"""HTTP clients: requests to servers that may be gone, any bytes, streams that a test reads later, load."""

import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

from tests.support.waiting import wait_until

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
            if body is None:
                return client.get(path, **headers).read()
            return client.post(path, body, **headers).read()
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
        status = int(first.split()[1])
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return Answer(status, b"", headers)

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


if TYPE_CHECKING:
    from openai import OpenAI

_STREAM_S = 200.0
_BODY = {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
SOON_REFUSALS = 30
"""The most 503s from a server that exits soon. `count_refusals` sends up to 20 requests a second."""


def openai_client(url: str, **options: Any) -> "OpenAI":
    """The `openai` client without retries, as a context manager."""
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", **{"api_key": "none", "max_retries": 0} | options)


def count_refusals(url: str, stop: Callable[[], object]) -> int:
    """Calls `stop`, then sends 20 requests a second until the port is closed. Returns the number of 503s."""
    num_refusals = 0
    ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 1})
    stop()
    while status := ask(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 1}).status:
        num_refusals += status == 503
        time.sleep(0.05)
    return num_refusals


def judge(answer: Answer, *, is_stream: bool) -> str:
    """How a completion ended: `answered`, `rejected` (503), `failed` (error event or 500) or `lost`."""
    if answer.status == 503 and "retry-after" in answer.headers:
        return "rejected"
    if answer.status == 500 and b'"error"' in answer.body:
        return "failed"
    is_whole = answer.body.rstrip().endswith(b"[DONE]") if is_stream else b'"length"' in answer.body
    if answer.status == 200 and is_whole:
        return "failed" if b'"error"' in answer.body else "answered"
    return "lost"


class StreamReader:
    """Waits for the first event of a stream, then reads the other events in a thread."""

    def __init__(self, url: str, max_tokens: int) -> None:
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        address, _, path = url.removeprefix("http://").partition("/")
        host, _, port = address.rpartition(":")
        self._client = RawClient((host, int(port)), timeout_s=_STREAM_S)
        path = f"/{path}/v1/completions" if path else "/v1/completions"
        head = self._client.post(path, body).read_head()
        self._parts = self._client.read_parts(head)
        self._data = next(self._parts)
        assert head.status == 200, self._data
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self._client:
            self._data += b"".join(self._parts)

    def finish(self) -> list[Any]:
        """Waits for the end of the stream. Returns all events, with None for `[DONE]`."""
        self._thread.join(_STREAM_S)
        assert not self._thread.is_alive()
        lines = [line for line in self._data.splitlines() if line.startswith(b"data: ")]
        events = [line.removeprefix(b"data: ").strip() for line in lines]
        return [json.loads(event) if event != b"[DONE]" else None for event in events]


class _Clients:
    """Runs a thread for each client until the `with` block ends."""

    def __init__(self, port: int, clients: Sequence[Any]) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops each client after its current request."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(_STREAM_S)
            assert not thread.is_alive()

    def _run(self, client: Any) -> None:
        raise NotImplementedError


class LoadClients(_Clients):
    """Clients that send one request after another on a connection. Every second client requests streams."""

    def __init__(self, port: int, *, num_clients: int) -> None:
        super().__init__(port, [number % 2 == 0 for number in range(num_clients)])
        self.endings: Counter[str] = Counter()
        """Counts `answered`, `rejected` (503), `failed` (error event or 500), `not accepted` and `lost`."""
        self.losses: list[str] = []

    def _run(self, wants_stream: bool) -> None:
        connection: RawClient | None = None
        while not self._is_over.is_set():
            ending, connection = self._send(wants_stream, connection)
            with self._lock:
                if ending == "again":  # a server may close an idle connection at any time (RFC 9112, 9.6)
                    continue
                self.endings[ending] += 1
            if ending == "not accepted":
                return
            if ending != "answered":
                self._is_over.wait(0.05)
        if connection is not None:
            connection.close()

    def _send(self, wants_stream: bool, kept: RawClient | None) -> tuple[str, RawClient | None]:
        """Sends a request. Returns how it ended, and the connection if it can be used again."""
        try:
            connection = kept or RawClient(self._port)
        except ConnectionError:
            return "not accepted", None
        try:
            answer = connection.post("/v1/completions", _BODY | {"stream": wants_stream}).read()
        except OSError as err:
            connection.close()
            if kept is not None:
                return "again", None
            self.losses.append(repr(err))
            return "lost", None
        if (ending := judge(answer, is_stream=wants_stream)) == "lost":
            self.losses.append(f"{answer.status} {answer.body[-200:]!r}")
        if ending == "answered" and answer.headers.get("connection") != "close":
            return ending, connection
        connection.close()
        return ending, None


class RepeatingClients(_Clients):
    """One client for each path. Each client sends one request after another, each on a new connection."""

    def __init__(self, port: int, *paths: str) -> None:
        self.statuses: list[list[int]] = [[] for _ in paths]
        """For each client, the statuses of its answers in order. 0 stands for a refused connection."""
        self.bodies: list[list[bytes]] = [[] for _ in paths]
        """For each client, the bodies of its answers with status 503."""
        self.lost: list[str] = []
        """Connections that were reset, or closed without an answer."""
        super().__init__(port, [*zip(paths, self.statuses, self.bodies, strict=True)])

    def wait_for_more(self, number: int, *statuses: int) -> None:
        """Waits until each of these statuses was received `number` more times, if slowly."""
        before = {status: self._count(status) for status in statuses}
        for num_more in range(1, number + 1):  # each has its own time-out, because a busy machine answers few a second
            wait_until(lambda wanted=num_more: all(self._count(each) >= before[each] + wanted for each in statuses))

    def _count(self, status: int) -> int:
        return sum(answers.count(status) for answers in self.statuses)

    def _run(self, client: tuple[str, list[int], list[bytes]]) -> None:
        path, statuses, bodies = client
        while not self._is_over.is_set():
            try:
                with RawClient(self._port) as connection:
                    answer = connection.get(path, connection="close").read()
                statuses.append(answer.status)
                bodies.extend([answer.body] if answer.status == 503 else [])
            except ConnectionRefusedError:
                statuses.append(0)
            except OSError as err:
                self.lost.append(repr(err))
