"""Polls for the moments of a start that a client can observe; returns monotonic nanoseconds."""

import asyncio
import socket
import time
from collections.abc import Callable

import aiohttp
import msgspec

from vllm_cli.bench.load import open_session
from vllm_cli.bench.readiness import NotReadyError, get
from vllm_cli.bench.request import RequestSample, send_request
from vllm_cli.bench.request_format import RequestFormat
from vllm_cli.bench.startup.config import MAX_TOKENS, PROMPT
from vllm_cli.bench.target import TargetStartError

_CONNECT_POLL_S = 0.005
_HEALTH_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 60.0


async def wait_listening(host: str, port: int, ensure_alive: Callable[[], None]) -> int:
    """Polls until a connection is accepted; returns the moment."""
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as client:
            client.setblocking(False)
            try:
                await loop.sock_connect(client, (host, port))
            except OSError:
                ensure_alive()
            else:
                return time.monotonic_ns()
        await asyncio.sleep(_CONNECT_POLL_S)


async def wait_healthy(host: str, port: int, ensure_alive: Callable[[], None]) -> int | None:
    """Polls `/health` until it is 200; returns the moment, or None if the server has no such route."""
    while True:
        status = await ask_status(host, port, "/health")
        if status == 200:
            return time.monotonic_ns()
        if status is not None and 400 <= status < 500:
            return None
        ensure_alive()
        await asyncio.sleep(_HEALTH_POLL_S)


async def ask_status(host: str, port: int, path: str) -> int | None:
    """The status of a GET; None without a response.

    Uses a bare socket, which takes a fifth of the CPU time of asyncio streams: polls compete with the start
    for cores.
    """
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
            client.setblocking(False)
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await loop.sock_connect(client, (host, port))
                await loop.sock_sendall(client, request)
                received = b""
                while piece := await loop.sock_recv(client, 1 << 16):
                    received += piece
        return int(received.split(maxsplit=2)[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None


async def wait_first_token(request_format: RequestFormat, ensure_alive: Callable[[], None]) -> int:
    """Requests a completion, again after 5xx or no response; returns the moment of its first text."""
    request = request_format.encode(PROMPT, max_tokens=MAX_TOKENS)
    async with open_session(request_format.config.request_timeout_s) as session:
        while True:
            sample = await send_request(session, request)
            if sample.text_times_ns:
                return _on_monotonic_clock(sample.text_times_ns[0])
            _raise_if_rejected(sample, request_format)
            ensure_alive()
            await asyncio.sleep(_HEALTH_POLL_S)


def _raise_if_rejected(sample: RequestSample, request_format: RequestFormat) -> None:
    if sample.status == 200 or (sample.status is not None and sample.status < 500):
        raise TargetStartError(f"{request_format.url} gives no text: {sample.error or 'its answer was empty'}")


def _on_monotonic_clock(perf_counter_ns: int) -> int:
    return time.monotonic_ns() - (time.perf_counter_ns() - perf_counter_ns)


class _Choice(msgspec.Struct):
    text: str = ""


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


async def ask_first_text(request_format: RequestFormat) -> str | None:
    """The greedy first token of a plain completion, to compare sides; None if it cannot be requested."""
    if request_format.config.endpoint != "completions":
        return None
    body = request_format.body(PROMPT, max_tokens=1, is_stream=False)
    try:
        async with (
            open_session(request_format.config.request_timeout_s) as session,
            session.post(request_format.url, json=body, headers=request_format.destination.headers) as response,
        ):
            choices = msgspec.json.decode(await response.read(), type=_Completion).choices
    except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError):
        return None
    return choices[0].text if choices else None


class _Phase(msgspec.Struct):
    process: str
    name: str
    took_s: float


class _StartupReport(msgspec.Struct):
    phases: list[_Phase] = []


async def read_phases(request_format: RequestFormat) -> dict[str, float]:
    """Seconds by `process:phase` from `/startupz`; empty if the server has no such route."""
    try:
        async with open_session(request_format.config.request_timeout_s) as session:
            server = request_format.destination
            status, content = await get(session, f"{server.base_url}/startupz", server.headers)
            phases = msgspec.json.decode(content, type=_StartupReport).phases if status == 200 else []
    except (NotReadyError, msgspec.DecodeError):
        return {}
    return {f"{phase.process}:{phase.name}": phase.took_s for phase in phases}
