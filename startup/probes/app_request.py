"""Asks an HTTP server's application for its answer to a GET, without a connection; runs on its event loop."""

import asyncio
import logging
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class AppAnswer(NamedTuple):
    """A complete answer."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """Names in lower case."""
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of a header; None if it is missing."""
        return next((value for each, value in self.headers if each == name), None)


async def ask_app(server: Any, path: str) -> AppAnswer | None:
    """The answer of uvicorn's `server`; None if the application fails, which uvicorn would log."""
    config = server.config
    path = f"{config.root_path}{path}"
    scope = {
        "type": "http",
        "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": config.root_path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"user-agent", b"vllm-cli")],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", config.port),
        "state": server.lifespan.state.copy(),
    }
    exchange = _Exchange()
    try:
        await config.loaded_app(scope, exchange.receive, exchange.send)
    except Exception as err:  # noqa: BLE001 - the application's error
        logger.debug("%s failed: %r", path, err)
        return None
    return exchange.answer()


class _Exchange:
    """One request without a body, and its answer."""

    def __init__(self) -> None:
        self._start: dict[str, Any] = {}
        self._body = b""
        self._is_requested = False
        self._is_complete = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._is_requested:
            self._is_requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                self._is_complete.set()

    def answer(self) -> AppAnswer | None:
        if not self._is_complete.is_set():
            return None
        headers = tuple((name.lower(), value) for name, value in self._start.get("headers", []))
        return AppAnswer(self._start["status"], headers, self._body)
