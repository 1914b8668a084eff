"""Replaces `vllm-rs`: serves the listening socket that it inherits once an engine has registered.

Like `vllm-rs`, it ends only at a signal, after it has finished its requests.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

_BACKLOG = 4096


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Any

    def do_GET(self) -> None:
        self._send(b"" if self.path == "/health" else b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not body.get("stream"):
            self._send(json.dumps(self._answer(body)).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(body["max_tokens"]):
            self._send_event(json.dumps(self._answer(body)))
            time.sleep(0.01)
        self._send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _send_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        with Client(self.engine) as connection:
            connection.send({"what": "completion", "prompt": body["prompt"]})
            return {"choices": [{"text": connection.recv()}]}

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, fd: int) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=fd)


def _registration(fd: int) -> bytes:
    connection, _ = socket.socket(fileno=fd).accept()
    with connection:
        return connection.recv(4096)


def rust_variables(folder: Path) -> dict[str, str]:
    """Writes an executable copy of this file. Returns the variables with which vLLM uses it."""
    program = folder / "vllm-rs"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.chmod(0o755)
    return {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(program)}


def main() -> None:
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    server = _Server(int(options["--listen-fd"]))
    _Handler.engine = _registration(int(options["--input-fd"]))
    if gate := os.environ.get("FAKE_FRONTEND_GATE"):
        print("the frontend waits", flush=True)
        while not Path(gate).exists():
            time.sleep(0.01)
    server.socket.listen(_BACKLOG)

    def stop(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.01)
    server.server_close()  # waits for all requests


if __name__ == "__main__":
    main()
