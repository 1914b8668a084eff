"""Runs a whole startup benchmark: sides and cache states in turn, and nothing left behind, whatever happens."""

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from vllm_cli.bench.interruption import run_interruptibly
from vllm_cli.bench.machine import describe_machine
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.startup.caches import StartupCaches
from vllm_cli.bench.startup.config import MAX_TOKENS, CacheState, StartupBenchConfig
from vllm_cli.bench.startup.figures import add_residency, compare_states, summarize_state
from vllm_cli.bench.startup.floor import FloorSide
from vllm_cli.bench.startup.results import (
    STARTUP_SCHEMA_VERSION,
    StartFigures,
    StartupResult,
    StartupSettings,
    StartupSideResult,
)
from vllm_cli.bench.startup.server import ServerSide


class Side(Protocol):
    """Something that starts and gives a token."""

    name: str
    description: str
    model: str
    version: str | None
    first_text: str | None
    """What its first token says, once it is prepared."""

    async def prepare(self) -> None:
        """One start that does not count."""

    async def measure(self) -> StartFigures:
        """One start that counts; nothing of it is left afterwards."""


def run_startup_bench(config: StartupBenchConfig, progress: Progress) -> StartupResult:
    """Measure every side from every state; must be called on the main thread, which it gives signal handlers."""
    return run_interruptibly(_StartupBench(config, progress).run())


class _Leg(NamedTuple):
    """One start of one side from one state."""

    round_number: int
    state: CacheState
    side: int


class _StartupBench:
    """One run in progress."""

    def __init__(self, config: StartupBenchConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._sides: list[Side] = [ServerSide(spec, config) for spec in config.targets]
        if config.floor_model:
            self._sides.append(FloorSide(config.floor_model, timeout_s=config.ready_timeout_s))
        self._rounds: defaultdict[tuple[int, CacheState], list[StartFigures]] = defaultdict(list)

    async def run(self) -> StartupResult:
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        caches = StartupCaches(self._config)
        for side in self._sides:
            self._progress.note(f"{side.name}: one start that does not count: {side.description}")
            await side.prepare()
        legs = _plan_legs(self._config, len(self._sides))
        self._progress.begin(len(legs))
        for leg in legs:
            await asyncio.sleep(self._config.pause_s)
            self._progress.step(self._describe(leg))
            with caches.in_state(leg.state) as stayed:
                figures = await self._sides[leg.side].measure()
            self._rounds[leg.side, leg.state].append(add_residency(figures, stayed))
        return self._assemble(created_at)

    def _describe(self, leg: _Leg) -> str:
        return f"{self._sides[leg.side].name}: {leg.state}, round {leg.round_number + 1} of {self._config.num_rounds}"

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
        )


def _plan_legs(config: StartupBenchConfig, num_sides: int) -> list[_Leg]:
    """Sides take turns, and every other round in the opposite order, so that neither always has the other before it."""
    sides = list(range(num_sides))
    return [
        _Leg(number, state, side)
        for number in range(config.num_rounds)
        for state in config.states
        for side in (sides if number % 2 == 0 else sides[::-1])
    ]
