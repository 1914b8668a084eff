"""`python foreign_server.py PORT [WORD ...]`: a small HTTP server that misbehaves as its words say.

It answers GET /health with 200, GET /env with its variables, and POST with its process id, its words and the
request's key. With `waits FILE`, it answers a POST only once this file exists. With `sleeps`, POST /sleep and
/wake_up change the state `asleep` in its answers, unless their body `fails` or `hangs`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

STATE: Final = {"asleep": False}
_SLEEP: Final = [sys.executable, "-c", "import time; time.sleep(600)"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({"variables": dict(os.environ)} if self.path == "/env" else {}, 404 if "404" in self.path else 200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "sleeps" in WORDS and self.path.partition("?")[0] in ("/sleep", "/wake_up"):
            STATE["asleep"] = self.path != "/wake_up"
            if b"hangs" in body:
                time.sleep(600)
            self._answer({}, 500 if b"fails" in body else 200)
            return
        while "waits" in WORDS and not Path(WORDS[-1]).exists():
            time.sleep(0.01)
        self._answer({"pid": os.getpid(), "words": WORDS, "key": self.headers.get("Authorization"), **STATE})

    def _answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs no traceback if a client has gone, because the router may end a poll at any time."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _misbehave() -> None:
    if "ignores-sigterm" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "dies" in WORDS:
        sys.stderr.write("first line\nRuntimeError: the disk is on fire\n")
        sys.exit(3)
    if "never-listens" in WORDS:
        sys.stderr.write("loading for ever\n")
        time.sleep(600)
    if "prints" in WORDS:
        for number in range(100):
            sys.stdout.write(f"{number} " + "x" * (1 << 20) + "\n")
    if "has-children" in WORDS:
        subprocess.Popen(_SLEEP)
        subprocess.Popen(_SLEEP, start_new_session=True)
        if os.fork() == 0:  # an orphan in its own session
            os.setsid()
            if os.fork() == 0:
                os.execv(_SLEEP[0], _SLEEP)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    WORDS: Final = sys.argv[2:]
    _misbehave()
    _Server(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
