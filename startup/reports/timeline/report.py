"""The report of a start, for `--startup-report` and `/startupz`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from startup.reports.timeline.timeline import PhaseTimeline, PhaseTotal, Stretch, sum_phases

SCHEMA: Final = "vllm-cli/startup-report"
SCHEMA_VERSION: Final = 2

_BAR_WIDTH: Final = 24
_MIN_SHARE: Final = 0.01
"""The table shows phases from this share of the total time on."""
_FACTS: Final = (
    "outcome",
    "error",
    "model",
    "start_method",
    "versions",
    "page_cache",
    "compiled_model",
    "sharing",
    "cuda_graphs",
    "kernels",
)
_HEADER: Final = "     at s   took s  share  process     phase"

Outcome = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class PageCacheFacts:
    """The size of the weights, and how much of the weights was in the page cache when the start began."""

    total_bytes: int
    resident_bytes: int

    @property
    def resident_share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True, kw_only=True)
class StartFacts:
    """Facts about a start besides its times."""

    model: str
    start_method: str
    versions: Mapping[str, str] = field(default_factory=dict)
    page_cache: PageCacheFacts | None = None
    outcome: Outcome = "ready"
    error: str | None = None
    """The error that has ended the start. None if the start has not failed."""
    compiled_model: Mapping[str, Any] | None = None
    """Whether vLLM loads or compiles its model, and why. None if unknown."""
    sharing: Mapping[str, Any] | None = None
    """What the start has added to the location of `--compile-cache`. None without a location."""
    cuda_graphs: Mapping[str, Any] | None = None
    """How many CUDA graphs vLLM has captured, and whether the capture goes on. None if there are none."""
    kernels: Mapping[str, Any] | None = None
    """How many of Triton's kernels were used, and how many the engine has compiled. None if unknown."""


@dataclass(frozen=True, kw_only=True)
class StartReport(StartFacts):
    """The report of one start. Its times are seconds since the kernel started the API process."""

    created_at: str
    """The time of the report, in ISO 8601 and UTC."""
    total_s: float
    spans: tuple[Stretch, ...]
    """All recorded spans in the order of their begin. They may overlap."""
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def phases(self) -> list[PhaseTotal]:
        """The total time of each phase, without spans that only wait for another process."""
        return sum_phases(self.spans, self.total_s)

    def table(self) -> str:
        """A line for each long phase, in the order of their begin: begin, duration, share, process, name."""
        long = [each for each in self.phases if each.share >= _MIN_SHARE]
        return "\n".join([_HEADER, *map(_format_phase, long)])

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "created_at": self.created_at,
            **{name: content[name] for name in _FACTS},
            "total_s": _rounded(self.total_s),
            "phases": [_round_all(asdict(phase)) for phase in self.phases],
            "spans": [_round_all(span) for span in content["spans"]],
            "marks": _round_all(self.marks),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def build_report(timeline: PhaseTimeline, facts: StartFacts) -> StartReport:
    """The report of the start up to now, or of the whole start if it has finished."""
    spans = sorted(timeline.spans_so_far, key=lambda span: (span.begin_ns, -span.end_ns))
    return StartReport(
        **vars(facts),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        total_s=timeline.elapsed_s,
        spans=tuple(map(timeline.stretch, spans)),
        marks={name: timeline.offset_s(time_ns) for name, time_ns in dict(timeline.marks).items()},
    )


def _format_phase(phase: PhaseTotal) -> str:
    bar = "#" * max(1, round(phase.share * _BAR_WIDTH))
    figures = f"{phase.begin_s:9.3f}{phase.took_s:9.3f}{phase.share:7.1%}"
    return f"{figures}  {phase.process:<10}  {phase.name:<24}  {bar}"


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _round_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}
