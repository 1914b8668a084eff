"""Waits until a server is healthy, and finds out what it can be loaded with."""

from dataclasses import dataclass
from time import perf_counter

import aiohttp

from vllm_cli.bench.dialect import request_headers
from vllm_cli.bench.errors import TargetStartError
from vllm_cli.bench.liveness.config import PLAIN_KINDS, LivenessConfig, PlainKind
from vllm_cli.bench.liveness.payloads import Addressee, build_requests
from vllm_cli.bench.readiness import NotReadyError, ask_first_model, ask_version, get, wait_for
from vllm_cli.bench.request import send_request
from vllm_cli.bench.target import Target


@dataclass(frozen=True)
class HealthyServer:
    """A server whose `/health` has answered 200."""

    addressee: Addressee
    ready_after_s: float
    """Seconds from the start of the waiting to that answer."""
    version: str | None
    """What the server's `/version` says, if it has one."""
    mixture: tuple[PlainKind, ...]
    """The kinds of requests that it took; asked for only where a mixture is wanted."""


async def wait_until_healthy(target: Target, config: LivenessConfig) -> HealthyServer:
    """Ask for health, not for a completion, which an embedding model cannot give."""
    start_s = perf_counter()

    async def meet(session: aiohttp.ClientSession) -> HealthyServer:
        headers = request_headers(config.api_key)
        await _ensure_healthy(session, target.base_url, headers)
        model = target.spec.model or await ask_first_model(session, target.base_url, headers)
        ready_after_s = perf_counter() - start_s
        addressee = Addressee(base_url=target.base_url, model=model, api_key=config.api_key)
        version = await ask_version(session, target.base_url, headers)
        mixture = await _try_kinds(session, addressee, config) if "mixed" in config.kinds else ()
        return HealthyServer(addressee, ready_after_s, version, mixture)

    return await wait_for(target, meet, config)


async def _ensure_healthy(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> None:
    status, _ = await get(session, base_url + "/health", headers)
    if status >= 500:
        raise NotReadyError(f"/health answers {status}", is_listening=True)
    if status != 200:
        raise TargetStartError(f"{base_url}/health answers {status}, so there is nothing to measure")


async def _try_kinds(
    session: aiohttp.ClientSession, addressee: Addressee, config: LivenessConfig
) -> tuple[PlainKind, ...]:
    """The kinds of which the server answers a small request."""
    taken = []
    for kind in PLAIN_KINDS:
        requests = build_requests([kind], config.shape.smallest, addressee, num_requests=1, seed="readiness")
        sample = await send_request(session, requests[0])
        if sample.error is None:
            taken.append(kind)
    return tuple(taken)
