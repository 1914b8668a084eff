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
"""Spans that are not on the critical path are shown only from this share of the total time on."""
_FACTS: Final = ("outcome", "error", "model", "start_method", "versions", "page_cache", "compiled_model", "cuda_graphs")
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
    cuda_graphs: Mapping[str, Any] | None = None
    """How many CUDA graphs vLLM has captured, and whether the capture goes on. None if there are none."""


@dataclass(frozen=True, kw_only=True)
class StartReport(StartFacts):
    """The report of one start. Its times are seconds since the kernel started the API process."""

    created_at: str
    """The time of the report, in ISO 8601 and UTC."""
    total_s: float
    critical_path: tuple[Stretch, ...]
    """The spans, or parts of spans, that cover the time from 0 to `total_s` without gaps."""
    spans: tuple[Stretch, ...]
    """All recorded spans in the order of their begin. They may overlap."""
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def phases(self) -> list[PhaseTotal]:
        """The total time of each phase on the critical path, which has the spans that delayed the start."""
        return sum_phases(self.critical_path)

    @property
    def explained_share(self) -> float:
        """The share of the start's time that spans cover, 0 to 1."""
        return 1.0 - sum(phase.share for phase in self.phases if phase.name == UNEXPLAINED)

    def table(self) -> str:
        """A line for each phase, in the order of their begin: begin, duration, share, process and name."""
        return format_phases(self.critical_path, [span for span in self.spans if span.waits_for is None])

    def to_dict(self) -> dict[str, Any]:
        content = asdict(self)
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "created_at": self.created_at,
            **{name: content[name] for name in _FACTS},
            "total_s": _rounded(self.total_s),
            "explained_share": _rounded(self.explained_share),
            "phases": [_round_all(asdict(phase)) for phase in self.phases],
            "critical_path": [_round_all(stretch) for stretch in content["critical_path"]],
            "spans": [_round_all(span) for span in content["spans"]],
            "marks": _round_all(self.marks),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def build_report(timeline: PhaseTimeline, facts: StartFacts) -> StartReport:
    """The report of the start up to now, or of the whole start if it has finished."""
    spans = sorted(timeline.spans_so_far, key=lambda span: (span.begin_ns, -span.end_ns))
    path = timeline.critical_path
    return StartReport(
        **vars(facts),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        total_s=timeline.offset_s(path[-1].end_ns) if path else 0.0,
        critical_path=tuple(map(timeline.stretch, path)),
        spans=tuple(map(timeline.stretch, spans)),
        marks={name: timeline.offset_s(time_ns) for name, time_ns in dict(timeline.marks).items()},
    )


class ReportError(ValueError):
    """The text is not a report that this version reads. The message is one line."""


@dataclass(frozen=True)
class _Schema:
    schema: str
    schema_version: int


def read_report(text: str) -> StartReport:
    """Reads a report that `StartReport.to_json` has written. Ignores unknown members.

    Raises:
        ReportError: the text is not a valid report. The message names the first invalid member.
    """
    import msgspec  # noqa: PLC0415 - a start only writes reports

    try:
        check_depth(text)
        found = msgspec.json.decode(text, type=_Schema)
        if found != _Schema(SCHEMA, SCHEMA_VERSION):
            wanted = f"{SCHEMA} {SCHEMA_VERSION}"
            raise ReportError(f"its schema is {found.schema} {found.schema_version}, this program reads {wanted}")
        return msgspec.json.decode(text, type=StartReport)
    except ValueError as err:
        raise ReportError(str(err)) from err


def format_phases(path: Sequence[Stretch], spans: Iterable[Stretch] = ()) -> str:
    """A table of the critical path with bars, then a table of spans that did not delay the start."""
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
    """The spans that ran for more than half of their time without being on the critical path."""
    shown_s = {phase.key: phase.took_s for phase in phases}
    least_s = _MIN_SHARE * sum(shown_s.values())
    hidden = [span for span in spans if span.took_s - 2 * shown_s.get(span.key, 0.0) >= least_s]
    return sorted(hidden, key=lambda span: span.begin_s)


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def _round_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}
