"""Waits until a server answers, and asks for what every benchmark wants to know of it: its first model, its version."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Protocol, TypeVar

import aiohttp
import msgspec

from vllm_cli.bench.errors import ModelUnknownError, TargetDiedError, TargetStartError
from vllm_cli.bench.load import open_session
from vllm_cli.bench.target import Target

_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 5.0

T = TypeVar("T")


class Patience(Protocol):
    """How long a server is waited for."""

    @property
    def ready_timeout_s(self) -> float: ...
    @property
    def request_timeout_s(self) -> float: ...


class NotReadyError(Exception):
    """The server cannot answer yet; it may later."""

    def __init__(self, reason: str, *, is_listening: bool) -> None:
        super().__init__(reason)
        self.is_listening = is_listening


async def wait_for(target: Target, meet: Callable[[aiohttp.ClientSession], Awaitable[T]], patience: Patience) -> T:
    """Try to meet the server until that no longer raises `NotReadyError`.

    A server that somebody else runs must accept connections at once; it may still be loading (HTTP 5xx).
    """
    start_s = perf_counter()
    async with open_session(patience.request_timeout_s) as session:
        while True:
            try:
                return await meet(session)
            except NotReadyError as error:
                waited_s = perf_counter() - start_s
                _give_up_if_hopeless(target, error, waited_s=waited_s, limit_s=patience.ready_timeout_s)
            await asyncio.sleep(_POLL_S)


def _give_up_if_hopeless(target: Target, error: NotReadyError, *, waited_s: float, limit_s: float) -> None:
    try:
        target.ensure_alive()
    except TargetDiedError as died:
        raise TargetStartError(died.message) from None
    if not target.is_own and not error.is_listening:
        raise TargetStartError(f"No server answers at {target.base_url}: {error}") from None
    if waited_s > limit_s:
        raise TargetStartError(f"{target.base_url} was not ready after {limit_s:g} s: {error}") from None


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] = []


async def ask_first_model(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> str:
    """The name of the model that the server lists first.

    Raises:
        ModelUnknownError: it lists none.
        TargetStartError: it wants another key.
        NotReadyError: it cannot tell yet.
    """
    status, body = await get(session, base_url + "/v1/models", headers)
    if status >= 500:
        raise NotReadyError(f"HTTP {status}", is_listening=True)
    if status == 401:
        raise TargetStartError(f"{base_url} wants an API key: give --api-key")
    try:
        models = msgspec.json.decode(body, type=_ModelList).data if status == 200 else []
    except msgspec.DecodeError:
        models = []
    if not models:
        raise ModelUnknownError(f"{base_url}/v1/models lists no model: name one with --model")
    return models[0].id


class _Version(msgspec.Struct):
    version: str


async def ask_version(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> str | None:
    """What the server's `/version` says, if it has one."""
    try:
        status, body = await get(session, base_url + "/version", headers)
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
