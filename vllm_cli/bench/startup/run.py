"""Runs `bench startup`: alternating starts of all sides from all states; returns the result."""

import asyncio
from collections import defaultdict
from typing import Protocol

from vllm_cli.bench.interruption import run_interruptibly
from vllm_cli.bench.machine import describe_machine
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.results import format_now
from vllm_cli.bench.schedule import ScheduledRound
from vllm_cli.bench.startup.caches import StartupCaches
from vllm_cli.bench.startup.config import MAX_TOKENS, StartState, StartupBenchConfig
from vllm_cli.bench.startup.figures import add_residency, compare_states, summarize_state
from vllm_cli.bench.startup.floor import FloorSide
from vllm_cli.bench.startup.results import (
    STARTUP_SCHEMA_VERSION,
    StandbyFigures,
    StartFigures,
    StartupResult,
    StartupSettings,
    StartupSideResult,
)
from vllm_cli.bench.startup.server import ServerSide


class Side(Protocol):
    """A program whose start up to its first token is timed."""

    name: str
    description: str
    model: str
    version: str | None
    first_text: str | None
    """The text of its first token; set by `prepare`."""
    standby: StandbyFigures | None
    """What its starts from the state `standby` were forked from; set by `finish`."""

    async def prepare(self) -> None:
        """Starts that are not measured, and what must run before the rounds."""

    async def measure(self, state: StartState) -> StartFigures:
        """One measured start; all its processes have exited on return."""

    async def finish(self) -> None:
        """Called after the rounds."""

    def close(self) -> None:
        """Stops what runs between the starts."""


def run_startup_bench(config: StartupBenchConfig, progress: Progress) -> StartupResult:
    """Measures every side from every state; must be on the main thread, to set signal handlers."""
    return run_interruptibly(_StartupBench(config, progress).run())


class _StartupBench:
    """One run in progress."""

    def __init__(self, config: StartupBenchConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._sides: list[Side] = [ServerSide(spec, config) for spec in config.targets]
        if config.floor_model:
            self._sides.append(FloorSide(config.floor_model, timeout_s=config.ready_timeout_s))
        self._rounds: defaultdict[tuple[int, StartState], list[StartFigures]] = defaultdict(list)

    async def run(self) -> StartupResult:
        try:
            return await self._run()
        finally:
            for side in self._sides:
                side.close()

    async def _run(self) -> StartupResult:
        created_at = format_now()
        caches = StartupCaches(self._config)
        for side in self._sides:
            self._progress.report(f"{side.name}: one start that does not count: {side.description}")
            await side.prepare()
        schedule = _schedule_starts(self._config, len(self._sides))
        self._progress.begin(len(schedule))
        for start in schedule:
            await asyncio.sleep(self._config.pause_s)
            self._progress.step(self._describe(start))
            with caches.in_state(start.condition) as residency:
                figures = await self._sides[start.side].measure(start.condition)
            self._rounds[start.side, start.condition].append(add_residency(figures, residency))
        for side in self._sides:
            await side.finish()
        return self._assemble(created_at)

    def _describe(self, start: ScheduledRound[StartState]) -> str:
        name, number = self._sides[start.side].name, start.round_number + 1
        return f"{name}: {start.condition}, round {number} of {self._config.num_rounds}"

    def _assemble(self, created_at: str) -> StartupResult:
        config = self._config
        sides = [self._side_result(index) for index in range(len(self._sides))]
        return StartupResult(
            schema_version=STARTUP_SCHEMA_VERSION,
            created_at=created_at,
            machine=describe_machine(),
            settings=StartupSettings(
                endpoint=config.endpoint,
                states=list(config.states),
                num_rounds=config.num_rounds,
                evict_libraries=config.evict_libraries,
                max_tokens=MAX_TOKENS,
            ),
            sides=sides,
            ratios=[
                compare_states(ours, theirs, against=other.name)
                for other in sides[1:]
                for ours, theirs in zip(sides[0].states, other.states, strict=True)
            ],
        )

    def _side_result(self, index: int) -> StartupSideResult:
        side = self._sides[index]
        return StartupSideResult(
            name=side.name,
            target=side.description,
            model=side.model,
            version=side.version,
            first_text=side.first_text,
            states=[summarize_state(state, self._rounds[index, state]) for state in self._config.states],
            standby=side.standby,
        )


def _schedule_starts(config: StartupBenchConfig, num_sides: int) -> list[ScheduledRound[StartState]]:
    """Sides alternate; every other round reverses them, so that no side always follows the same one."""
    sides = list(range(num_sides))
    return [
        ScheduledRound(state, number, side)
        for number in range(config.num_rounds)
        for state in config.states
        for side in (sides if number % 2 == 0 else sides[::-1])
    ]
