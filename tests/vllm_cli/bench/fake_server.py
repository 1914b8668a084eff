"""A real HTTP server with OpenAI's API, known delays in its start and its answers, and faults.

Tests run this script. It uses only the standard library, so that it starts at once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "tiny"
STUBBORN_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
FLAGS = ("never-ready", "reports-phases", "crashes", "misses-graphs", "aborts-streams", "ignores-sigterm")


class Server(ThreadingHTTPServer):
    """A server that is ready some time after it listens. It sends the requested words at a fixed rate."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), Handler)
        self.options = options
        self.ready_at_s = time.monotonic() + options.ready_ms / 1000
        self.bodies: list[dict] = []
        self.num_running = self.max_running = 0
        self.loop = threading.Lock()
        """A lock for requests that block the server, as if it had one event loop."""

    @property
    def is_ready(self) -> bool:
        return not self.options.never_ready and time.monotonic() >= self.ready_at_s

    def count_running(self, change: int) -> None:
        with self.loop:
            self.num_running += change
            self.max_running = max(self.max_running, self.num_running)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        options = self.server.options
        if self.path == "/health":
            with self.server.loop:
                self.answer(200 if self.server.is_ready else 503, {})
        elif self.path == "/metrics" and options.misses_graphs:
            self.send_response(200)
            self.close_connection = True
            self.end_headers()
            self.wfile.write(b"vllm_cli:cuda_graphs_captured 2.0\nvllm_cli:cuda_graphs_total 102.0\n")
        elif self.path == "/startupz" and options.reports_phases:
            phases = [{"process": "api", "name": "listen", "took_s": 0.25, "share": 0.5, "begin_s": 0}]
            self.answer(200, {"schema_version": 1, "phases": phases})
        elif self.path == "/v1/models":
            self.answer(200 if self.server.is_ready else 503, {"data": [{"id": MODEL}]})
        elif self.path == "/version":
            self.answer(200, {"version": "1.2.3"})
        elif self.path == "/seen":
            self.answer(200, {"bodies": self.server.bodies, "max_running": self.server.max_running})
        else:
            self.answer(404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        options = self.server.options
        with self.server.loop:
            self.server.bodies.append(body)
            number = len(self.server.bodies)
        if not self.server.is_ready:
            self.answer(503, {"error": {"message": "Loading model"}})
        elif body["model"] != MODEL:
            self.answer(404, {"error": {"message": f"no model {body['model']}"}})
        elif rejected := set(body) & set(options.rejects):
            self.answer(422, {"detail": f"Unexpected fields: {rejected}"})
        elif options.fails_every and number % options.fails_every == 0:
            self.answer(400, {"error": {"message": "deliberate error"}})
        elif options.exits_after and number > options.exits_after:
            os._exit(9)
        elif not body["stream"]:
            self.answer(200, {"choices": [{"text": " Rome"}]})
        else:
            self.stream(body)

    def stream(self, body: dict) -> None:
        options = self.server.options
        self.server.count_running(1)
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        is_chat = "messages" in body
        if is_chat:
            self.send_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        num_tokens = self.num_tokens(body)
        for index in range(num_tokens):
            time.sleep((options.gap_ms if index else options.first_ms) / 1000)
            self.send_event({"choices": [{"delta": {"content": " word"}} if is_chat else {"text": " word"}]})
        if not options.aborts_streams:
            self.send_event({"choices": [{"text": "", "finish_reason": "length"}]})
            if body.get("stream_options"):
                usage = {"prompt_tokens": 10, "completion_tokens": num_tokens * options.tokens_per_chunk}
                self.send_event({"choices": [], "usage": usage})
        self.server.count_running(-1)  # before the client sees the end
        if not options.aborts_streams:
            self.wfile.write(b"data: [DONE]\n\n")

    def num_tokens(self, body: dict) -> int:
        limit = self.server.options.stops_after
        return min(body["max_tokens"], limit) if limit and not body.get("ignore_eos") else body["max_tokens"]

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
    for name in ("listen", "ready", "first", "gap"):
        parser.add_argument(f"--{name}-ms", type=float, default=0)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    for name in ("--stops-after", "--fails-every", "--exits-after"):
        parser.add_argument(name, type=int)
    parser.add_argument("--rejects", nargs="*", default=[])
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
    if options.crashes or (options.crashes_if and options.crashes_if.exists()):
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
