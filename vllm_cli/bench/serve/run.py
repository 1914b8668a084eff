"""Runs `bench serve`: starts the servers, measures alternating rounds, stops the servers."""

from typing import Final

from envs.redaction import hide_in_command
from vllm_cli.bench.interruption import run_interruptibly
from vllm_cli.bench.load import LoadSamples, draw_arrivals, generate_load, generate_open_load
from vllm_cli.bench.machine import describe_machine
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.readiness import ReadyServer, wait_until_ready
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.request_format import RequestFormat
from vllm_cli.bench.results import format_now
from vllm_cli.bench.schedule import Rounds, ScheduledRound, schedule_rounds
from vllm_cli.bench.serve.config import ServeBenchConfig
from vllm_cli.bench.serve.figures import compare_levels, measure_round, summarize_level
from vllm_cli.bench.serve.results import (
    SERVE_SCHEMA_VERSION,
    RoundFigures,
    ServeResult,
    ServeSettings,
    ServeSideResult,
    name_load,
)
from vllm_cli.bench.target_pool import TargetPool

_OPEN_WARM_UP: Final = 8
"""Requests at once before an open loop."""


def run_serve_bench(config: ServeBenchConfig, progress: Progress) -> ServeResult:
    """Measures every side at every level; must be on the main thread, to set signal handlers."""
    return run_interruptibly(_ServeBench(config, progress).run())


class _ServeBench:
    """One run in progress."""

    def __init__(self, config: ServeBenchConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._settings = ServeSettings.of(config)
        self._warm: set[tuple[str, int]] = set()
        """Addresses and levels whose warm-up is done; a restarted server has a new address."""

    async def run(self) -> ServeResult:
        created_at = format_now()
        config = self._config
        schedule = schedule_rounds(config.levels, config)
        with TargetPool(config, lambda target: wait_until_ready(target, config), self._progress) as targets:
            servers = await targets.prepare()
            rounds = await targets.measure_rounds(schedule, self._describe, self._measure)
        return self._assemble(created_at, servers, rounds)

    def _describe(self, scheduled: ScheduledRound[int]) -> str:
        name = self._config.targets[scheduled.side].name
        load = name_load(scheduled.condition, self._settings.request_rate)
        return f"{name}: {load}, round {scheduled.round_number + 1} of {self._config.num_rounds}"

    async def _measure(self, scheduled: ScheduledRound[int], server: ReadyServer) -> RoundFigures:
        config, request_format, level = self._config, server.request_format, scheduled.condition
        if (request_format.base_url, level) not in self._warm:
            self._warm.add((request_format.base_url, level))
            num_at_once = level or min(_OPEN_WARM_UP, config.requests_at(level))
            warm_up = self._encode(request_format, num_at_once, seed=f"{level}/warm-up")
            await generate_load(warm_up, concurrency=num_at_once, timeout_s=config.request_timeout_s)
        seed = f"{level}/{scheduled.round_number}"
        requests = self._encode(request_format, config.requests_at(level), seed=seed)
        with HealthProbe(request_format.base_url, config.api_key) as probe:
            probe.start()
            load = await self._load(requests, level, seed)
            return measure_round(load, probe.finish(), max_tokens=config.max_tokens)

    def _encode(self, request_format: RequestFormat, num_requests: int, *, seed: str) -> list[EncodedRequest]:
        """Requests whose prompts depend on the seeds only: every side gets the same prompts."""
        config, url, headers = self._config, request_format.url, request_format.headers
        seeds = (f"{config.seed}/{seed}/{index}" for index in range(num_requests))
        shared = build_prompt(config.shared_prefix_tokens, seed=str(config.seed)) if config.shared_prefix_tokens else ""
        prompts = (f"{shared} {build_prompt(config.prompt_tokens, seed=seed)}".lstrip() for seed in seeds)
        bodies = (request_format.body(prompt, max_tokens=config.max_tokens) for prompt in prompts)
        return [EncodedRequest(url, headers, body, config.stream) for body in bodies]

    async def _load(self, requests: list[EncodedRequest], level: int, seed: str) -> LoadSamples:
        """Every side gets the requests at the same times, too."""
        rate, timeout_s = self._config.request_rate, self._config.request_timeout_s
        if rate is None:
            return await generate_load(requests, concurrency=level, timeout_s=timeout_s)
        dues_ns = draw_arrivals(len(requests), rate, seed=f"{self._config.seed}/{seed}")
        return await generate_open_load(requests, dues_ns=dues_ns, timeout_s=timeout_s)

    def _assemble(self, created_at: str, servers: list[ReadyServer], rounds: Rounds[int, RoundFigures]) -> ServeResult:
        sides = [self._side_result(index, server, rounds) for index, server in enumerate(servers)]
        return ServeResult(
            schema_version=SERVE_SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            settings=self._settings,
            sides=sides,
            ratios=[
                compare_levels(ours, theirs, against=other.name)
                for other in sides[1:]
                for ours, theirs in zip(sides[0].levels, other.levels, strict=True)
            ],
        )

    def _side_result(self, index: int, server: ReadyServer, rounds: Rounds[int, RoundFigures]) -> ServeSideResult:
        spec = self._config.targets[index]
        return ServeSideResult(
            name=spec.name,
            target=hide_in_command(spec.command or spec.url or ""),
            model=server.request_format.model,
            version=server.version,
            ready_after_s=server.ready_after_s if spec.command else None,
            token_source=server.request_format.token_source,
            has_ignore_eos="ignore_eos" in server.request_format.optional,
            levels=[summarize_level(level, rounds[index, level]) for level in self._config.levels],
        )
