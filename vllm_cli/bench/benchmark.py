"""The steps of every benchmark: measure, write the result, judge it, return an exit code."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TextIO, TypeVar

import click
import msgspec

from vllm_cli.bench.config import DEFAULT_TOLERANCE, Files
from vllm_cli.bench.interruption import Interrupted
from vllm_cli.bench.progress import Progress, StreamProgress
from vllm_cli.bench.results import encode_result

C = TypeVar("C")
R = TypeVar("R", bound=msgspec.Struct)
R_contra = TypeVar("R_contra", contravariant=True)


class FindWorse(Protocol[R_contra]):
    """One line for each figure of side A that is worse than another side's by more than the tolerance."""

    def __call__(self, result: R_contra, /, *, tolerance: float) -> list[str]: ...


class FindWorseThanBaseline(Protocol[R_contra]):
    """One line for each figure of side A that is worse than the baseline's by more than the tolerance."""

    def __call__(self, result: R_contra, baseline: R_contra, /, *, tolerance: float) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[C, R]):
    """The functions in which benchmarks differ."""

    run: Callable[[C, Progress], R]
    """Raises `Interrupted` after SIGINT or SIGTERM."""
    write_report: Callable[[R, TextIO], None]
    draw: Callable[[R], str]
    """The result as an HTML page."""
    draw_svg: Callable[[R], str] | None = None
    """The result as an SVG file, for benchmarks with an option `--svg`."""
    read_baseline: Callable[[Path, C], R]
    find_worse_than_baseline: FindWorseThanBaseline[R]
    find_worse_than_others: FindWorse[R]
    has_failed: Callable[[R], bool] = lambda _: False

    def measure(self, config: C, files: Files) -> int:
        """Measures, writes the result, returns the exit code: 0, 1 (slower or failed), or 128 + signal."""
        baseline = self.read_baseline(files.baseline_path, config) if files.baseline_path else None
        try:
            with StreamProgress(sys.stderr) as progress:
                result = self.run(config, progress)
        except Interrupted as interrupted:
            return interrupted.exit_code
        publish_result(result, files, write_report=self.write_report, draw=self.draw)
        if files.svg_path and self.draw_svg:
            files.svg_path.write_text(self.draw_svg(result), encoding="utf-8")
        worse = self._find_worse(result, baseline, files.tolerance)
        for line in worse:
            click.echo(f"Slower: {line}", err=True)
        return 1 if worse or self.has_failed(result) else 0

    def _find_worse(self, result: R, baseline: R | None, tolerance: float | None) -> list[str]:
        """With a baseline, only the baseline decides: the other sides may be there for comparison."""
        if baseline is not None:
            limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
            return self.find_worse_than_baseline(result, baseline, tolerance=limit)
        return [] if tolerance is None else self.find_worse_than_others(result, tolerance=tolerance)


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
