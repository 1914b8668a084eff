"""The result of the soak test, as it is written to `--json`."""

from typing import Literal

from vllm_cli.bench.results import ResultPart, RunResult

SOAK_SCHEMA_VERSION = 1

Stage = Literal["warm-up", "rest", "load", "end"]
"""`rest` is the pause between the warm-up and the judged load, `end` the pause after it."""


class GroupSample(ResultPart, frozen=True, array_like=True):
    """The resources of the processes of one role at one moment."""

    rss_bytes: int
    num_fds: int
    num_threads: int
    num_processes: int

    def plus(self, other: "GroupSample") -> "GroupSample":
        """The sum of both."""
        return GroupSample(
            self.rss_bytes + other.rss_bytes,
            self.num_fds + other.num_fds,
            self.num_threads + other.num_threads,
            self.num_processes + other.num_processes,
        )


class SoakSample(ResultPart, frozen=True, kw_only=True):
    """One sample of the server."""

    at_s: float
    """Since the load began."""
    stage: Stage
    groups: dict[str, GroupSample]
    """By role of the processes."""
    num_requests: int
    """Requests that have ended so far."""

    @property
    def tree(self) -> GroupSample:
        """All processes together."""
        total = GroupSample(0, 0, 0, 0)
        for group in self.groups.values():
            total = total.plus(group)
        return total


class HealthFigures(ResultPart, frozen=True, kw_only=True):
    """Probes of /health: latencies during the judged load, errors during the whole run."""

    num_probes: int
    num_errors: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class Growth(ResultPart, frozen=True, kw_only=True):
    """Growth of one role's memory (RSS), or of all processes', under the judged load."""

    who: str
    level_bytes: float
    """Value at the begin of the fitted line."""
    per_ten_minutes: float
    """Slope of the line, as a share of that value."""
    growth_bytes: float
    """From the begin to the end of the line."""
    wave_bytes: float
    """Differences between samples without this growth; a smaller growth cannot be told from them."""
    is_flat: bool


class Rest(ResultPart, frozen=True):
    """The resources of one role without load: after the warm-up, and at the end."""

    who: str
    before: GroupSample
    after: GroupSample


class Gauges(ResultPart, frozen=True, kw_only=True):
    """The server's /metrics at the end; null if missing."""

    num_running: float | None
    num_waiting: float | None
    kv_cache_usage: float | None


class SoakResult(RunResult, frozen=True, kw_only=True):
    """The result of one run of the soak test."""

    schema: str = "vllm-cli/bench-soak"
    target: str
    model: str
    version: str | None
    ready_after_s: float
    settings: dict[str, float]
    """Of the load, as on the command line."""
    left_out: list[str]
    """Kinds of requests that the server rejected at the start."""
    growths: list[Growth]
    """All processes together first."""
    rests: list[Rest]
    gauges: Gauges
    settled_after_s: float | None
    """Time after the load until everything was released; null if that took too long."""
    health: HealthFigures
    endings: dict[str, dict[str, int]]
    """Number of requests by kind and ending."""
    statuses: dict[str, int]
    problems: list[str]
    """Reasons to fail; empty if passed."""
    messages: list[str]
    """Messages of the first few failed or lost requests."""
    samples: list[SoakSample]

    @property
    def is_fine(self) -> bool:
        return not self.problems
