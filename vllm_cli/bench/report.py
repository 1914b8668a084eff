"""The report of a benchmark as text: settings, a table for each condition, problems."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TextIO, TypeVar

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.results import Spread
from vllm_cli.text_table import align

C = TypeVar("C")

_MISSING = "-"


@dataclass(frozen=True)
class FigureTable:
    """A row for each figure, a column for each side and each ratio."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Report(ABC, Generic[C]):
    """Describes results; `C` is a condition under which rounds are measured."""

    metrics: ClassVar[tuple[Metric, ...]]
    """Fields of the figures of a round."""

    @abstractmethod
    def name_condition(self, condition: C) -> str:
        """A few words for messages."""

    def title(self, condition: C) -> str:
        """What a round measures under a condition."""
        return self.name_condition(condition)

    @abstractmethod
    def describe_settings(self) -> Iterator[str]:
        """Lines about what is measured."""

    @abstractmethod
    def describe_rounds(self, result: Any) -> Iterator[str]:
        """Lines about how the rounds were measured."""

    def describe_side(self, side: Any) -> str:
        """What follows the model's name in the line of a side."""
        return ""

    def more_rows(self, measured: Sequence[Any]) -> list[list[str]]:
        """Rows below the figures: a name, and a cell for each side."""
        return []

    def more_tables(self, result: Any, index: int) -> Iterator[FigureTable]:
        """Tables after the one of the condition with this index."""
        return iter(())

    def find_problems(self, side: Any, measured: Any) -> Iterator[str]:
        """Signs that the figures of a side under one condition are unreliable."""
        return iter(())

    def write_report(self, result: Any, stream: TextIO) -> None:
        """Writes the whole report."""
        write_sections(self.describe_run(result), self.tables(result), self.describe_problems(result), stream)

    def describe_run(self, result: Any) -> Iterator[str]:
        """The machine, the settings, the sides and the rounds."""
        yield f"{result.machine.description}, {result.created_at}"
        yield from self.describe_settings()
        for side in result.sides:
            version = f" {side.version}" if side.version else ""
            yield f"{side.name}: {side.target}{version}; model {side.model}{self.describe_side(side)}"
        yield from self.describe_rounds(result)

    def tables(self, result: Any) -> Iterator[FigureTable]:
        """One table of figures for each condition, and more."""
        first, *others = (side.name for side in result.sides)
        header = ["", first, *others, *(f"{first}/{other}" for other in others)]
        for index, condition in enumerate(each.condition for each in result.sides[0].conditions):
            measured = [side.conditions[index] for side in result.sides]
            ratios = [ratio.ratios for ratio in result.ratios if ratio.condition == condition]
            rows = compare_figures(self.metrics, [each.summary for each in measured], ratios)
            rows += [[*row, *("" for _ in ratios)] for row in self.more_rows(measured)]
            yield FigureTable(f"{self.title(condition)}, rounds: {len(measured[0].rounds)}", header, rows)
            yield from self.more_tables(result, index)

    def describe_problems(self, result: Any) -> Iterator[str]:
        """Signs that the figures are unreliable."""
        for side in result.sides:
            for measured in side.conditions:
                where = f"{side.name}, {self.name_condition(measured.condition)}"
                yield from (f"{where}: {problem}" for problem in self.find_problems(side, measured))


def compare_figures(
    metrics: Iterable[Metric], summaries: Sequence[Mapping[str, Spread]], ratios: Sequence[Mapping[str, Spread]]
) -> list[list[str]]:
    """A row for each figure that at least one side has: all sides, then the ratios of the first to others."""
    rows = []
    for metric in metrics:
        spreads = [summary.get(metric.name) for summary in summaries]
        quotients = [ratio.get(metric.name) for ratio in ratios]
        if any(spreads):
            rows.append([metric.label, *map(format_spread, spreads), *map(format_spread, quotients)])
    return rows


def write_sections(above: Iterable[str], tables: Iterable[FigureTable], below: Iterable[str], stream: TextIO) -> None:
    """Writes a report: lines above the tables, the tables, lines below them."""
    stream.writelines(f"{line}\n" for line in above)
    for table in tables:
        lines = (table.title, *align([table.header, *table.rows], are_figures=True))
        stream.writelines(f"{line}\n" for line in ("", *lines))
    stream.writelines(f"{line}\n" for line in ("", *below))


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
