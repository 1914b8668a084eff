"""The steps of every benchmark: measure rounds, write the result, judge it, return an exit code."""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import click

from envs.redaction import hide_in_command
from vllm_cli.bench.config import BenchConfig, LoadConfig, Output
from vllm_cli.bench.figures import compare_rounds, find_worse, summarize_rounds
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.readiness import ReadyServer
from vllm_cli.bench.report import Report
from vllm_cli.bench.results import BenchResult, LoadedSide, Measured, Ratio, describe_machine, encode_result, format_now
from vllm_cli.bench.rounds import Rounds, ScheduledRound, TargetPool, schedule_rounds
from vllm_cli.bench.target import Target
from vllm_cli.interruption import Interrupted, run_interruptibly

C = TypeVar("C", bound=int | str)
S = TypeVar("S", bound=ReadyServer)

_SCHEMA_VERSION = 3
_BUSY_CLIENT = 0.5
"""Above this share of a processor, the load generator may limit the throughput."""
_IDLE = {"pause": "idle servers frozen", "run": "idle servers running", "stop": "idle servers stopped"}


class Benchmark(Report[C]):
    """One run: rounds of all sides under all conditions."""

    name: ClassVar[str]

    def __init__(self, config: BenchConfig) -> None:
        self._config = config

    def measure(self, output: Output) -> int:
        """Measures, writes the result, returns the exit code: 0, 1 (slower or failed), or 128 + signal."""
        try:
            with closing(Progress(sys.stderr)) as progress:
                result = run_interruptibly(self._run(progress))
        except Interrupted as interrupted:
            return interrupted.exit_code
        self._publish(result, output.json_path)
        worse = list(self._find_worse(result.ratios, output.tolerance)) if output.tolerance is not None else []
        for line in worse:
            click.echo(f"Slower: {line}", err=True)
        return 1 if worse or self.has_failed(result) else 0

    @property
    @abstractmethod
    def conditions(self) -> Sequence[C]:
        """In the order of the report."""

    @abstractmethod
    async def measure_rounds(self, progress: Progress) -> Rounds[C]:
        """Measures all rounds."""

    @abstractmethod
    def side_results(self, measured: Sequence[list[Any]]) -> list[Any]:
        """The sides, from what was measured of each under all conditions."""

    def summarize(self, condition: C, rounds: list[Any]) -> Any:
        """Median and spread of every figure over the rounds."""
        return Measured(condition=condition, summary=summarize_rounds(self.metrics, rounds), rounds=rounds)

    def has_failed(self, result: Any) -> bool:
        """Whether the exit code is 1 although nothing was slower."""
        return False

    async def _run(self, progress: Progress) -> Any:
        created_at = format_now()
        rounds = await self.measure_rounds(progress)
        num_sides = 1 + max(side for side, _ in rounds)
        sides = self.side_results(
            [[self.summarize(c, rounds[side, c]) for c in self.conditions] for side in range(num_sides)]
        )
        return BenchResult(
            schema=f"vllm-cli/bench-{self.name}",
            schema_version=_SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            settings=self._config.settings,
            sides=sides,
            ratios=[
                Ratio(
                    against=other.name,
                    condition=ours.condition,
                    ratios=compare_rounds(self.metrics, ours.rounds, theirs.rounds),
                )
                for other in sides[1:]
                for ours, theirs in zip(sides[0].conditions, other.conditions, strict=True)
            ],
        )

    def _publish(self, result: Any, json_path: Path | None) -> None:
        """Writes the report to the terminal, and JSON where it was requested."""
        is_piped = json_path == Path("-")
        self.write_report(result, sys.stderr if is_piped else sys.stdout)
        if is_piped:
            sys.stdout.write(encode_result(result))
        elif json_path:
            json_path.write_text(encode_result(result), encoding="utf-8")

    def _find_worse(self, ratios: Sequence[Any], tolerance: float) -> Iterator[str]:
        for ratio in ratios:
            where = self.name_condition(ratio.condition)
            yield from find_worse(self.metrics, ratio.ratios, where=where, against=ratio.against, tolerance=tolerance)


class LoadBenchmark(Benchmark[C], Generic[C, S]):
    """Puts servers under load; while one is measured, the others are idle."""

    _config: LoadConfig
    side_type: ClassVar[type[Any]] = LoadedSide

    def __init__(self, config: LoadConfig) -> None:
        super().__init__(config)
        self._servers: list[S] = []
        self._warm: set[tuple[str, C]] = set()
        """Addresses and conditions whose warm-up is done; a restarted server has a new address."""

    @abstractmethod
    async def wait_ready(self, target: Target) -> S:
        """Waits until the server can be measured."""

    @abstractmethod
    async def warm_up(self, condition: C, server: S) -> None:
        """A load that is not measured."""

    @abstractmethod
    async def measure_round(self, condition: C, number: int, server: S) -> Any:
        """The figures of one round."""

    def side_facts(self, server: S) -> Mapping[str, Any]:
        """Further fields of a side's result."""
        return {}

    async def measure_rounds(self, progress: Progress) -> Rounds[C]:
        config = self._config
        with closing(TargetPool(config, self.wait_ready, progress)) as targets:
            self._servers = await targets.prepare()
            return await targets.measure_rounds(schedule_rounds(self.conditions, config), self._describe, self._measure)

    def side_results(self, measured: Sequence[list[Any]]) -> list[Any]:
        return [
            self.side_type(
                name=spec.name,
                target=hide_in_command(spec.command or spec.url or ""),
                model=server.model,
                version=server.version,
                ready_after_s=server.ready_after_s if spec.command else None,
                conditions=conditions,
                **self.side_facts(server),
            )
            for spec, server, conditions in zip(self._config.targets, self._servers, measured, strict=True)
        ]

    def describe_side(self, side: Any) -> str:
        return f"; ready after {side.ready_after_s:.1f} s" if side.ready_after_s is not None else ""

    def describe_rounds(self, result: Any) -> Iterator[str]:
        if len(result.sides) > 1:
            idle = _IDLE[self._config.idle]
            yield f"Rounds alternate, {idle}. Figures and ratios are medians over rounds (min-max)."

    def more_rows(self, measured: Sequence[Any]) -> list[list[str]]:
        return [["failed requests", *(str(_count_errors(each)) for each in measured)]]

    def find_problems(self, side: Any, measured: Any) -> Iterator[str]:
        if num_probe_errors := sum(figures.num_probe_errors for figures in measured.rounds):
            yield f"{num_probe_errors} probes of /health failed"
        if (share := max(figures.client_cpu_share for figures in measured.rounds)) > _BUSY_CLIENT:
            yield f"the load generator used {share:.0%} of a processor; it may limit the throughput"

    def has_failed(self, result: Any) -> bool:
        return any(_count_errors(measured) for side in result.sides for measured in side.conditions)

    def _describe(self, scheduled: ScheduledRound[C]) -> str:
        config = self._config
        condition, number = self.name_condition(scheduled.condition), scheduled.round_number + 1
        return f"{config.targets[scheduled.side].name}: {condition}, round {number} of {config.num_rounds}"

    async def _measure(self, scheduled: ScheduledRound[C], server: S) -> Any:
        condition = scheduled.condition
        if (server.base_url, condition) not in self._warm:
            self._warm.add((server.base_url, condition))
            await self.warm_up(condition, server)
        return await self.measure_round(condition, scheduled.round_number, server)


def _count_errors(measured: Any) -> int:
    return sum(figures.num_errors for figures in measured.rounds)
