"""Waits until a server has given a real completion, and learns on the way how it wants to be asked."""

import asyncio
from dataclasses import dataclass, replace
from time import perf_counter

import aiohttp
import msgspec

from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.dialect import Dialect, optional_fields, request_headers
from vllm_cli.bench.errors import ModelUnknownError, TargetDiedError, TargetStartError
from vllm_cli.bench.load import open_session
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.request import EncodedRequest, RequestSample, send_request
from vllm_cli.bench.target import Target

_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 5.0
_UNKNOWN_FIELD = (400, 422)
"""Statuses with which servers refuse a request field."""


@dataclass(frozen=True)
class ReadyServer:
    """A server that has answered."""

    dialect: Dialect
    ready_after_s: float
    """Seconds from the start of the waiting to the first completion."""
    version: str | None
    """What the server's `/version` says, if it has one."""


async def wait_until_ready(target: Target, config: BenchConfig) -> ReadyServer:
    """Ask for a short completion until it comes.

    A server that somebody else runs must accept connections at once; it may still be loading (HTTP 5xx).
    """
    start_s = perf_counter()
    async with open_session(config.request_timeout_s) as session:
        while True:
            try:
                dialect = await _learn_dialect(session, target, config)
                return ReadyServer(dialect, perf_counter() - start_s, await _ask_version(session, dialect))
            except _NotReadyError as error:
                _give_up_if_hopeless(target, error, waited_s=perf_counter() - start_s, limit_s=config.ready_timeout_s)
            await asyncio.sleep(_POLL_S)


class _NotReadyError(Exception):
    def __init__(self, reason: str, *, is_listening: bool) -> None:
        super().__init__(reason)
        self.is_listening = is_listening


def _give_up_if_hopeless(target: Target, error: _NotReadyError, *, waited_s: float, limit_s: float) -> None:
    try:
        target.ensure_alive()
    except TargetDiedError as died:
        raise TargetStartError(died.message) from None
    if not target.is_own and not error.is_listening:
        raise TargetStartError(f"No server answers at {target.base_url}: {error}") from None
    if waited_s > limit_s:
        raise TargetStartError(f"{target.base_url} was not ready after {limit_s:g} s: {error}") from None


async def _learn_dialect(session: aiohttp.ClientSession, target: Target, config: BenchConfig) -> Dialect:
    model = target.spec.model or await _first_model(session, target.base_url, config)
    plain = Dialect(base_url=target.base_url, model=model, config=config)
    sample: RequestSample | None = None
    for optional in optional_fields(config):
        dialect = replace(plain, optional=optional)
        sample = await _try_completion(session, dialect)
        if sample.error is None:
            return replace(dialect, token_source="usage" if sample.usage else "chunks")
        if sample.status not in _UNKNOWN_FIELD:
            break
    raise TargetStartError(f"{plain.url} refuses a plain completion: {sample.error if sample else ''}")


async def _try_completion(session: aiohttp.ClientSession, dialect: Dialect) -> RequestSample:
    config = dialect.config
    body = dialect.body(build_prompt(16, seed="readiness"), max_tokens=2)
    sample = await send_request(session, EncodedRequest(dialect.url, dialect.headers, body, config.stream))
    if sample.status is None or sample.status >= 500:
        raise _NotReadyError(sample.error or "", is_listening=sample.status is not None)
    if sample.error is None and not config.stream and sample.usage is None:
        raise TargetStartError(f"{dialect.url} reports no usage, so tokens cannot be counted; measure it with --stream")
    return sample


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] = []


async def _first_model(session: aiohttp.ClientSession, base_url: str, config: BenchConfig) -> str:
    status, body = await _get(session, base_url + "/v1/models", request_headers(config.api_key))
    if status >= 500:
        raise _NotReadyError(f"HTTP {status}", is_listening=True)
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


async def _ask_version(session: aiohttp.ClientSession, dialect: Dialect) -> str | None:
    try:
        status, body = await _get(session, dialect.base_url + "/version", dialect.headers)
        return msgspec.json.decode(body, type=_Version).version if status == 200 else None
    except (_NotReadyError, msgspec.DecodeError):
        return None


async def _get(session: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
    try:
        async with session.get(
            url, headers=headers, timeout=aiohttp.ClientTimeout(total=_CONNECT_TIMEOUT_S)
        ) as response:
            return response.status, await response.read()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise _NotReadyError(str(error), is_listening=isinstance(error, asyncio.TimeoutError)) from None
