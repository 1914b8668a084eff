"""Waits until a server answers completions. Finds its model, its version and the fields that it accepts."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import aiohttp
import msgspec

from base.json_depth import check_depth
from startup.words.errors import InputError
from vllm_cli.bench.request import CompletionFormat, build_prompt, open_session, send_request
from vllm_cli.bench.target import BenchConfig, Target, TargetStartError
from vllm_cli.client.waiting import Graphs, parse_graphs
from vllm_cli.supervised_command import CommandEndedError

_POLL_S = 0.1
_ANSWER_S = 5.0
_UNKNOWN_FIELD = (400, 422)
"""Statuses of servers that reject an unknown field of a request."""


class NotReadyError(Exception):
    """The server cannot answer yet, but may do so later."""


class NotListeningError(NotReadyError):
    """The server does not accept connections."""


@dataclass(frozen=True, kw_only=True)
class ReadyServer:
    """A server that has answered a completion."""

    form: CompletionFormat
    counts_tokens: bool
    """Whether the server reports token counts. Otherwise the benchmark counts pieces of text."""
    version: str | None
    """The server's answer to `/version`. None if the server has no such route."""
    missing_graphs: Graphs | None = None
    """The CUDA graphs, if the server still captures some of them."""


async def wait_until_ready(target: Target, config: BenchConfig) -> ReadyServer:
    """Requests a short completion until the server answers it.

    A server that the benchmark did not start must accept connections at once, but may answer 5xx for a while.
    """
    start_s = perf_counter()
    async with open_session() as session:
        while True:
            try:
                form = await _find_model(session, target, config)
                form, counts_tokens = await _find_fields(session, form)
            except NotReadyError as error:
                _raise_if_final(target, error, waited_s=perf_counter() - start_s, limit_s=config.ready_timeout_s)
                await asyncio.sleep(_POLL_S)
                continue
            version = (await _ask_json(session, form, "/version")).get("version")
            graphs = await _ask_graphs(session, form)
            return ReadyServer(form=form, counts_tokens=counts_tokens, version=version, missing_graphs=graphs)


async def ask_phases(form: CompletionFormat) -> dict[str, float]:
    """`process:phase` -> seconds, from `/startupz`. Empty if the server has no such route."""
    async with open_session() as session:
        phases = (await _ask_json(session, form, "/startupz")).get("phases", [])
    return {f"{phase['process']}:{phase['name']}": phase["took_s"] for phase in phases}


async def _ask_json(session: aiohttp.ClientSession, form: CompletionFormat, path: str) -> dict[str, Any]:
    """The JSON of an optional route. Empty if the server lacks the route or answers something else."""
    try:
        status, body = await _get(session, form.base_url + path, form)
        check_depth(body)
        return msgspec.json.decode(body, type=dict[str, Any]) if status == 200 else {}
    except (NotReadyError, ValueError):
        return {}


async def _ask_graphs(session: aiohttp.ClientSession, form: CompletionFormat) -> Graphs | None:
    """The server's CUDA graphs, if some of them are not captured yet."""
    with suppress(NotReadyError):
        status, body = await _get(session, form.base_url + "/metrics", form)
        return parse_graphs(body.decode(errors="replace")) if status == 200 else None
    return None


async def _find_model(session: aiohttp.ClientSession, target: Target, config: BenchConfig) -> CompletionFormat:
    """The request format for the target's model, or for the first model in the server's list."""
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    form = CompletionFormat(base_url=target.base_url, path=config.path, model=target.spec.model or "", headers=headers)
    if form.model:
        return form
    status, body = await _get(session, form.base_url + "/v1/models", form)
    if status >= 500:
        raise NotReadyError(f"/v1/models answers {status}")
    if status == 401:
        raise TargetStartError(f"{form.base_url} requires an API key: give --api-key")
    try:
        check_depth(body)
        return replace(form, model=msgspec.json.decode(body)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{form.base_url}/v1/models lists no model: name one with --model") from None


async def _get(session: aiohttp.ClientSession, url: str, form: CompletionFormat) -> tuple[int, bytes]:
    """Status and body of a GET. Raises NotReadyError if there is no answer."""
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    try:
        async with session.get(url, headers=form.headers, timeout=timeout) as response:
            return response.status, await response.read()
    except aiohttp.ClientConnectorError as error:
        raise NotListeningError(str(error)) from None
    except (TimeoutError, aiohttp.ClientError) as error:
        raise NotReadyError(str(error)) from None


async def _find_fields(session: aiohttp.ClientSession, plain: CompletionFormat) -> tuple[CompletionFormat, bool]:
    """Finds the optional fields that the server accepts, and whether the server counts tokens."""
    usage, ignore_eos = {"stream_options": {"include_usage": True}}, {"ignore_eos": True}
    error: str | None = None
    for optional in (ignore_eos | usage, usage, ignore_eos, {}):
        form = replace(plain, optional=optional)
        sample = await send_request(session, form, form.encode(build_prompt(16, seed="readiness"), max_tokens=2))
        if sample.error is None:
            return form, sample.usage is not None
        if sample.status is None or sample.status >= 500:
            raise NotReadyError(sample.error)
        error = sample.error
        if sample.status not in _UNKNOWN_FIELD:
            break
    raise TargetStartError(f"{plain.url} rejects a plain completion: {error}")


def _raise_if_final(target: Target, error: NotReadyError, *, waited_s: float, limit_s: float) -> None:
    try:
        target.ensure_alive()
    except CommandEndedError as died:
        raise TargetStartError(died.message) from None
    if target.spec.url and isinstance(error, NotListeningError):
        raise TargetStartError(f"No server answers at {target.base_url}: {error}") from None
    if waited_s > limit_s:
        raise TargetStartError(f"{target.base_url} was not ready after {limit_s:g} s: {error}") from None
