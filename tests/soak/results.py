"""The result of the soak test as it goes to `--json`."""

from typing import Literal

from vllm_cli.bench.liveness.results import HealthPoint
from vllm_cli.bench.results import ResultPart, RunResult

SOAK_SCHEMA_VERSION = 1

Stage = Literal["warm-up", "rest", "load", "end"]
"""`rest` is the pause between warm-up and what is judged, `end` the one after it."""


class GroupSample(ResultPart, frozen=True, array_like=True):
    """What the processes of one role took at one moment."""

    rss_bytes: int
    pss_bytes: int | None
    uss_bytes: int | None
    num_fds: int
    num_threads: int
    num_processes: int

    def plus(self, other: "GroupSample") -> "GroupSample":
        """Both together."""
        return GroupSample(
            self.rss_bytes + other.rss_bytes,
            _add(self.pss_bytes, other.pss_bytes),
            _add(self.uss_bytes, other.uss_bytes),
            self.num_fds + other.num_fds,
            self.num_threads + other.num_threads,
            self.num_processes + other.num_processes,
        )


class SoakSample(ResultPart, frozen=True, kw_only=True):
    """One look at the server."""

    at_s: float
    """Since the load began."""
    stage: Stage
    groups: dict[str, GroupSample]
    """By role of the processes."""
    num_requests: int
    """Ended so far."""

    @property
    def tree(self) -> GroupSample:
        """All processes together."""
        total = GroupSample(0, 0, 0, 0, 0, 0)
        for group in self.groups.values():
            total = total.plus(group)
        return total


class HealthFigures(ResultPart, frozen=True, kw_only=True):
    """What the probes of /health saw: figures are of the load that is judged, errors of all the time."""

    num_probes: int
    num_errors: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    over_time: list[HealthPoint]
    """From the begin of the load to the end of it, the warm-up and the pause included."""


class Growth(ResultPart, frozen=True, kw_only=True):
    """How one role's memory, or that of all processes, developed under the load that is judged."""

    who: str
    measure: Literal["rss", "pss"]
    level_bytes: float
    """Where the line begins."""
    per_ten_minutes: float
    """Its slope, as a share of that."""
    growth_bytes: float
    """From its begin to its end."""
    is_flat: bool

    @property
    def is_judged(self) -> bool:
        """PSS is told but not judged: other servers on the machine that map the same weights share it."""
        return self.measure == "rss"


class RestCount(ResultPart, frozen=True, kw_only=True):
    """Files, threads and processes of one role without load: after the warm-up, and in the end."""

    who: str
    num_fds: tuple[int, int]
    num_threads: tuple[int, int]
    num_processes: tuple[int, int]
    rss_bytes: tuple[int, int]
    pss_bytes: tuple[int | None, int | None]


class Gauges(ResultPart, frozen=True, kw_only=True):
    """What the server's /metrics say in the end; null where they do not tell."""

    num_running: float | None
    num_waiting: float | None
    kv_cache_usage: float | None


class SoakSettings(ResultPart, frozen=True, kw_only=True):
    """What was asked of the server."""

    minutes: float
    warm_up_share: float
    concurrency: int
    burst: int
    prompt_tokens: int
    max_tokens: int
    sample_interval_s: float
    max_growth: float
    seed: int
    left_out: list[str]
    """Kinds of requests that the server refused at the first time."""


class SoakResult(RunResult, frozen=True, kw_only=True):
    """Everything that one run of the soak test found."""

    schema: str = "vllm-cli/bench-soak"
    target: str
    model: str
    version: str | None
    ready_after_s: float
    settings: SoakSettings
    growths: list[Growth]
    """All processes first."""
    rests: list[RestCount]
    gauges: Gauges
    settled_after_s: float | None
    """After the end of the load; null if files, threads or requests were not gone in time."""
    health: HealthFigures
    endings: dict[str, dict[str, int]]
    """Requests by kind and how they ended."""
    statuses: dict[str, int]
    problems: list[str]
    """Why the verdict is what it is; none is fine."""
    messages: list[str]
    """What the first few requests that failed or were lost said."""
    samples: list[SoakSample]

    @property
    def is_fine(self) -> bool:
        return not self.problems


def _add(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
