"""What every benchmark does from its configuration to its exit code: measure, write the result, judge it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TextIO, TypeVar

import click

from vllm_cli.bench.config import DEFAULT_TOLERANCE, Files
from vllm_cli.bench.interruption import Interrupted
from vllm_cli.bench.progress import Progress, StreamProgress

C = TypeVar("C")
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class FindSlower(Protocol[R_contra]):
    """One line for each figure of side A that is worse than the tolerance allows."""

    def __call__(self, result: R_contra, /, *, tolerance: float) -> list[str]: ...


class FindSlowerThanBaseline(Protocol[R_contra]):
    """The same, against an earlier run."""

    def __call__(self, result: R_contra, baseline: R_contra, /, *, tolerance: float) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class Examination(Generic[C, R]):
    """What one benchmark does its own way; the result is judged by nothing but itself."""

    run: Callable[[C, Progress], R]
    """Raises `Interrupted` when it is to end early."""
    write_report: Callable[[R, TextIO], None]
    encode: Callable[[R], str]
    draw: Callable[[R], str]
    has_failed: Callable[[R], bool] = lambda _: False

    def measure(self, config: C, files: Files) -> int:
        """Measure, write the result, and return the exit code: 0, 1 or that of an interruption."""
        return self._conduct(config, files, self.has_failed)

    def _conduct(self, config: C, files: Files, is_bad: Callable[[R], bool]) -> int:
        try:
            with StreamProgress(sys.stderr) as progress:
                result = self.run(config, progress)
        except Interrupted as interrupted:
            return interrupted.exit_code
        self._publish(result, files)
        return 1 if is_bad(result) else 0

    def _publish(self, result: R, files: Files) -> None:
        is_piped = files.json_path == Path("-")
        self.write_report(result, sys.stderr if is_piped else sys.stdout)
        if is_piped:
            sys.stdout.write(self.encode(result))
        elif files.json_path:
            files.json_path.write_text(self.encode(result), encoding="utf-8")
        if files.html_path:
            files.html_path.write_text(self.draw(result), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Benchmark(Examination[C, R]):
    """One whose result may also be compared: with an earlier one, or with other sides of the same run."""

    read_baseline: Callable[[Path, C], R]
    find_slower_than_baseline: FindSlowerThanBaseline[R]
    find_slower_than_others: FindSlower[R]

    def measure(self, config: C, files: Files) -> int:
        """The same; worse than the tolerance allows is a failure, too."""
        baseline = self.read_baseline(files.baseline_path, config) if files.baseline_path else None

        def is_bad(result: R) -> bool:
            slower = self._find_slower(result, baseline, files.tolerance)
            for line in slower:
                click.echo(f"Slower: {line}", err=True)
            return bool(slower) or self.has_failed(result)

        return self._conduct(config, files, is_bad)

    def _find_slower(self, result: R, baseline: R | None, tolerance: float | None) -> list[str]:
        """With a baseline, only that decides: the other sides may be there for comparison."""
        if baseline is not None:
            limit = DEFAULT_TOLERANCE if tolerance is None else tolerance
            return self.find_slower_than_baseline(result, baseline, tolerance=limit)
        return [] if tolerance is None else self.find_slower_than_others(result, tolerance=tolerance)
