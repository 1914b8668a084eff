"""The report of `bench startup`: the settings, tables of figures and phases, then problems."""

from collections.abc import Iterator
from typing import TextIO

from vllm_cli.bench.startup.figures import STARTUP_METRICS, compare_states
from vllm_cli.bench.startup.results import StartupResult, StartupSideResult, StateResult
from vllm_cli.bench.startup.standby import FORK_PHASE
from vllm_cli.bench.tables import Comparison, FigureTable, format_spread, write_sections

_COLD_ENOUGH = 0.01
"""With more than this share still in memory, the page cache was not cold."""


def write_startup_report(result: StartupResult, stream: TextIO) -> None:
    """Writes the whole report: drawn tables on a terminal, aligned text on a pipe."""
    write_sections(
        describe_startup_run(result), build_startup_tables(result), describe_startup_problems(result), stream
    )


def describe_startup_run(result: StartupResult) -> Iterator[str]:
    """The machine, the sides, the rounds and the evictions."""
    settings = result.settings
    yield f"{result.machine.description}, {result.created_at}"
    for side in result.sides:
        version = f" {side.version}" if side.version else ""
        text = f"; first token {side.first_text!r}" if side.first_text is not None else ""
        yield f"{side.name}: {side.target}{version}; model {side.model}{text}"
    order = "Rounds alternate. " if len(result.sides) > 1 else ""
    yield f"{order}Times count from exec. {settings.num_rounds} rounds; medians (min-max), ratios round by round."
    yield from _describe_evictions(result)
    yield from _compare_roots(result)
    for side in result.sides:
        if (standby := side.standby) is not None:
            size = f"{standby.memory_bytes / 1e6:.0f} MB (PSS)"
            yield f"{side.name} from standby: {size}, imported in {standby.import_s:.1f} s, before the starts."


def build_startup_tables(result: StartupResult) -> list[FigureTable]:
    """For each state a table of figures, then a table of phases for each side that reports them."""
    tables = []
    for index, state in enumerate(result.settings.states):
        tables.append(_build_figures(result, index, state))
        tables += [
            FigureTable(
                f"{side.name} from {state}: what the start waited for", ["", "s"], _phase_rows(side.states[index])
            )
            for side in result.sides
            if side.states[index].phases
        ]
    return tables


def describe_startup_problems(result: StartupResult) -> Iterator[str]:
    """Different first tokens, pages that stayed, lost probes: reasons to distrust the figures."""
    texts = {side.name: side.first_text for side in result.sides if side.first_text is not None}
    if len(set(texts.values())) > 1:
        yield "The sides' first tokens differ: " + ", ".join(f"{name} {text!r}" for name, text in texts.items())
    for side in result.sides:
        for state in side.states:
            yield from _state_problems(side, state)
            yield from _standby_problems(side, state)


def _build_figures(result: StartupResult, index: int, state: str) -> FigureTable:
    comparison = Comparison(
        names=[side.name for side in result.sides],
        summaries=[side.states[index].summary for side in result.sides],
        ratios=[ratio.ratios for ratio in result.ratios if ratio.state == state],
    )
    return FigureTable(f"from {state}", comparison.header, comparison.rows(STARTUP_METRICS))


def _phase_rows(state: StateResult) -> list[list[str]]:
    return [[name, format_spread(spread)] for name, spread in state.phases.items()]


def _compare_roots(result: StartupResult) -> Iterator[str]:
    """First starts in a new root, divided by the tenth and later ones."""
    for side in result.sides:
        by_state = {state.state: state for state in side.states}
        tenth = by_state.pop("tenth-root", None)
        for name, state in by_state.items():
            if tenth is not None and "root" in name:
                ratio = compare_states(state, tenth, against="tenth-root").ratios["first_token_s"]
                yield f"{side.name}: first token from {name} ÷ from tenth-root: {format_spread(ratio)}"


def _describe_evictions(result: StartupResult) -> Iterator[str]:
    figures = [f for side in result.sides for state in side.states for f in state.rounds if f.evicted_bytes]
    if figures:
        most = max(f.resident_bytes / f.evicted_bytes for f in figures)
        size = figures[0].evicted_bytes / 1e6
        yield f"Cold page cache: {size:.0f} MB evicted before each start, at most {most:.1%} still in memory (checked)."


def _state_problems(side: StartupSideResult, state: StateResult) -> Iterator[str]:
    where = f"{side.name} from {state.state}"
    stayed = max((f.resident_bytes / f.evicted_bytes for f in state.rounds if f.evicted_bytes), default=0.0)
    if stayed > _COLD_ENOUGH:
        yield f"{where}: {stayed:.1%} of what was evicted stayed in memory, so it was not cold; does a process map it?"
    if num_lost := sum(figures.num_lost for figures in state.rounds):
        yield f"{where}: {num_lost} probes got no response after an earlier one had a response"


def _standby_problems(side: StartupSideResult, state: StateResult) -> Iterator[str]:
    """Cold starts with a standby, warm ones without; a side's first fork is not among the rounds."""
    num_rounds = len(state.rounds)
    if state.state == "standby":
        if side.standby is not None and side.standby.num_starts < num_rounds + 1:
            num_warm = max(side.standby.num_starts - 1, 0)
            yield f"{side.name} from standby: only {num_warm} of {num_rounds} servers were forked from the standby"
    elif num_warm := sum(any(name.endswith(f":{FORK_PHASE}") for name in figures.phases) for figures in state.rounds):
        yield f"{side.name} from {state.state}: {num_warm} of {num_rounds} servers were forked from a standby"
