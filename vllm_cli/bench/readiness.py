"""Waits until a server is ready, and finds its model, its version and the fields that it accepts."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

import aiohttp
import msgspec

from vllm_cli.bench.config import BenchConfig, CompletionConfig
from vllm_cli.bench.load import open_session
from vllm_cli.bench.request import send_request
from vllm_cli.bench.request_format import (
    Destination,
    RequestFormat,
    build_prompt,
    list_optional_fields,
    request_headers,
)
from vllm_cli.bench.target import Target, TargetStartError
from vllm_cli.errors import InputError
from vllm_cli.supervised_command import CommandEndedError

_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 5.0
_UNKNOWN_FIELD = (400, 422)
"""Statuses with which servers reject a request field."""

T = TypeVar("T")


class NotReadyError(Exception):
    """The server cannot answer yet; it may later."""

    def __init__(self, reason: str, *, is_listening: bool) -> None:
        super().__init__(reason)
        self.is_listening = is_listening


@dataclass(frozen=True, kw_only=True)
class ReadyServer:
    """A server that can be measured."""

    destination: Destination
    ready_after_s: float
    """Seconds from the beginning of the wait to its first answer."""
    version: str | None
    """From the server's `/version`; None if it has no such route."""

    @property
    def base_url(self) -> str:
        return self.destination.base_url

    @property
    def model(self) -> str:
        return self.destination.model


@dataclass(frozen=True, kw_only=True)
class CompletionServer(ReadyServer):
    """A server that has answered a completion."""

    request_format: RequestFormat


async def wait_until_ready(target: Target, config: CompletionConfig) -> CompletionServer:
    """Requests a short completion until the server answers it."""
    start_s = perf_counter()

    async def check(session: aiohttp.ClientSession) -> CompletionServer:
        destination = await _find_destination(session, target, config)
        request_format = await _find_request_format(session, destination, config)
        ready_after_s = perf_counter() - start_s
        version = await _ask_version(session, destination)
        return CompletionServer(
            destination=destination, ready_after_s=ready_after_s, version=version, request_format=request_format
        )

    return await _wait_for(target, check, config)


async def wait_until_healthy(target: Target, config: BenchConfig) -> ReadyServer:
    """Polls `/health` instead of requesting completions, which an embedding model rejects."""
    start_s = perf_counter()

    async def check(session: aiohttp.ClientSession) -> ReadyServer:
        await _ensure_healthy(session, target.base_url, request_headers(config.api_key))
        destination = await _find_destination(session, target, config)
        ready_after_s = perf_counter() - start_s
        version = await _ask_version(session, destination)
        return ReadyServer(destination=destination, ready_after_s=ready_after_s, version=version)

    return await _wait_for(target, check, config)


async def _wait_for(target: Target, check: Callable[[aiohttp.ClientSession], Awaitable[T]], config: BenchConfig) -> T:
    """Repeats a readiness check until it no longer raises `NotReadyError`.

    A server that the benchmark did not start must accept connections at once; it may load (HTTP 5xx).
    """
    start_s = perf_counter()
    async with open_session(config.request_timeout_s) as session:
        while True:
            try:
                return await check(session)
            except NotReadyError as error:
                waited_s = perf_counter() - start_s
                _raise_if_final(target, error, waited_s=waited_s, limit_s=config.ready_timeout_s)
            await asyncio.sleep(_POLL_S)


async def _ensure_healthy(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> None:
    status, _ = await get(session, base_url + "/health", headers)
    if status >= 500:
        raise NotReadyError(f"/health answers {status}", is_listening=True)
    if status != 200:
        raise TargetStartError(f"{base_url}/health answers {status}, so there is nothing to measure")


async def _find_destination(session: aiohttp.ClientSession, target: Target, config: BenchConfig) -> Destination:
    """With the model that the target names, else the first one that the server lists.

    Raises:
        InputError: it lists none.
        TargetStartError: it rejects the API key.
        NotReadyError: it does not answer yet.
    """
    base_url = target.base_url
    model = target.spec.model or await _ask_first_model(session, base_url, request_headers(config.api_key))
    return Destination(base_url=base_url, model=model, api_key=config.api_key)


async def _ask_first_model(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> str:
    status, body = await get(session, base_url + "/v1/models", headers)
    if status >= 500:
        raise NotReadyError(f"HTTP {status}", is_listening=True)
    if status == 401:
        raise TargetStartError(f"{base_url} requires an API key: give --api-key")
    try:
        models = msgspec.json.decode(body, type=_ModelList).data if status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        raise InputError(f"{base_url}/v1/models lists no model: name one with --model")
    return models[0].id


async def _ask_version(session: aiohttp.ClientSession, destination: Destination) -> str | None:
    """The version from the server's `/version`; None if it has no such route."""
    try:
        status, body = await get(session, destination.base_url + "/version", destination.headers)
        return msgspec.json.decode(body, type=_Version).version if status == 200 else None
    except (NotReadyError, msgspec.DecodeError):
        return None


async def get(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body; raises NotReadyError without an answer."""
    try:
        async with session.get(
            url, headers=headers, timeout=aiohttp.ClientTimeout(total=_CONNECT_TIMEOUT_S)
        ) as response:
            return response.status, await response.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise NotReadyError(str(error), is_listening=isinstance(error, asyncio.TimeoutError)) from None


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] = []


class _Version(msgspec.Struct):
    version: str


def _raise_if_final(target: Target, error: NotReadyError, *, waited_s: float, limit_s: float) -> None:
    try:
        target.ensure_alive()
    except CommandEndedError as died:
        raise TargetStartError(died.message) from None
    if not target.is_own and not error.is_listening:
        raise TargetStartError(f"No server answers at {target.base_url}: {error}") from None
    if waited_s > limit_s:
        raise TargetStartError(f"{target.base_url} was not ready after {limit_s:g} s: {error}") from None


async def _find_request_format(
    session: aiohttp.ClientSession, destination: Destination, config: CompletionConfig
) -> RequestFormat:
    """Tries the sets of optional fields, best first, until the server accepts one."""
    plain = RequestFormat(destination=destination, config=config)
    error: str | None = None
    for optional in list_optional_fields(config):
        request_format = replace(plain, optional=optional)
        request = request_format.encode(build_prompt(16, seed="readiness"), max_tokens=2)
        sample = await send_request(session, request)
        if sample.error is None:
            return replace(request_format, token_source="usage" if sample.usage else "chunks")
        if sample.status is None or sample.status >= 500:
            raise NotReadyError(sample.error, is_listening=sample.status is not None)
        error = sample.error
        if sample.status not in _UNKNOWN_FIELD:
            break
    raise TargetStartError(f"{plain.url} rejects a plain completion: {error}")
