"""Results, as they are written to `--json` and read as a baseline."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import psutil

from server.machine.hardware import cpu_model
from vllm_cli.bench.errors import BaselineError

C = TypeVar("C")
F = TypeVar("F")
M = TypeVar("M")
Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")


class ResultPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in a result file."""


class Spread(ResultPart, frozen=True):
    """A figure over the rounds."""

    median: float
    min: float
    max: float


class Machine(ResultPart, frozen=True, kw_only=True):
    """The machine that a run measured on; figures of different machines cannot be compared."""

    system: str
    processor: str
    num_cpus: int
    """Processors that the benchmark and its servers may use."""
    memory_gib: float
    python: str

    @property
    def description(self) -> str:
        return f"{self.processor}, {self.num_cpus} CPUs, {self.memory_gib:g} GiB"


class RunResult(ResultPart, frozen=True, kw_only=True):
    """When and where a run measured."""

    schema_version: int
    created_at: str
    """ISO 8601, UTC."""
    machine: Machine


class Measured(ResultPart, Generic[C, F], frozen=True, kw_only=True):
    """The rounds of one side under one condition, such as a number of requests in flight."""

    condition: C
    summary: dict[str, Spread]
    """By figure, over the rounds that have it."""
    rounds: list[F]


class SideResult(ResultPart, Generic[M], frozen=True, kw_only=True):
    """A measured server."""

    name: str
    target: str
    """The URL or the command, without secrets."""
    model: str
    version: str | None
    conditions: list[M]


class Ratio(ResultPart, Generic[C], frozen=True, kw_only=True):
    """Figures of side A divided by those of another side, round by round, under one condition."""

    against: str
    ratios: dict[str, Spread]
    condition: C


class BenchResult(RunResult, Generic[S, R, Q], frozen=True, kw_only=True):
    """The result of one run of a benchmark; `S` are its settings."""

    settings: S
    sides: list[R]
    ratios: list[Q]


def describe_machine() -> Machine:
    """The properties of this machine that influence figures."""
    return Machine(
        system=platform.platform(terse=True),
        processor=cpu_model(),
        num_cpus=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        python=platform.python_version(),
    )


def format_now() -> str:
    """The current time for `created_at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode_result(result: msgspec.Struct) -> str:
    """The result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"


def read_baseline(path: Path, kind: type[Any], *, command: str, schema_version: int) -> Any:
    """An earlier run's `--json` file; the caller checks that it measured the same.

    Raises:
        BaselineError: the file cannot be read, or is not a result file of this kind and version.
    """
    try:
        baseline = msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise BaselineError(f"Cannot read the baseline {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BaselineError(f"The baseline {path} is not a file of `{command} --json`: {error}") from error
    if baseline.schema_version != schema_version:
        raise BaselineError(f"The baseline {path} has schema version {baseline.schema_version}, not {schema_version}")
    return baseline


def require_same(path: Path, then: object, now: object, names: Iterable[str]) -> None:
    """Checks that the baseline's settings `then` and this run's `now` have equal values under these names.

    Raises:
        BaselineError: names the first difference.
    """
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            raise BaselineError(f"The baseline {path} was measured with {name} {before!r}, this run has {after!r}")
