"""A small, real HTTP server whose start takes as long as its flags demand; run as a script by the tests."""

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STUBBORN_CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    ready_at_s = 0.0
    options: argparse.Namespace
    num_health = 0

    @property
    def is_ready(self) -> bool:
        return not self.options.never_ready and time.monotonic() >= self.ready_at_s


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer_health()
        elif self.path == "/startupz" and self.server.options.reports_phases:
            phases = [{"process": "api", "name": "listen", "took_s": 0.25, "share": 0.5, "begin_s": 0}]
            self.answer(200, {"schema_version": 1, "phases": phases})
        elif self.path == "/v1/models":
            is_fine = self.server.is_ready and not self.server.options.has_broken_list
            self.answer(200 if is_fine else 503, {"data": [{"id": "slow"}]})
        else:
            self.answer(404, {})

    def answer_health(self) -> None:
        options = self.server.options
        self.server.num_health += 1
        if options.drops_runs_of and self.server.num_health // options.drops_runs_of % 2:
            self.connection.close()
            return
        self.answer(404 if options.has_no_health else 200 if self.server.is_ready else 503, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.server.is_ready:
            self.answer(503, {"error": {"message": "Loading model"}})
        elif not body["stream"]:
            self.answer(200, {"choices": [{"text": " Rome"}]})
        else:
            self.stream(body["max_tokens"])

    def stream(self, num_tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        time.sleep(self.server.options.token_ms / 1000)
        for _ in range(0 if self.server.options.sends_no_text else num_tokens):
            self.send_event({"choices": [{"text": " word"}]})
        self.send_event({"choices": [{"text": "", "finish_reason": "length"}]})
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
    for name in ("--listen-ms", "--ready-ms", "--token-ms"):
        parser.add_argument(name, type=float, default=0)
    parser.add_argument("--drops-runs-of", type=int, help="alternates N answered and N dropped probes")
    for name in (
        "--never-ready",
        "--has-no-health",
        "--reports-phases",
        "--sends-no-text",
        "--crashes",
        "--has-broken-list",
    ):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--crashes-if", type=Path, help="when this file exists")
    parser.add_argument("--log-file", type=Path, help="each start appends a line")
    parser.add_argument("--log-name", default="")
    parser.add_argument("--pid-file", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    begin_ns = time.monotonic_ns()
    if options.crashes or (options.crashes_if and options.crashes_if.exists()):
        print("loading the model")
        sys.exit("the slow server crashes")
    if options.pid_file:
        child = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN_CHILD], start_new_session=True)
        options.pid_file.write_text(f"{child.pid} {os.getpid()}")
    line = {"name": options.log_name, "begin_ns": begin_ns, "port": options.port}
    time.sleep(options.listen_ms / 1000)
    Server.options = options
    line["bound_ns"] = time.monotonic_ns()  # a lower bound
    with Server(("127.0.0.1", options.port), Handler) as server:
        server.ready_at_s = time.monotonic() + options.ready_ms / 1000
        if options.log_file:
            with options.log_file.open("a") as log:
                log.write(json.dumps(line) + "\n")
        print("the slow server serves", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
