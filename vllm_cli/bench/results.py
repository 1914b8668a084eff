"""Results, as they are written to `--json`."""

import os
import platform
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec
import psutil

from server.machine.hardware import cpu_model

F = TypeVar("F")
M = TypeVar("M")
S = TypeVar("S")

Condition = int | str
"""A number of requests in flight, a kind of load, or a state of the caches."""


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


class Measured(ResultPart, Generic[F], frozen=True, kw_only=True):
    """The rounds of one side under one condition; `F` are the figures of a round."""

    condition: Condition
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


class LoadedSide(SideResult[Measured[F]], Generic[F], frozen=True, kw_only=True):
    """A server that was measured under load."""

    ready_after_s: float | None
    """From starting the command to its first answer; null for a server given by its URL."""


class Ratio(ResultPart, frozen=True, kw_only=True):
    """Figures of side A divided by those of another side, round by round, under one condition."""

    against: str
    condition: Condition
    ratios: dict[str, Spread]


class BenchResult(RunResult, Generic[S], frozen=True, kw_only=True):
    """The result of one run of a benchmark; `S` are its sides."""

    schema: str
    settings: dict[str, Any]
    """What was measured, the same for every side; named as in the benchmark's configuration."""
    sides: list[S]
    ratios: list[Ratio]


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
    return msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2).decode() + "\n"
