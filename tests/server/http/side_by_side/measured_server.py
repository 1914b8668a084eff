"""A program that serves the same small application with our HTTP server, or with uvicorn.

It measures itself: the processor time of the longest turn of its event loop, and its memory. Run as
`python -m tests.server.http.side_by_side.measured_server NAME FD`, where FD is a listening socket.
"""

import asyncio
import gc
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sized
from pathlib import Path
from typing import Any, Final

import uvicorn
import uvloop

from server.http.transport.connection import Serving
from server.http.transport.http_request import ClientGoneError, Request
from server.http.transport.server import HttpServer
from server.terms.held_bytes import HeldBytes
from server.terms.http_body.response_body import Answer
from server.terms.limits import LimitsConfig

PAGE_PART: Final = b"p" * 65_536
NUM_PAGE_PARTS: Final = 256
START, STOP, STATE = "/turns/start", "/turns/stop", "/state"


class TurnClock:
    """Measures the processor time of this thread in each turn of the event loop."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._turned_s = 0.0
        self._is_running = False

    def start(self) -> None:
        """Measures from now on. Nothing is collected meanwhile, because a collection takes a turn's time."""
        gc.collect()
        gc.disable()
        self._longest_s = 0.0
        self._turned_s = time.thread_time()
        if not self._is_running:
            self._is_running = True
            self._turn()

    def stop(self) -> float:
        """Returns the milliseconds of the longest turn."""
        self._is_running = False
        gc.enable()
        return self._longest_s * 1000

    def _turn(self) -> None:
        now_s = time.thread_time()
        self._longest_s = max(self._longest_s, now_s - self._turned_s)
        self._turned_s = now_s
        if self._is_running:
            asyncio.get_running_loop().call_soon(self._turn)


class OwnAnswers:
    """The answers of a server about itself."""

    def __init__(self, connections: Sized) -> None:
        self._clock = TurnClock()
        self._connections = connections

    def find(self, path: str) -> bytes | None:
        """The body of the answer to a GET of the path. None for a path of the application."""
        if path == START:
            self._clock.start()
            return b"{}"
        if path == STOP:
            return json.dumps({"longest_ms": self._clock.stop()}).encode()
        if path == STATE:
            return json.dumps({"memory_kib": _memory_kib(), "connections": len(self._connections)}).encode()
        return b"" if path == "/health" else None


def _memory_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


async def _serve_own(listener: socket.socket) -> None:
    async def answer(request: Request) -> None:
        try:
            await respond(request)
        except ClientGoneError:
            return

    async def respond(request: Request) -> None:
        body = answers.find(request.path)
        if body is not None:
            await request.send(Answer(body))
        elif request.path == "/page":
            request.cancel_if_gone()
            await request.begin(200, ())
            for _ in range(NUM_PAGE_PARTS):
                await request.write(PAGE_PART)
            request.end()
        elif request.path == "/read":
            parts: list[bytes] = []
            while further := await request.read():
                parts += further
            await request.send(Answer(b"%d" % sum(map(len, parts))))
        else:
            await request.send(Answer(b"not found", 404))

    serving = Serving(handle=answer, limits=LimitsConfig(), held=HeldBytes())
    answers = OwnAnswers(serving.connections)
    await HttpServer(serving).serve(listener)


async def _serve_uvicorn(listener: socket.socket) -> None:
    async def application(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        async def whole(body: bytes, status: int = 200) -> None:
            headers = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        body = answers.find(scope["path"])
        if body is not None:
            await whole(body)
        elif scope["path"] == "/page":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(NUM_PAGE_PARTS):
                await send({"type": "http.response.body", "body": PAGE_PART, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif scope["path"] == "/read":
            parts: list[bytes] = []
            while (message := await receive()).get("more_body"):
                parts.append(message["body"])
            if message["type"] != "http.disconnect":
                parts.append(message["body"])
                await whole(b"%d" % sum(map(len, parts)))
        else:
            await whole(b"not found", 404)

    config = uvicorn.Config(application, http="httptools", ws="none", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    answers = OwnAnswers(server.server_state.connections)
    await server.serve([listener])


SERVERS: Final[dict[str, Callable[[socket.socket], Awaitable[None]]]] = {"own": _serve_own, "uvicorn": _serve_uvicorn}


def main() -> None:
    name, fd = sys.argv[1:]
    uvloop.run(SERVERS[name](socket.socket(fileno=int(fd))))


if __name__ == "__main__":
    main()
