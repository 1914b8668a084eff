"""`python foreign_server.py PORT [ARGUMENT ...]`: a small HTTP server that misbehaves as its arguments say.

It answers GET /health with 200, GET /env with its variables, GET /v1/models with 404, and POST with its
process id, its arguments and the request's key. With `waits FILE`, it answers a POST only once this file
exists. With `sleeps`, POST /sleep and /wake_up change the state `asleep` in its answers, unless their body
`fails` or `hangs`. Its imports are few, because most tests of the router start it several times.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Final

STATE: Final = {"asleep": False}
ARGUMENTS: Final = sys.argv[2:]
_SLEEP: Final = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


def _answer(method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, object]:
    if method == "GET":
        is_missing = "404" in path or path == "/v1/models"
        return 404 if is_missing else 200, {"variables": dict(os.environ)} if path == "/env" else {}
    if "sleeps" in ARGUMENTS and path.partition("?")[0] in ("/sleep", "/wake_up"):
        STATE["asleep"] = path != "/wake_up"
        if b"hangs" in body:
            time.sleep(600)
        return 500 if b"fails" in body else 200, {}
    while "waits" in ARGUMENTS and not os.path.exists(ARGUMENTS[-1]):  # noqa: PTH110 - imports nothing
        time.sleep(0.01)
    return 200, {"pid": os.getpid(), "arguments": ARGUMENTS, "key": headers.get("authorization"), **STATE}


def _serve(connection: socket.socket) -> None:
    """Answers the requests of one connection. The router may end it at any time."""
    with suppress(ConnectionError), connection, connection.makefile("rb") as file:
        while first := file.readline().split():
            lines = iter(lambda: file.readline().strip().decode("latin-1"), "")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = file.read(int(headers.get("content-length", 0)))
            status, content = _answer(first[0].decode(), first[1].decode(), headers, body)
            data = json.dumps(content).encode()
            head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)


def _misbehave() -> None:
    if "ignores-sigterm" in ARGUMENTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "dies" in ARGUMENTS:
        sys.stderr.write("first line\nRuntimeError: the disk is on fire\n")
        sys.exit(3)
    if "never-listens" in ARGUMENTS:
        sys.stderr.write("loading for ever\n")
        time.sleep(600)
    if "prints" in ARGUMENTS:
        for number in range(100):
            sys.stdout.write(f"{number} " + "x" * (1 << 20) + "\n")
    if "has-children" in ARGUMENTS:
        _start_children()


def _start_children() -> None:
    """Starts a child, one with a session of its own, and an orphan in its own session."""
    for has_session in (False, True):
        if os.fork() == 0:
            _sleep(has_session=has_session)
    if os.fork() == 0:
        if os.fork() == 0:
            _sleep(has_session=True)
        os._exit(0)
    os.wait()


def _sleep(*, has_session: bool) -> None:
    if has_session:
        os.setsid()
    os.execv(_SLEEP[0], _SLEEP)


if __name__ == "__main__":
    _misbehave()
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        while True:
            threading.Thread(target=_serve, args=[listener.accept()[0]], daemon=True).start()
