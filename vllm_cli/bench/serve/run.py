"""Runs a whole benchmark: servers up, rounds in turn, figures out; and everything down again, whatever happens."""

from datetime import UTC, datetime

from vllm_cli.bench.config import BenchConfig
from vllm_cli.bench.dialect import Dialect
from vllm_cli.bench.figures import compare_levels, measure_round, summarize_level
from vllm_cli.bench.interruption import run_interruptibly
from vllm_cli.bench.load import LoadSamples, generate_load
from vllm_cli.bench.machine import describe_machine
from vllm_cli.bench.probe import HealthProbe
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.prompts import build_prompt
from vllm_cli.bench.readiness_check import ReadyServer, wait_until_ready
from vllm_cli.bench.redaction import redact
from vllm_cli.bench.request import EncodedRequest
from vllm_cli.bench.results import SCHEMA_VERSION, BenchResult, RoundFigures, Settings, SideResult
from vllm_cli.bench.target_pool import TargetPool
from vllm_cli.bench.turns import Rounds, Turn, plan_turns


def run_bench(config: BenchConfig, progress: Progress) -> BenchResult:
    """Measure every side at every level; must be called on the main thread, which it gives signal handlers."""
    return run_interruptibly(_Bench(config, progress).run())


class _Bench:
    """One run in progress."""

    def __init__(self, config: BenchConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._warm: set[tuple[str, int]] = set()
        """Addresses and levels that had their warm-up; a server that was started again has a new address."""

    async def run(self) -> BenchResult:
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        config = self._config
        turns = plan_turns(config.levels, config)
        with TargetPool(config, lambda target: wait_until_ready(target, config), self._progress) as targets:
            servers = await targets.prepare()
            rounds = await targets.take_turns(turns, self._describe, self._measure)
        return self._assemble(created_at, servers, rounds)

    def _describe(self, turn: Turn[int]) -> str:
        name = self._config.targets[turn.side].name
        return f"{name}: {turn.discipline} at once, round {turn.round_number + 1} of {self._config.num_rounds}"

    async def _measure(self, turn: Turn[int], server: ReadyServer) -> RoundFigures:
        config, dialect, level = self._config, server.dialect, turn.discipline
        if (dialect.base_url, level) not in self._warm:
            self._warm.add((dialect.base_url, level))
            await self._load(_encode(dialect, level, seed=f"{config.seed}/{level}/warm-up"), level)
        requests = _encode(dialect, config.requests_at(level), seed=f"{config.seed}/{level}/{turn.round_number}")
        with HealthProbe(dialect.base_url, config.api_key) as probe:
            probe.start()
            load = await self._load(requests, level)
            return measure_round(load, probe.finish(), max_tokens=config.max_tokens)

    async def _load(self, requests: list[EncodedRequest], level: int) -> LoadSamples:
        return await generate_load(requests, concurrency=level, timeout_s=self._config.request_timeout_s)

    def _assemble(self, created_at: str, servers: list[ReadyServer], rounds: Rounds[int, RoundFigures]) -> BenchResult:
        config = self._config
        sides = [self._side_result(index, server, rounds) for index, server in enumerate(servers)]
        return BenchResult(
            schema_version=SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            settings=_settings(config),
            sides=sides,
            ratios=[
                compare_levels(ours, theirs, against=other.name)
                for other in sides[1:]
                for ours, theirs in zip(sides[0].levels, other.levels, strict=True)
            ],
        )

    def _side_result(self, index: int, server: ReadyServer, rounds: Rounds[int, RoundFigures]) -> SideResult:
        spec = self._config.targets[index]
        return SideResult(
            name=spec.name,
            target=redact(spec.command or spec.url or ""),
            model=server.dialect.model,
            version=server.version,
            ready_after_s=server.ready_after_s if spec.command else None,
            token_source=server.dialect.token_source,
            has_ignore_eos="ignore_eos" in server.dialect.optional,
            levels=[summarize_level(level, rounds[index, level]) for level in self._config.levels],
        )


def _encode(dialect: Dialect, num_requests: int, *, seed: str) -> list[EncodedRequest]:
    """Requests with prompts that depend on the seed only: every side gets the same ones."""
    config = dialect.config
    prompts = (build_prompt(config.prompt_tokens, seed=f"{seed}/{index}") for index in range(num_requests))
    bodies = (dialect.body(prompt, max_tokens=config.max_tokens) for prompt in prompts)
    return [EncodedRequest(dialect.url, dialect.headers, body, config.stream) for body in bodies]


def _settings(config: BenchConfig) -> Settings:
    return Settings(
        endpoint=config.endpoint,
        stream=config.stream,
        max_tokens=config.max_tokens,
        prompt_tokens=config.prompt_tokens,
        ignore_eos=config.ignore_eos,
        num_rounds=config.num_rounds,
        num_requests={level: config.requests_at(level) for level in config.levels},
        idle=config.idle,
        seed=config.seed,
    )
