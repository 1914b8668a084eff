"""The readiness check of `bench liveness`: waits for health, and finds the accepted kinds."""

from dataclasses import dataclass
from time import perf_counter

import aiohttp

from vllm_cli.bench.errors import TargetStartError
from vllm_cli.bench.liveness.config import PLAIN_KINDS, LivenessConfig, PlainKind
from vllm_cli.bench.liveness.payloads import Destination, build_requests
from vllm_cli.bench.readiness import NotReadyError, ask_first_model, ask_version, get, wait_for
from vllm_cli.bench.request import send_request
from vllm_cli.bench.request_format import request_headers
from vllm_cli.bench.target import Target


@dataclass(frozen=True)
class HealthyServer:
    """A server whose `/health` has answered 200."""

    destination: Destination
    ready_after_s: float
    """Seconds from the beginning of the wait to that answer."""
    version: str | None
    """From the server's `/version`; None if it has no such route."""
    accepted_kinds: tuple[PlainKind, ...]
    """The kinds of requests that it accepts; empty unless the load is `mixed`."""

    @property
    def base_url(self) -> str:
        return self.destination.base_url

    @property
    def model(self) -> str:
        return self.destination.model


async def wait_until_healthy(target: Target, config: LivenessConfig) -> HealthyServer:
    """Polls `/health` instead of requesting completions, which an embedding model rejects."""
    start_s = perf_counter()

    async def check(session: aiohttp.ClientSession) -> HealthyServer:
        headers = request_headers(config.api_key)
        await _ensure_healthy(session, target.base_url, headers)
        model = target.spec.model or await ask_first_model(session, target.base_url, headers)
        ready_after_s = perf_counter() - start_s
        destination = Destination(base_url=target.base_url, model=model, api_key=config.api_key)
        version = await ask_version(session, target.base_url, headers)
        accepted_kinds = await _try_kinds(session, destination, config) if "mixed" in config.kinds else ()
        return HealthyServer(destination, ready_after_s, version, accepted_kinds)

    return await wait_for(target, check, config)


async def _ensure_healthy(session: aiohttp.ClientSession, base_url: str, headers: dict[str, str]) -> None:
    status, _ = await get(session, base_url + "/health", headers)
    if status >= 500:
        raise NotReadyError(f"/health answers {status}", is_listening=True)
    if status != 200:
        raise TargetStartError(f"{base_url}/health answers {status}, so there is nothing to measure")


async def _try_kinds(
    session: aiohttp.ClientSession, destination: Destination, config: LivenessConfig
) -> tuple[PlainKind, ...]:
    """The kinds whose smallest request the server answers without an error."""
    accepted = []
    for kind in PLAIN_KINDS:
        requests = build_requests([kind], config.shape.smallest, destination, num_requests=1, seed="readiness")
        sample = await send_request(session, requests[0])
        if sample.error is None:
            accepted.append(kind)
    return tuple(accepted)
