"""Parts of results that benchmarks share, as they are written to `--json` and read as a baseline."""

from datetime import UTC, datetime

import msgspec


class ResultPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in a result file."""


class Spread(ResultPart, frozen=True):
    """A figure over the rounds."""

    median: float
    min: float
    max: float


class Machine(ResultPart, frozen=True, kw_only=True):
    """The machine that a run measured on."""

    system: str
    processor: str
    num_cpus: int
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


class SideResult(ResultPart, frozen=True, kw_only=True):
    """A measured server."""

    name: str
    target: str
    """The URL or the command, without secrets."""
    model: str
    version: str | None


class Ratio(ResultPart, frozen=True, kw_only=True):
    """Figures of side A divided by those of another side, round by round, under one condition."""

    against: str
    ratios: dict[str, Spread]


def format_now() -> str:
    """The current time for `created_at`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode_result(result: msgspec.Struct) -> str:
    """The result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"
