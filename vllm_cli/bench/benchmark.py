"""The steps of every benchmark: measure rounds, write the result, judge it, return an exit code."""

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TextIO, TypeVar

import click

from envs.redaction import hide_in_command
from vllm_cli.bench.config import DEFAULT_TOLERANCE, Files, ServersConfig
from vllm_cli.bench.errors import BaselineError
from vllm_cli.bench.figures import compare_rounds, divide_medians, find_worse, summarize_rounds
from vllm_cli.bench.interruption import Interrupted, run_interruptibly
from vllm_cli.bench.progress import Progress, StreamProgress
from vllm_cli.bench.report import Report
from vllm_cli.bench.results import (
    RunResult,
    describe_machine,
    encode_result,
    format_now,
    read_baseline,
    require_same,
)
from vllm_cli.bench.rounds import ReadyTarget, Rounds, ScheduledRound, TargetPool, schedule_rounds
from vllm_cli.bench.target import Target

C = TypeVar("C")
S = TypeVar("S", bound=ReadyTarget)
R = TypeVar("R", bound=RunResult)

_BUSY_CLIENT = 0.5
"""Above this share of a processor, the load generator may limit the throughput."""
_IDLE = {"pause": "idle servers frozen", "run": "idle servers running", "stop": "idle servers stopped"}


class Benchmark(Report[C]):
    """One run: rounds of all sides under all conditions."""

    schema_version: ClassVar[int]
    same_settings: ClassVar[tuple[str, ...]]
    """Settings that a baseline must have too."""
    result_type: ClassVar[type[Any]]
    condition_type: ClassVar[type[Any]]
    ratio_type: ClassVar[type[Any]]

    def measure(self, files: Files) -> int:
        """Measures, writes the result, returns the exit code: 0, 1 (slower or failed), or 128 + signal."""
        baseline = self._read_baseline(files.baseline_path) if files.baseline_path else None
        try:
            with StreamProgress(sys.stderr) as progress:
                result = run_interruptibly(self._run(progress))
        except Interrupted as interrupted:
            return interrupted.exit_code
        publish_result(result, files, write_report=self.write_report, draw=self.draw_page)
        worse = self._find_worse(result, baseline, files.tolerance)
        for line in worse:
            click.echo(f"Slower: {line}", err=True)
        return 1 if worse or self.has_failed(result) else 0

    @property
    @abstractmethod
    def conditions(self) -> Sequence[C]:
        """In the order of the report."""

    @abstractmethod
    def settings(self) -> Any:
        """The settings for the result file."""

    @abstractmethod
    async def measure_rounds(self, progress: Progress) -> Rounds[C, Any]:
        """Measures all rounds."""

    @abstractmethod
    def side_results(self, measured: Sequence[list[Any]]) -> list[Any]:
        """The sides, from what was measured of each under all conditions."""

    def summarize(self, condition: C, rounds: list[Any]) -> Any:
        """Median and spread of every figure over the rounds."""
        return self.condition_type(condition=condition, summary=summarize_rounds(self.metrics, rounds), rounds=rounds)

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
        return self.result_type(
            schema_version=self.schema_version,
            created_at=created_at,
            machine=describe_machine(),
            settings=self.settings(),
            sides=sides,
            ratios=[
                self.compare(ours, theirs, against=other.name)
                for other in sides[1:]
                for ours, theirs in zip(sides[0].conditions, other.conditions, strict=True)
            ],
        )

    def compare(self, ours: Any, theirs: Any, *, against: str) -> Any:
        """The ratios of one side's figures to another side's, under one condition."""
        ratios = compare_rounds(self.metrics, ours.rounds, theirs.rounds)
        return self.ratio_type(against=against, condition=ours.condition, ratios=ratios)

    def _read_baseline(self, path: Path) -> Any:
        baseline = read_baseline(path, self.result_type, command=self.command, schema_version=self.schema_version)
        settings = self.settings()
        require_same(path, baseline.settings, settings, self.same_settings)
        then, now = self.titles(baseline.settings), self.titles(settings)
        for condition in self.conditions:
            if then.get(condition) != now[condition]:
                raise BaselineError(f"The baseline {path} has no rounds of this run's {now[condition]!r}")
        return baseline

    def _find_worse(self, result: Any, baseline: Any, tolerance: float | None) -> list[str]:
        """With a baseline, only the baseline decides: the other sides may be there for comparison."""
        if baseline is not None:
            then = {each.condition: each.summary for each in baseline.sides[0].conditions}
            ratios = [
                (each.condition, "the baseline", divide_medians(each.summary, then[each.condition]))
                for each in result.sides[0].conditions
            ]
        else:
            ratios = [
                (ratio.condition, ratio.against, {name: spread.median for name, spread in ratio.ratios.items()})
                for ratio in (result.ratios if tolerance is not None else ())
            ]
        limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
        return [
            line
            for condition, against, medians in ratios
            for line in find_worse(
                self.metrics, medians, where=self.name_condition(condition), against=against, tolerance=limit
            )
        ]


class LoadBenchmark(Benchmark[C], Generic[C, S]):
    """Puts servers under load; while one is measured, the others are idle."""

    side_type: ClassVar[type[Any]]

    def __init__(self, config: ServersConfig) -> None:
        self._load_config = config
        self._servers: list[S] = []
        self._warm: set[tuple[str, C]] = set()
        """Addresses and conditions whose warm-up is done; a restarted server has a new address."""

    @abstractmethod
    async def wait_ready(self, target: Target) -> S:
        """Waits until the server can be measured."""

    def check_servers(self, servers: Sequence[S]) -> None:
        """Called once all servers are ready."""

    @abstractmethod
    async def warm_up(self, condition: C, server: S) -> None:
        """A load that is not measured."""

    @abstractmethod
    async def measure_round(self, condition: C, number: int, server: S) -> Any:
        """The figures of one round."""

    @abstractmethod
    def side_facts(self, server: S) -> Mapping[str, Any]:
        """Further fields of a side's result."""

    async def measure_rounds(self, progress: Progress) -> Rounds[C, Any]:
        config = self._load_config
        with TargetPool(config, self.wait_ready, progress) as targets:
            self._servers = await targets.prepare()
            self.check_servers(self._servers)
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
            for spec, server, conditions in zip(self._load_config.targets, self._servers, measured, strict=True)
        ]

    def describe_side(self, side: Any, settings: Any) -> str:
        return f"; ready after {side.ready_after_s:.1f} s" if side.ready_after_s is not None else ""

    def describe_rounds(self, result: Any) -> Iterator[str]:
        if len(result.sides) > 1:
            idle = _IDLE[result.settings.idle]
            yield f"Rounds alternate, {idle}. Figures and ratios are medians over rounds (min-max)."

    def more_rows(self, measured: Sequence[Any]) -> list[list[str]]:
        return [["failed requests", *(str(_count_errors(each)) for each in measured)]]

    def find_problems(self, side: Any, measured: Any, settings: Any) -> Iterator[str]:
        if num_probe_errors := sum(figures.num_probe_errors for figures in measured.rounds):
            yield f"{num_probe_errors} probes of /health failed"
        if (share := max(figures.client_cpu_share for figures in measured.rounds)) > _BUSY_CLIENT:
            yield f"the load generator used {share:.0%} of a processor; it may limit the throughput"

    def has_failed(self, result: Any) -> bool:
        return any(_count_errors(measured) for side in result.sides for measured in side.conditions)

    def _describe(self, scheduled: ScheduledRound[C]) -> str:
        config = self._load_config
        condition, number = self.name_condition(scheduled.condition), scheduled.round_number + 1
        return f"{config.targets[scheduled.side].name}: {condition}, round {number} of {config.num_rounds}"

    async def _measure(self, scheduled: ScheduledRound[C], server: S) -> Any:
        condition = scheduled.condition
        if (server.base_url, condition) not in self._warm:
            self._warm.add((server.base_url, condition))
            await self.warm_up(condition, server)
        return await self.measure_round(condition, scheduled.round_number, server)


def publish_result(
    result: R, files: Files, *, write_report: Callable[[R, TextIO], None], draw: Callable[[R], str]
) -> None:
    """Writes the report to the terminal, and JSON and HTML where they were requested."""
    is_piped = files.json_path == Path("-")
    write_report(result, sys.stderr if is_piped else sys.stdout)
    if is_piped:
        sys.stdout.write(encode_result(result))
    elif files.json_path:
        files.json_path.write_text(encode_result(result), encoding="utf-8")
    if files.html_path:
        files.html_path.write_text(draw(result), encoding="utf-8")


def _count_errors(measured: Any) -> int:
    return sum(figures.num_errors for figures in measured.rounds)
