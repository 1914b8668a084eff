"""Polls for the moments of a start that a client can observe; returns monotonic nanoseconds."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from vllm_cli.bench.request import CompletionFormat, open_session, send_request
from vllm_cli.bench.target import TargetStartError

_CONNECT_POLL_S = 0.005
_HEALTH_POLL_S = 0.02
_ANSWER_S = 60.0


async def wait_healthy(host: str, port: int, ensure_alive: Callable[[], None]) -> tuple[int, int | None]:
    """The moments when a connection is accepted and when `/health` is 200; None without that route.

    Uses bare sockets, which take a fifth of the CPU time of asyncio streams: polls compete with the start for
    cores.
    """
    loop = asyncio.get_running_loop()
    request = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    listening_ns, received = 0, b""
    while True:
        with socket.socket() as client, suppress(OSError, TimeoutError):
            client.setblocking(False)
            await loop.sock_connect(client, (host, port))
            listening_ns = listening_ns or time.monotonic_ns()
            async with asyncio.timeout(_ANSWER_S):
                await loop.sock_sendall(client, request)
                received = await loop.sock_recv(client, 1 << 16)
        if received.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            return listening_ns, time.monotonic_ns()
        if received.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")):
            return listening_ns, None
        ensure_alive()
        await asyncio.sleep(_HEALTH_POLL_S if listening_ns else _CONNECT_POLL_S)


async def wait_first_token(form: CompletionFormat, ensure_alive: Callable[[], None]) -> int:
    """Requests a completion, again after 5xx or no response; returns the moment of its first text."""
    body = form.encode("The capital of France is", max_tokens=4)
    async with open_session() as session:
        while True:
            sample = await send_request(session, form, body)
            if sample.text_times_ns:
                return time.monotonic_ns() - (time.perf_counter_ns() - sample.text_times_ns[0])
            if sample.status is not None and sample.status < 500:
                raise TargetStartError(f"{form.url} gives no text: {sample.error or 'its answer was empty'}")
            ensure_alive()
            await asyncio.sleep(_HEALTH_POLL_S)
