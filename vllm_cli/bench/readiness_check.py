"""Waits until a server has given a real completion, and learns on the way how it wants to be asked."""

from dataclasses import dataclass, replace
from time import perf_counter

import aiohttp

from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.dialect import Dialect, optional_fields, request_headers
from vllm_cli.bench.errors import TargetStartError
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.readiness import NotReadyError, ask_first_model, ask_version, wait_for
from vllm_cli.bench.request import EncodedRequest, RequestSample, send_request
from vllm_cli.bench.target import Target

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
    """Ask for a short completion until it comes."""
    start_s = perf_counter()

    async def meet(session: aiohttp.ClientSession) -> ReadyServer:
        dialect = await _learn_dialect(session, target, config)
        ready_after_s = perf_counter() - start_s
        return ReadyServer(dialect, ready_after_s, await ask_version(session, dialect.base_url, dialect.headers))

    return await wait_for(target, meet, config)


async def _learn_dialect(session: aiohttp.ClientSession, target: Target, config: BenchConfig) -> Dialect:
    model = target.spec.model or await ask_first_model(session, target.base_url, request_headers(config.api_key))
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
        raise NotReadyError(sample.error or "", is_listening=sample.status is not None)
    if sample.error is None and not config.stream and sample.usage is None:
        raise TargetStartError(f"{dialect.url} reports no usage, so tokens cannot be counted; measure it with --stream")
    return sample
