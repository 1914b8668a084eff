"""The report of the soak test: the settings, tables, and the verdict."""

from collections import Counter
from collections.abc import Iterator
from typing import Final, TextIO, get_args

from tools.soak.ledger import Ending
from tools.soak.results import Growth, SoakResult
from vllm_cli.bench.report import FigureTable, format_figure, write_sections

_MIB: Final = 1 << 20
_ENDINGS: Final[tuple[str, ...]] = get_args(Ending)


def write_soak_report(result: SoakResult, stream: TextIO) -> None:
    """Writes the whole report, as a terminal or as a pipe needs it."""
    write_sections(describe_soak(result), build_soak_tables(result), describe_soak_verdict(result), stream)


def describe_soak(result: SoakResult) -> Iterator[str]:
    """The machine, the server, the load and /health."""
    settings = result.settings
    version = f" {result.version}" if result.version else ""
    yield f"{result.machine.description}, {result.created_at}"
    yield f"{result.target}{version}; model {result.model}; ready after {result.ready_after_s:.1f} s"
    yield (
        f"{settings['minutes']:g} minutes of mixed load, the first {settings['warm_up_share']:.0%} a warm-up; "
        f"{settings['concurrency']:g} active clients, bursts of {settings['burst']:g}"
    )
    if result.left_out:
        yield f"left out, because the server rejects it: {', '.join(result.left_out)}"
    statuses = ", ".join(f"{num} x {status}" for status, num in result.statuses.items())
    yield f"{sum(map(_total, result.endings.values()))} requests: {statuses}"
    health = result.health
    if health.p50_ms is not None and health.p99_ms is not None and health.max_ms is not None:
        yield (
            f"/health: p50 {format_figure(health.p50_ms)} ms, p99 {format_figure(health.p99_ms)} ms, "
            f"max {format_figure(health.max_ms)} ms of {health.num_probes} probes; {health.num_errors} errors"
        )


def build_soak_tables(result: SoakResult) -> list[FigureTable]:
    """Memory under load; resources without load; endings of requests."""
    return [_tabulate_growths(result), _tabulate_rests(result), _tabulate_endings(result)]


def describe_soak_verdict(result: SoakResult) -> Iterator[str]:
    """The verdict, with a line for each problem."""
    if result.settled_after_s is not None:
        yield f"Everything was released {result.settled_after_s:.1f} s after the end of the load."
    for problem in result.problems:
        yield f"Not fine: {problem}"
    yield from (f"  {message}" for message in result.messages)
    if result.is_fine:
        bound = f"{result.settings['max_growth']:.1%} in ten minutes"
        yield f"Fine: memory grew by less than {bound} or than its waves, and nothing was lost."


def _tabulate_growths(result: SoakResult) -> FigureTable:
    rows = [_row(growth) for growth in result.growths]
    return FigureTable("Memory (RSS) under load", ["", "begin MiB", "growth MiB", "waves MiB", "% / 10 min", ""], rows)


def _row(growth: Growth) -> list[str]:
    return [
        growth.who,
        format_figure(growth.level_bytes / _MIB),
        f"{growth.growth_bytes / _MIB:+.2f}",
        f"{growth.wave_bytes / _MIB:.2f}",
        f"{growth.per_ten_minutes * 100:+.2f}",
        "flat" if growth.is_flat else "grows",
    ]


def _tabulate_rests(result: SoakResult) -> FigureTable:
    rows = []
    for who, *samples in ((rest.who, rest.before, rest.after) for rest in result.rests):
        figures = [(one.num_fds, one.num_threads, one.num_processes, one.rss_bytes // _MIB) for one in samples]
        rows.append([who, *(f"{first} -> {last}" for first, last in zip(*figures, strict=True))])
    return FigureTable(
        "Without load, after the warm-up -> in the end", ["", "files", "threads", "processes", "RSS MiB"], rows
    )


def _tabulate_endings(result: SoakResult) -> FigureTable:
    total: Counter[str] = Counter()
    for endings in result.endings.values():
        total.update(endings)
    rows = [
        [kind, *(str(endings.get(ending, 0)) for ending in _ENDINGS)]
        for kind, endings in [*result.endings.items(), ("all", total)]
    ]
    return FigureTable("Requests", ["", *_ENDINGS], rows)


def _total(endings: dict[str, int]) -> int:
    return sum(endings.values())
