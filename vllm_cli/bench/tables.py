"""Reports: lines and tables of figures, drawn by rich on a terminal, as text on a pipe, as HTML on a page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TextIO

from rich.console import Console
from rich.table import Table as DrawnTable

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.results import Spread
from vllm_cli.html_page import draw_table
from vllm_cli.text_table import align

_MISSING = "-"


@dataclass(frozen=True)
class FigureTable:
    """A row for each figure, a column for each side and each ratio."""

    title: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Comparison:
    """The summaries of all sides, and the ratios of the first side to each other side."""

    names: Sequence[str]
    summaries: Sequence[Mapping[str, Spread]]
    ratios: Sequence[Mapping[str, Spread]]

    @property
    def header(self) -> list[str]:
        first, *others = self.names
        return ["", *self.names, *(f"{first}/{other}" for other in others)]

    def rows(self, metrics: Iterable[Metric]) -> list[list[str]]:
        """A row for each figure that at least one side has."""
        rows = []
        for metric in metrics:
            spreads = [summary.get(metric.name) for summary in self.summaries]
            quotients = [ratio.get(metric.name) for ratio in self.ratios]
            if any(spreads):
                rows.append([metric.label, *map(format_spread, spreads), *map(format_spread, quotients)])
        return rows


def write_sections(above: Iterable[str], tables: Iterable[FigureTable], below: Iterable[str], stream: TextIO) -> None:
    """Writes a report: lines above the tables, the tables, lines below them."""
    _write_lines(above, stream)
    for table in tables:
        stream.write("\n")
        _write_table(table, stream)
    stream.write("\n")
    _write_lines(below, stream)


def _write_lines(lines: Iterable[str], stream: TextIO) -> None:
    """Writes text without breaking long lines."""
    console = Console(file=stream, highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _write_table(table: FigureTable, stream: TextIO) -> None:
    """Writes the table: drawn on a terminal, aligned text on a pipe."""
    console = Console(file=stream, highlight=False)
    if console.is_terminal:
        console.print(_draw(table))
    else:
        stream.writelines(f"{line}\n" for line in _align(table))


def format_spread(spread: Spread | None) -> str:
    """`median (min-max)`."""
    if spread is None:
        return _MISSING
    if spread.min == spread.max:
        return format_figure(spread.median)
    return f"{format_figure(spread.median)} ({format_figure(spread.min)}-{format_figure(spread.max)})"


def format_figure(value: float) -> str:
    """About three digits, no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def draw_figure_table(table: FigureTable) -> str:
    """The table as HTML."""
    return draw_table(table.title, table.header, [[escape(cell) for cell in row] for row in table.rows])


def _draw(table: FigureTable) -> DrawnTable:
    drawn = DrawnTable(title=table.title, title_justify="left")
    for index, name in enumerate(table.header):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _align(table: FigureTable) -> Iterator[str]:
    yield table.title
    yield from align([table.header, *table.rows], are_figures=True)
