"""Runs `bench liveness`: starts the servers, measures alternating rounds, stops the servers."""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import cycle
from time import perf_counter

from envs.redaction import hide_in_command
from vllm_cli.bench.errors import BenchError
from vllm_cli.bench.interruption import run_interruptibly
from vllm_cli.bench.liveness.config import PLAIN_KINDS, Kind, LivenessConfig, PlainKind
from vllm_cli.bench.liveness.figures import RoundSamples, compare_kinds, measure_liveness, summarize_kind
from vllm_cli.bench.liveness.loop_lag import LoopLag, find_loop_delays, read_loop_lag
from vllm_cli.bench.liveness.payloads import build_requests
from vllm_cli.bench.liveness.results import (
    LIVENESS_SCHEMA_VERSION,
    KindSettings,
    LivenessFigures,
    LivenessResult,
    LivenessSettings,
    LivenessSideResult,
)
from vllm_cli.bench.liveness.server import HealthyServer, wait_until_healthy
from vllm_cli.bench.load import LoadSamples, generate_load, open_session
from vllm_cli.bench.machine import describe_machine
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.request_format import request_headers
from vllm_cli.bench.results import format_now
from vllm_cli.bench.schedule import Rounds, ScheduledRound, schedule_rounds
from vllm_cli.bench.target_pool import TargetPool

_PROBE_MARGIN_S = 0.25
"""Probes run this long before and after the load, for the chart."""
_MAX_WARM_UP = 32
"""Requests of a warm-up: enough for everything that a server does only once."""


def run_liveness_bench(config: LivenessConfig, progress: Progress) -> LivenessResult:
    """Measures every side under every kind of load; must be on the main thread, to set signal handlers."""
    return run_interruptibly(_LivenessBench(config, progress).run())


class _LivenessBench:
    """One run in progress."""

    def __init__(self, config: LivenessConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._mixture: tuple[PlainKind, ...] = ()
        self._warm: set[tuple[str, Kind]] = set()
        """Addresses and kinds whose warm-up is done; a restarted server has a new address."""

    async def run(self) -> LivenessResult:
        created_at = format_now()
        config = self._config
        with TargetPool(config, lambda target: wait_until_healthy(target, config), self._progress) as targets:
            servers = await targets.prepare()
            self._mixture = self._choose_mixture(servers)
            schedule = schedule_rounds(config.kinds, config)
            rounds = await targets.measure_rounds(schedule, self._describe, self._measure)
        return self._assemble(created_at, servers, rounds)

    def _choose_mixture(self, servers: list[HealthyServer]) -> tuple[PlainKind, ...]:
        mixture = tuple(kind for kind in PLAIN_KINDS if all(kind in server.accepted_kinds for server in servers))
        if "mixed" in self._config.kinds and not mixture:
            raise BenchError("--kind mixed: there is no kind of request that all servers accept")
        return mixture

    def _describe(self, scheduled: ScheduledRound[Kind]) -> str:
        config = self._config
        load = f"{scheduled.condition}, {config.concurrency_of(scheduled.condition)} at once"
        name = config.targets[scheduled.side].name
        return f"{name}: {load}, round {scheduled.round_number + 1} of {config.num_rounds}"

    async def _measure(self, scheduled: ScheduledRound[Kind], server: HealthyServer) -> LivenessFigures:
        config, kind = self._config, scheduled.condition
        if (server.destination.base_url, kind) not in self._warm:
            self._warm.add((server.destination.base_url, kind))
            num_requests = min(config.requests_of(kind), _MAX_WARM_UP)
            await self._load(self._build(kind, server, num_requests, "warm-up"), kind)
        requests = self._build(kind, server, config.requests_of(kind), str(scheduled.round_number))
        samples = await self._load_and_probe(requests, kind, server)
        return measure_liveness(samples, config.accepted_statuses)

    def _build(self, kind: Kind, server: HealthyServer, num_requests: int, stage: str) -> list[EncodedRequest]:
        kinds = self._mixture if kind == "mixed" else (kind,)
        seed = f"{self._config.seed}/{stage}"
        return build_requests(kinds, self._config.shape, server.destination, num_requests=num_requests, seed=seed)

    async def _load_and_probe(self, requests: list[EncodedRequest], kind: Kind, server: HealthyServer) -> RoundSamples:
        duration_s = self._config.duration_s
        before = await self._read_lag(server)
        with HealthProbe(server.destination.base_url, self._config.api_key, wants_realtime=True) as probe:
            probe.start()
            await asyncio.sleep(_PROBE_MARGIN_S)
            load = await self._load(_repeat(requests, duration_s) if duration_s else requests, kind)
            await asyncio.sleep(_PROBE_MARGIN_S)
            probes = probe.finish()
        delays = find_loop_delays(before, await self._read_lag(server))
        return RoundSamples(load=load, probes=probes, delays=delays, num_different=len(requests))

    async def _load(self, requests: Iterable[EncodedRequest], kind: Kind) -> LoadSamples:
        config = self._config
        concurrency = config.concurrency_of(kind)
        return await generate_load(requests, concurrency=concurrency, timeout_s=config.request_timeout_s)

    async def _read_lag(self, server: HealthyServer) -> LoopLag:
        async with open_session(self._config.request_timeout_s) as session:
            return await read_loop_lag(session, server.destination.base_url, request_headers(self._config.api_key))

    def _assemble(
        self, created_at: str, servers: list[HealthyServer], rounds: Rounds[Kind, LivenessFigures]
    ) -> LivenessResult:
        sides = [self._side_result(index, server, rounds) for index, server in enumerate(servers)]
        return LivenessResult(
            schema_version=LIVENESS_SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            settings=_settings(self._config, self._mixture),
            sides=sides,
            ratios=[
                compare_kinds(ours, theirs, against=other.name)
                for other in sides[1:]
                for ours, theirs in zip(sides[0].kinds, other.kinds, strict=True)
            ],
        )

    def _side_result(
        self, index: int, server: HealthyServer, rounds: Rounds[Kind, LivenessFigures]
    ) -> LivenessSideResult:
        spec = self._config.targets[index]
        return LivenessSideResult(
            name=spec.name,
            target=hide_in_command(spec.command or spec.url or ""),
            model=server.destination.model,
            version=server.version,
            ready_after_s=server.ready_after_s if spec.command else None,
            kinds=[summarize_kind(kind, rounds[index, kind]) for kind in self._config.kinds],
        )


def _repeat(requests: list[EncodedRequest], duration_s: float) -> Iterator[EncodedRequest]:
    """Cycles through the requests until the time is over."""
    end_s = perf_counter() + duration_s
    for request in cycle(requests):
        if perf_counter() >= end_s:
            return
        yield request


def _settings(config: LivenessConfig, mixture: tuple[PlainKind, ...]) -> LivenessSettings:
    return LivenessSettings(
        kinds=[
            KindSettings(kind=kind, concurrency=config.concurrency_of(kind), num_requests=config.requests_of(kind))
            for kind in config.kinds
        ],
        mixture=list(mixture),
        duration_s=config.duration_s,
        num_rounds=config.num_rounds,
        shape=config.shape,
        accepted_statuses=list(config.accepted_statuses),
        idle=config.idle,
        seed=config.seed,
    )
