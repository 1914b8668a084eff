"""A real HTTP server with OpenAI's API, known delays in its start and its first answer, and faults.

Tests run this script. It uses only the standard library, so that it starts at once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "tiny"
STUBBORN_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
FLAGS = ("never-ready", "reports-phases", "ignores-sigterm")


class Server(ThreadingHTTPServer):
    """A server that is ready some time after it listens. It streams the requested words."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options = options
        self.ready_at_s = time.monotonic() + options.ready_ms / 1000

    @property
    def is_ready(self) -> bool:
        return not self.options.never_ready and time.monotonic() >= self.ready_at_s


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        options = self.server.options
        if self.path == "/health":
            self.answer(200 if self.server.is_ready else 503, {})
        elif self.path == "/startupz" and options.reports_phases:
            spans = [{"process": "api", "name": "listen", "begin_s": 0, "end_s": 0.25}]
            self.answer(200, {"schema_version": 2, "spans": spans})
        elif self.path == "/v1/models":
            self.answer(200 if self.server.is_ready else 503, {"data": [{"id": MODEL}]})
        elif self.path == "/version":
            self.answer(200, {"version": "1.2.3"})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.server.is_ready:
            self.answer(503, {"error": {"message": "Loading model"}})
        elif body["model"] != MODEL:
            self.answer(404, {"error": {"message": f"no model {body['model']}"}})
        else:
            self.stream(body)

    def stream(self, body: dict) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        is_chat = self.path == "/v1/chat/completions"
        assert ("messages" if is_chat else "prompt") in body
        time.sleep(self.server.options.first_ms / 1000)
        for _ in range(body["max_tokens"]):
            self.send_event({"choices": [{"delta": {"content": " word"}} if is_chat else {"text": " word"}]})
        if not is_chat:  # `transformers serve` sends no end
            self.wfile.write(b"data: [DONE]\n\n")

    def send_event(self, content: object) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def answer(self, status: int, content: object) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    for name in ("listen", "ready", "first"):
        parser.add_argument(f"--{name}-ms", type=float, default=0)
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--crashes-if", type=Path, help="when this file exists")
    parser.add_argument("--log-file", type=Path, help="each start appends a line")
    parser.add_argument("--log-name", default="")
    parser.add_argument("--pid-file", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    line = {"name": options.log_name, "begin_ns": time.monotonic_ns(), "port": options.port}
    if options.crashes_if and options.crashes_if.exists():
        print("loading the model")
        sys.exit("the fake server crashes")
    if options.ignores_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.pid_file:
        child = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN_CHILD], start_new_session=True)
        options.pid_file.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(options.listen_ms / 1000)
    line["bound_ns"] = time.monotonic_ns()  # a lower bound
    with Server(options) as server:
        if options.log_file:
            with options.log_file.open("a") as log:
                log.write(json.dumps(line) + "\n")
        print("the fake server serves", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
