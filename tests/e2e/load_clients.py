"""Clients that keep a server busy and count how their requests end."""

import http.client
import json
import threading
from collections import Counter

_BODY = {"prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, "temperature": 0}
_ANSWER_S = 120.0


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
