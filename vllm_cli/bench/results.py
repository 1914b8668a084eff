"""The result of a run as it goes to `--json` and comes back as a baseline."""

from typing import Literal

import msgspec

from vllm_cli.bench.dialect import TokenSource

SCHEMA_VERSION = 1


class RoundFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One round of one side at one level; a figure that could not be measured is null."""

    output_tokens_per_s: float
    requests_per_s: float
    ttft_p50_ms: float | None
    """Time to the first text; null unless streamed."""
    ttft_p99_ms: float | None
    itl_p50_ms: float | None
    """Gap between two pieces of text of one request."""
    itl_p99_ms: float | None
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    health_p50_ms: float | None
    health_p99_ms: float | None
    health_max_ms: float | None
    duration_s: float
    num_requests: int
    num_errors: int
    num_short: int
    """Requests that ended before `max_tokens`."""
    prompt_tokens: int
    output_tokens: int
    num_probes: int
    num_probe_errors: int
    client_cpu_share: float
    """Share of one processor that the load generator took."""
    errors: list[str]
    """The first few different error messages."""


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure over the rounds."""

    median: float
    min: float
    max: float


class LevelResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One side at one level."""

    concurrency: int
    summary: dict[str, Spread]
    """By figure, over the rounds that have it."""
    rounds: list[RoundFigures]


class SideResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server's results."""

    name: str
    target: str
    """The URL or the command, without secrets."""
    model: str
    version: str | None
    ready_after_s: float | None
    """From starting the command to its first completion; null for a server that ran already."""
    token_source: TokenSource
    """`usage`: as the server counts; `chunks`: pieces of text, where the server sends no usage."""
    has_ignore_eos: bool
    """False if the server does not take `ignore_eos`, so that answers may end early."""
    levels: list[LevelResult]


class LevelRatio(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Side A over another side, taken round by round, at one level."""

    against: str
    concurrency: int
    ratios: dict[str, Spread]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked of every side."""

    endpoint: Literal["completions", "chat"]
    stream: bool
    max_tokens: int
    prompt_tokens: int
    ignore_eos: bool
    num_rounds: int
    num_requests: dict[int, int]
    """Requests per round, by level."""
    idle: Literal["pause", "run", "stop"]
    seed: int


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the run took place."""

    system: str
    processor: str
    num_cpus: int
    memory_gib: float
    python: str

    @property
    def description(self) -> str:
        return f"{self.processor}, {self.num_cpus} CPUs, {self.memory_gib:g} GiB"


class BenchResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one run of `bench serve` found."""

    schema_version: int
    created_at: str
    """ISO 8601, UTC."""
    machine: Machine
    settings: Settings
    sides: list[SideResult]
    ratios: list[LevelRatio]

    @property
    def num_errors(self) -> int:
        return sum(figures.num_errors for side in self.sides for level in side.levels for figures in level.rounds)


def encode_result(result: msgspec.Struct) -> str:
    """The result as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"
