"""HTTP servers that run in the test's process and replace external servers."""

import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from tests.support.certificates import Certificate


class LocalServer(ThreadingHTTPServer):
    """A server that listens on a free port by default. It reports all errors except closed connections."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0, *, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), handler)

    @property
    def url(self) -> str:
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://{self.server_address[0]}:{self.server_port}"

    def use_tls(self, made: Certificate) -> None:
        """Accepts only TLS connections from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class QuietHandler(BaseHTTPRequestHandler):
    """Writes no access log into the tests' output."""

    def read_json(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, body: Any = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Sends a response. A body of bytes is sent unchanged, any other body as JSON."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Request(NamedTuple):
    """A request that a scripted server has received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedServer(LocalServer):
    """Keeps each request, and sends the answer that `decide` returns for the request."""

    request_queue_size = 128

    def __init__(self, decide: Callable[[Request], Any], place: int | str = 0) -> None:
        """Listens on a port or at the path of a UNIX socket.

        `decide` returns the status, optionally with body and headers, or a function that takes the handler.
        """
        if isinstance(place, str):
            self.address_family = socket.AF_UNIX
        address: Any = place if isinstance(place, str) else ("127.0.0.1", place)
        ThreadingHTTPServer.__init__(self, address, _ScriptedHandler)
        self.decide = decide
        self.requests: list[Request] = []

    def server_bind(self) -> None:
        """Replaces HTTPServer's method, which resolves a host name. A UNIX socket has no host name."""
        TCPServer.server_bind(self)
        self.server_port = 0 if self.address_family == socket.AF_UNIX else self.server_address[1]

    @property
    def url(self) -> str:
        return f"unix:{self.server_address!s}" if self.address_family == socket.AF_UNIX else super().url

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


class _ScriptedHandler(QuietHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body)
        self.server.requests.append(request)
        answer = self.server.decide(request)
        if callable(answer):
            answer(self)
        else:
            self.answer(*answer)

    do_POST = do_PUT = do_GET


Server = TypeVar("Server", bound=LocalServer)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Serves in a thread until the `with` block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="local-server")
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
