"""`bench startup`: alternating starts of all sides from all states, timed from exec to the first token."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

from vllm_cli.bench.benchmark import Benchmark
from vllm_cli.bench.figures import compare_rounds, spread_of, summarize_rounds
from vllm_cli.bench.progress import Progress
from vllm_cli.bench.report import FigureTable, format_spread
from vllm_cli.bench.rounds import Rounds, ScheduledRound
from vllm_cli.bench.startup.caches import StartupCaches
from vllm_cli.bench.startup.cold_download import HubStandIn
from vllm_cli.bench.startup.config import StartState, StartupBenchConfig
from vllm_cli.bench.startup.floor import FloorSide
from vllm_cli.bench.startup.results import (
    STARTUP_METRICS,
    StandbyFigures,
    StartFigures,
    StartupSide,
    StateResult,
    add_residency,
)
from vllm_cli.bench.startup.server import ServerSide
from vllm_cli.bench.startup.standby import FORK_PHASE

_COLD_ENOUGH: Final = 0.01
"""With more than this share still in memory, the page cache was not cold."""


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


class StartupBenchmark(Benchmark[StartState]):
    """A condition is a state of the caches before a start."""

    _config: StartupBenchConfig
    name = "startup"
    metrics = STARTUP_METRICS

    def __init__(self, config: StartupBenchConfig) -> None:
        super().__init__(config)
        self._sides: list[Side] = [ServerSide(spec, config) for spec in config.targets]
        if config.floor_model:
            self._sides.append(FloorSide(config.floor_model, timeout_s=config.ready_timeout_s))

    @property
    def conditions(self) -> Sequence[StartState]:
        return self._config.states

    async def measure_rounds(self, progress: Progress) -> Rounds[StartState]:
        try:
            return await self._measure_rounds(progress)
        finally:
            for side in self._sides:
                side.close()

    async def _measure_rounds(self, progress: Progress) -> Rounds[StartState]:
        caches = StartupCaches(self._config)
        if self._config.hub is not None:
            await asyncio.to_thread(HubStandIn(self._config.hub).check, self._config.link)
        for side in self._sides:
            progress.report(f"{side.name}: one start that does not count: {side.description}")
            await side.prepare()
        rounds: defaultdict[tuple[int, StartState], list[StartFigures]] = defaultdict(list)
        schedule = _schedule_starts(self._config, len(self._sides))
        progress.begin(len(schedule))
        for start in schedule:
            await asyncio.sleep(self._config.pause_s)
            progress.step(self._describe(start))
            with caches.in_state(start.condition) as residency:
                figures = await self._sides[start.side].measure(start.condition)
            rounds[start.side, start.condition].append(add_residency(figures, residency))
        for side in self._sides:
            await side.finish()
        return rounds

    def summarize(self, condition: StartState, rounds: list[StartFigures]) -> StateResult:
        names = dict.fromkeys(name for figures in rounds for name in figures.phases)
        reported = [figures.phases for figures in rounds if figures.phases]
        phases = {name: spread_of(phases.get(name, 0.0) for phases in reported) for name in names}
        return StateResult(
            condition=condition,
            summary=summarize_rounds(self.metrics, rounds),
            phases={name: spread for name, spread in phases.items() if spread},
            rounds=rounds,
        )

    def side_results(self, measured: Sequence[list[StateResult]]) -> list[StartupSide]:
        return [
            StartupSide(
                name=side.name,
                target=side.description,
                model=side.model,
                version=side.version,
                first_text=side.first_text,
                conditions=states,
                standby=side.standby,
            )
            for side, states in zip(self._sides, measured, strict=True)
        ]

    def name_condition(self, condition: StartState) -> str:
        return f"from {condition}"

    def describe_settings(self) -> Iterator[str]:
        yield f"{self._config.path}; times count from exec"
        if self._config.needs_hub:
            yield f"cold-download: from {self._config.hub}, link {self._config.link or 'as the stand-in has it'}"

    def describe_side(self, side: StartupSide) -> str:
        return f"; first token {side.first_text!r}" if side.first_text is not None else ""

    def describe_rounds(self, result: Any) -> Iterator[str]:
        order = "Rounds alternate. " if len(result.sides) > 1 else ""
        yield f"{order}{self._config.num_rounds} rounds; medians (min-max), ratios round by round."
        yield from _describe_evictions(result)
        yield from self._compare_roots(result)
        for side in result.sides:
            if (standby := side.standby) is not None:
                size = f"{standby.memory_bytes / 1e6:.0f} MB (PSS)"
                yield f"{side.name} from standby: {size}, imported in {standby.import_s:.1f} s, before the starts."

    def more_tables(self, result: Any, index: int) -> Iterator[FigureTable]:
        """The phases of each side that reports them."""
        for side in result.sides:
            state = side.conditions[index]
            rows = [[name, format_spread(spread)] for name, spread in state.phases.items()]
            if rows:
                yield FigureTable(f"{side.name} from {state.condition}: what the start waited for", ["", "s"], rows)

    def describe_problems(self, result: Any) -> Iterator[str]:
        texts = {side.name: side.first_text for side in result.sides if side.first_text is not None}
        if len(set(texts.values())) > 1:
            yield "The sides' first tokens differ: " + ", ".join(f"{name} {text!r}" for name, text in texts.items())
        yield from super().describe_problems(result)

    def find_problems(self, side: StartupSide, measured: StateResult) -> Iterator[str]:
        stayed = max((f.resident_bytes / f.evicted_bytes for f in measured.rounds if f.evicted_bytes), default=0.0)
        if stayed > _COLD_ENOUGH:
            yield f"{stayed:.1%} of what was evicted stayed in memory, so it was not cold; does a process map it?"
        if num_lost := sum(figures.num_lost for figures in measured.rounds):
            yield f"{num_lost} probes got no response after an earlier one had a response"
        yield from _standby_problems(side, measured)

    def _describe(self, start: ScheduledRound[StartState]) -> str:
        name, number = self._sides[start.side].name, start.round_number + 1
        return f"{name}: {start.condition}, round {number} of {self._config.num_rounds}"

    def _compare_roots(self, result: Any) -> Iterator[str]:
        """First starts in a new root, divided by the tenth and later ones."""
        for side in result.sides:
            by_state = {state.condition: state for state in side.conditions}
            tenth = by_state.pop("tenth-root", None)
            for name, state in by_state.items():
                if tenth is not None and "root" in name:
                    ratio = compare_rounds(self.metrics, state.rounds, tenth.rounds)["first_token_s"]
                    yield f"{side.name}: first token from {name} ÷ from tenth-root: {format_spread(ratio)}"


def _schedule_starts(config: StartupBenchConfig, num_sides: int) -> list[ScheduledRound[StartState]]:
    """Sides alternate; every other round reverses them, so that no side always follows the same one."""
    sides = list(range(num_sides))
    return [
        ScheduledRound(state, number, side)
        for number in range(config.num_rounds)
        for state in config.states
        for side in (sides if number % 2 == 0 else sides[::-1])
    ]


def _describe_evictions(result: Any) -> Iterator[str]:
    figures = [f for side in result.sides for state in side.conditions for f in state.rounds if f.evicted_bytes]
    if figures:
        most = max(f.resident_bytes / f.evicted_bytes for f in figures)
        size = figures[0].evicted_bytes / 1e6
        yield f"Cold page cache: {size:.0f} MB evicted before each start, at most {most:.1%} still in memory (checked)."


def _standby_problems(side: StartupSide, state: StateResult) -> Iterator[str]:
    """Cold starts with a standby, warm ones without; a side's first fork is not among the rounds."""
    num_rounds = len(state.rounds)
    if state.condition == "standby":
        if side.standby is not None and side.standby.num_starts < num_rounds + 1:
            num_warm = max(side.standby.num_starts - 1, 0)
            yield f"only {num_warm} of {num_rounds} servers were forked from the standby"
    elif num_warm := sum(any(name.endswith(f":{FORK_PHASE}") for name in figures.phases) for figures in state.rounds):
        yield f"{num_warm} of {num_rounds} servers were forked from a standby"
