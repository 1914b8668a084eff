"""The report of a benchmark as text and as a page: settings, a table for each condition, problems."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TextIO, TypeVar

from vllm_cli.bench.figures import Metric
from vllm_cli.bench.tables import Comparison, FigureTable, draw_figure_table, write_sections
from vllm_cli.html_page import build_page, draw_paragraph

C = TypeVar("C")


class Report(ABC, Generic[C]):
    """Describes results; `C` is a condition under which rounds are measured."""

    command: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """Fields of the figures of a round."""

    @abstractmethod
    def name_condition(self, condition: C) -> str:
        """A few words for messages."""

    @abstractmethod
    def titles(self, settings: Any) -> Mapping[C, str]:
        """What a round measures under each condition; a baseline must have the same."""

    @abstractmethod
    def describe_settings(self, settings: Any) -> Iterator[str]:
        """Lines about what is measured."""

    @abstractmethod
    def describe_rounds(self, result: Any) -> Iterator[str]:
        """Lines about how the rounds were measured."""

    @abstractmethod
    def draw_charts(self, result: Any) -> Iterator[str]:
        """The charts of the HTML page, and their legend."""

    def describe_side(self, side: Any, settings: Any) -> str:
        """What follows the model's name in the line of a side."""
        return ""

    def more_rows(self, measured: Sequence[Any]) -> list[list[str]]:
        """Rows below the figures: a name, and a cell for each side."""
        return []

    def more_tables(self, result: Any, index: int) -> Iterator[FigureTable]:
        """Tables after the one of the condition with this index."""
        return iter(())

    def find_problems(self, side: Any, measured: Any, settings: Any) -> Iterator[str]:
        """Signs that the figures of a side under one condition are unreliable."""
        return iter(())

    def write_report(self, result: Any, stream: TextIO) -> None:
        """Writes the whole report: drawn tables on a terminal, aligned text on a pipe."""
        write_sections(self.describe_run(result), self.tables(result), self.describe_problems(result), stream)

    def draw_page(self, result: Any) -> str:
        """The result as a self-contained HTML page."""
        parts = [
            *map(draw_paragraph, self.describe_run(result)),
            *self.draw_charts(result),
            *map(draw_figure_table, self.tables(result)),
            *map(draw_paragraph, self.describe_problems(result)),
        ]
        return build_page(f"{self.command}: " + " against ".join(side.name for side in result.sides), parts)

    def describe_run(self, result: Any) -> Iterator[str]:
        """The machine, the settings, the sides and the rounds."""
        yield f"{result.machine.description}, {result.created_at}"
        yield from self.describe_settings(result.settings)
        for side in result.sides:
            version = f" {side.version}" if side.version else ""
            more = self.describe_side(side, result.settings)
            yield f"{side.name}: {side.target}{version}; model {side.model}{more}"
        yield from self.describe_rounds(result)

    def tables(self, result: Any) -> Iterator[FigureTable]:
        """One table of figures for each condition, and more."""
        titles = self.titles(result.settings)
        for index, condition in enumerate(each.condition for each in result.sides[0].conditions):
            measured = [side.conditions[index] for side in result.sides]
            comparison = Comparison(
                names=[side.name for side in result.sides],
                summaries=[each.summary for each in measured],
                ratios=[ratio.ratios for ratio in result.ratios if ratio.condition == condition],
            )
            more = [[*row, *("" for _ in comparison.ratios)] for row in self.more_rows(measured)]
            title = f"{titles[condition]}, rounds: {len(measured[0].rounds)}"
            yield FigureTable(title, comparison.header, [*comparison.rows(self.metrics), *more])
            yield from self.more_tables(result, index)

    def describe_problems(self, result: Any) -> Iterator[str]:
        """Signs that the figures are unreliable."""
        for side in result.sides:
            for measured in side.conditions:
                where = f"{side.name}, {self.name_condition(measured.condition)}"
                yield from (f"{where}: {problem}" for problem in self.find_problems(side, measured, result.settings))
