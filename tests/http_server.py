"""HTTP servers in the test's process that replace external ones."""

import json
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, TypeVar

from tests.certificates import Certificate


class LocalServer(ThreadingHTTPServer):
    """Listens on a free port by default; reports errors other than closed connections."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0, *, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), handler)

    @property
    def url(self) -> str:
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://{self.server_address[0]}:{self.server_port}"

    def use_tls(self, made: Certificate) -> None:
        """From now on only TLS connections are accepted."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class QuietHandler(BaseHTTPRequestHandler):
    """Writes no access log into the tests' output."""

    def read_json(self) -> Any:
        """The body of the request."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, status: int, body: Any = b"", headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Sends bytes as they are, and anything else as JSON."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


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
