"""Figures as tables: drawn by rich on a terminal, aligned text on a pipe."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table as DrawnTable

from vllm_cli.bench.results import Spread

_MISSING = "-"


@dataclass(frozen=True)
class FigureTable:
    """A row for each figure, a column for each side and each ratio."""

    title: str
    header: list[str]
    rows: list[list[str]]


def write_lines(lines: Iterable[str], stream: TextIO) -> None:
    """Text as it stands; a long line is not broken."""
    console = Console(file=stream, highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def write_table(table: FigureTable, stream: TextIO) -> None:
    """The table, in the form that suits the stream."""
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
    """Three digits or so, and no exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _draw(table: FigureTable) -> DrawnTable:
    drawn = DrawnTable(title=table.title, title_justify="left")
    for index, name in enumerate(table.header):
        drawn.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    return drawn


def _align(table: FigureTable) -> Iterator[str]:
    cells = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    yield table.title
    for row in cells:
        first, *rest = row
        aligned = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        yield "  ".join(aligned).rstrip()
