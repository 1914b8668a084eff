"""Requests `/health` from vLLM's application, so that the responder process can repeat the answer."""

import asyncio
import logging
import time
from http.client import responses
from typing import Any, Final, NamedTuple

from startup.port.probe_http import PATH

logger = logging.getLogger(__name__)

_SAMPLE_S: Final = 1.0
"""Seconds between two samples. After a change of state, the next sample is taken at once."""
_STATUSES: Final = frozenset({200, 503})
"""Statuses that report the server's health. Other statuses are errors of the application."""
_MAX_ANSWER_BYTES: Final = 4000
"""Longest answer, in bytes. The kernel accepts a message of this size, however small a socket's buffer is."""


class AppAnswer(NamedTuple):
    """A complete answer of the application."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """Pairs of a header's name, in lower case, and its value."""
    body: bytes


class HealthSampler:
    """Requests `/health` from vLLM's application without a connection. Runs on vLLM's event loop."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._config = server.config
        self.root_path: str = self._config.root_path
        """The prefix that uvicorn logs before the path."""
        self._sample: AppAnswer | None = None
        """The last sample. None if two consecutive answers of the application differ."""
        self._sampled_s = float("-inf")
        self._sampled_in: tuple[str, bool] | None = None
        """The state of the server when the sample was taken."""
        self._has_logged = False

    async def current(self) -> bytes:
        """The complete answer, with `connection: close`. Empty if uvicorn must answer each probe itself."""
        state = self._state()
        if state != self._sampled_in or time.monotonic() - self._sampled_s >= _SAMPLE_S:
            self._sampled_in = state
            self._sample = await self._sample_until_steady()
            self._sampled_s = time.monotonic()
        fixed_headers = self._server.server_state.default_headers
        if state != self._state():  # the state has changed during the request
            return b""
        if self._sample is None or (not fixed_headers and self._config.server_header):  # not set yet
            return b""
        answer = _as_answer(self._sample, fixed_headers)
        return answer if len(answer) <= _MAX_ANSWER_BYTES else b""

    def _state(self) -> tuple[str, bool]:
        """The lifecycle's state, which drain and watchdog change, and vLLM's `EngineClient.errored`."""
        lifecycle = getattr(self._config.loaded_app, "lifecycle", None)
        client = getattr(getattr(self._config.app, "state", None), "engine_client", None)
        return getattr(lifecycle, "state", ""), bool(getattr(client, "errored", False))

    async def _sample_until_steady(self) -> AppAnswer | None:
        previous, sample = self._sample, await self._request()
        if sample != previous:
            previous, sample = sample, await self._request()
        if sample == previous:
            return sample
        if not self._has_logged:
            self._has_logged = True
            logger.info("answers of /health differ from one to the next: vLLM answers each probe itself")
        return None

    async def _request(self) -> AppAnswer | None:
        """Requests `/health` once. None if the answer's length, status or connection header is unsuitable."""
        answer = await _ask(self._server, PATH)
        if answer is None:
            return None
        names = {name for name, _ in answer.headers}
        is_suitable = answer.status in _STATUSES and b"content-length" in names and b"connection" not in names
        return answer if is_suitable else None


def _as_answer(sample: AppAnswer, fixed_headers: list[tuple[bytes, bytes]]) -> bytes:
    lines = [f"HTTP/1.1 {sample.status} {responses.get(sample.status, '')}".encode()]
    lines += (name + b": " + value for name, value in (*fixed_headers, *sample.headers))
    return b"\r\n".join([*lines, b"connection: close", b"", sample.body])


async def _ask(server: Any, path: str) -> AppAnswer | None:
    """Sends a GET to the application of uvicorn's `server`. Returns None if the application fails."""
    config = server.config
    path = f"{config.root_path}{path}"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
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
    requests = iter([{"type": "http.request", "body": b"", "more_body": False}])
    start: dict[str, Any] = {}
    body = bytearray()
    is_complete = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if (request := next(requests, None)) is not None:
            return request
        await is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                is_complete.set()

    try:
        await config.loaded_app(scope, receive, send)
    except Exception as err:  # noqa: BLE001 - the application's error
        logger.debug("%s failed: %r", path, err)
        return None
    if not is_complete.is_set():
        return None
    headers = tuple((name.lower(), value) for name, value in start.get("headers", []))
    return AppAnswer(start["status"], headers, bytes(body))
