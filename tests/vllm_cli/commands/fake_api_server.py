"""An HTTP server that streams prepared responses, as an OpenAI server does."""

import json
import socket
import threading
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from tests.http_server import LocalServer, QuietHandler


class FakeApiServer(LocalServer):
    """Responds with the queued replies and records all requests."""

    daemon_threads = False

    def __init__(self, address: Any = ("127.0.0.1", 0)) -> None:
        ThreadingHTTPServer.__init__(self, address, _Handler)
        self.replies: list[Any] = []
        """Functions of a handler."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.is_disconnected = threading.Event()

    def queue_chat(self, *texts: str) -> None:
        first = {"delta": {"role": "assistant", "content": ""}}
        self._queue_stream(first, *({"delta": {"content": text}} for text in texts))

    def queue_completion(self, *texts: str) -> None:
        self._queue_stream(*({"text": text} for text in texts))

    def queue_response(self, status: int, body: Any) -> None:
        self.replies.append(lambda handler: handler.answer(status, body))

    def queue_incomplete_answer(self, text: str) -> None:
        self.replies.append(lambda handler: handler.stream([{"choices": [{"delta": {"content": text}}]}], ends=False))

    def queue_stream_error(self, message: str) -> None:
        self.replies.append(lambda handler: handler.stream([{"error": {"message": message}}]))

    def queue_endless_answer(self, text: str) -> None:
        self.replies.append(lambda handler: handler.stream_until_disconnected(text))

    def _queue_stream(self, *choices: dict[str, Any]) -> None:
        events = [{"choices": [choice]} for choice in choices]
        usage = {"choices": [], "usage": {"completion_tokens": 7}}
        self.replies.append(lambda handler: handler.stream([*events, usage]))


class UnixFakeApiServer(FakeApiServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """HTTPServer's own method resolves a host name, which a UNIX socket does not have."""
        TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        return f"unix:{self.server_address!s}"


class _Handler(QuietHandler):
    server: FakeApiServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.answer(200, {"data": [{"id": "fake-model"}, {"id": "other"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.server.requests.append({"path": self.path, **self.read_json()})
        self.server.replies.pop(0)(self)

    def stream(self, events: list[dict[str, Any]], *, ends: bool = True) -> None:
        self._begin_stream()
        self._send(b": a comment\n\n")
        for event in events:
            self._send(f"data: {json.dumps(event)}\n\n".encode())
        if ends:
            self._send(b"data: [DONE]\n\n")
            self._send(b"")
        else:
            self.close_connection = True

    def stream_until_disconnected(self, text: str) -> None:
        self._begin_stream()
        self.close_connection = True
        event = f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()
        try:
            while not self.server.is_disconnected.wait(0.01):
                self._send(event)
        except OSError:
            self.server.is_disconnected.set()

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
