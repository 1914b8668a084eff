"""The report of a start, for `--startup-report`, `/startupz` and `vllm-cli timeline`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from base.json_depth import check_depth
from startup.reports.timeline.spans import UNEXPLAINED, PhaseTotal, Stretch, sum_phases
from startup.reports.timeline.timeline import PhaseTimeline

SCHEMA: Final = "vllm-cli/startup-report"
SCHEMA_VERSION: Final = 1

_BAR_WIDTH: Final = 24
_MIN_SHARE: Final = 0.01
"""Spans beside the critical path are left out if their share of the total is smaller."""
_FACTS: Final = ("outcome", "error", "model", "start_method", "versions", "page_cache", "compiled_model")
_HEADER: Final = "     at s   took s  share  process     phase"

Outcome = Literal["starting", "ready", "failed"]


@dataclass(frozen=True, kw_only=True)
class PageCacheFacts:
    """How many bytes of the weights were in the page cache when the start began."""

    total_bytes: int
    resident_bytes: int

    @property
    def resident_share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True, kw_only=True)
class StartFacts:
    """Facts about a start besides its timeline."""

    model: str
    start_method: str
    versions: Mapping[str, str] = field(default_factory=dict)
    page_cache: PageCacheFacts | None = None
    outcome: Outcome = "ready"
    error: str | None = None
    """Why the start failed. None if it did not fail."""
    compiled_model: Mapping[str, Any] | None = None
    """Whether vLLM loads or compiles its model, and why. None if unknown."""


@dataclass(frozen=True, kw_only=True)
class _Times:
    """When everything happened, in seconds since the kernel started the API process."""

    created_at: str
    """Time of the report: ISO 8601, UTC."""
    total_s: float
    critical_path: tuple[Stretch, ...]
    """Stretches without gaps, from 0 to `total_s`."""
    spans: tuple[Stretch, ...]
    """All recorded spans in the order of their begin. They may overlap."""
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StartReport(_Times):
    """The report of one start: facts and times."""

    facts: StartFacts

    @property
    def phases(self) -> list[PhaseTotal]:
        """The critical path, summed up by phase."""
        return sum_phases(self.critical_path)

    @property
    def explained_share(self) -> float:
        """The share of the start that spans cover, 0 to 1."""
        return 1.0 - sum(phase.share for phase in self.phases if phase.name == UNEXPLAINED)

    def table(self) -> str:
        """A line for each phase, in the order of begin: begin, duration, share, process, name."""
        return format_phases(self.critical_path, [span for span in self.spans if span.waits_for is None])

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        facts = asdict(self.facts)
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "created_at": self.created_at,
            **{name: facts[name] for name in _FACTS},
            "total_s": _rounded(self.total_s),
            "explained_share": _rounded(self.explained_share),
            "phases": [_round_all(asdict(phase)) for phase in self.phases],
            "critical_path": [_round_all(asdict(stretch)) for stretch in self.critical_path],
            "spans": [_round_all(asdict(span)) for span in self.spans],
            "marks": _round_all(self.marks),
        }

    def to_json(self) -> str:
        """The report as indented JSON, with a line break at the end."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def build_report(timeline: PhaseTimeline, facts: StartFacts) -> StartReport:
    """The report of the start so far. Once the timeline is finished, of the whole start."""
    spans = sorted(timeline.spans_so_far, key=lambda span: (span.begin_ns, -span.end_ns))
    path = timeline.critical_path
    return StartReport(
        facts=facts,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        total_s=timeline.offset_s(path[-1].end_ns) if path else 0.0,
        critical_path=tuple(map(timeline.stretch, path)),
        spans=tuple(map(timeline.stretch, spans)),
        marks={name: timeline.offset_s(time_ns) for name, time_ns in dict(timeline.marks).items()},
    )


class ReportError(ValueError):
    """The text is not a start-up report of this schema. The message is one line."""


@dataclass(frozen=True)
class _Schema:
    schema: str
    schema_version: int


def read_report(text: str) -> StartReport:
    """Reads a report that `StartReport.to_json` has written. Ignores unknown members.

    Raises:
        ReportError: names the invalid member, as the file may have been edited.
    """
    import msgspec  # noqa: PLC0415 - a start only writes reports

    try:
        check_depth(text)
        found = msgspec.json.decode(text, type=_Schema)
        if found != _Schema(SCHEMA, SCHEMA_VERSION):
            wanted = f"{SCHEMA} {SCHEMA_VERSION}"
            raise ReportError(f"its schema is {found.schema} {found.schema_version}, this program reads {wanted}")
        times = msgspec.json.decode(text, type=_Times)
        return StartReport(facts=msgspec.json.decode(text, type=StartFacts), **vars(times))
    except ValueError as err:
        raise ReportError(str(err)) from err


def format_phases(path: Sequence[Stretch], spans: Iterable[Stretch] = ()) -> str:
    """The critical path with bars, then the spans that ran beside it without delaying the start."""
    phases = sum_phases(path)
    lines = [_HEADER, *map(_format_phase, phases)]
    hidden = _find_hidden(phases, spans)
    if hidden:
        lines.append("meanwhile, without delaying the start:")
        lines += [f"{s.begin_s:9.3f}{s.took_s:9.3f}         {s.process:<10}  {s.name}" for s in hidden]
    return "\n".join(lines)


def _format_phase(phase: PhaseTotal) -> str:
    bar = "#" * (max(1, round(phase.share * _BAR_WIDTH)) if phase.share >= _MIN_SHARE else 0)
    figures = f"{phase.begin_s:9.3f}{phase.took_s:9.3f}{phase.share:7.1%}"
    return f"{figures}  {phase.process:<10}  {phase.name:<24}  {bar}".rstrip()


def _find_hidden(phases: list[PhaseTotal], spans: Iterable[Stretch]) -> list[Stretch]:
    """Spans that ran mostly (more than half) while the start waited for something else."""
    shown_s = {phase.key: phase.took_s for phase in phases}
    least_s = _MIN_SHARE * sum(shown_s.values())
    hidden = [span for span in spans if span.took_s - 2 * shown_s.get(span.key, 0.0) >= least_s]
    return sorted(hidden, key=lambda span: span.begin_s)


def _rounded(value: Any) -> Any:
    """Rounds seconds to microseconds."""
    return round(value, 6) if isinstance(value, float) else value


def _round_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}
