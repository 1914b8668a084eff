"""The start record: one line of JSON in the history, with which later starts are compared."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

from startup.timeline.json_fields import JsonFields
from startup.timeline.report import StartReport

_VERSION: Final = 1


class SpanTimes(NamedTuple):
    """Seconds since the start began."""

    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Times are seconds; phases and spans are named `process:phase`."""

    key: str
    """Starts with the same key are comparable (`StartSubject.key`)."""
    model: str
    total_s: float
    phases: Mapping[str, float]
    """How long the start waited for each phase."""
    spans: Mapping[str, SpanTimes]
    """When each span ran, including those beside the critical path."""
    resident_share: float | None
    """Share of the weights that was in the page cache when the start began, 0 to 1."""

    @classmethod
    def from_report(cls, report: StartReport, key: str) -> "StartRecord":
        """The record of a start that became ready."""
        page_cache = report.facts.page_cache
        return cls(
            key=key,
            model=report.facts.model,
            total_s=report.total_s,
            phases={phase.key: phase.took_s for phase in report.phases},
            spans=_span_times(report),
            resident_share=page_cache.resident_share if page_cache else None,
        )

    def to_line(self) -> str:
        """A line of JSON, without the line break."""
        spans = {name: times._asdict() for name, times in self.spans.items()}
        content = {"v": _VERSION, **asdict(self), "spans": spans}
        return json.dumps(_round(content), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: bytes) -> "StartRecord | None":
        """The record; None if the line is incomplete, edited, or of another version."""
        try:
            return cls._read(JsonFields(json.loads(line), "the line"))
        except (ValueError, OverflowError, RecursionError):
            return None

    @classmethod
    def _read(cls, fields: JsonFields) -> "StartRecord | None":
        if fields.content.get("v") != _VERSION:
            return None
        phases, spans = fields.mapping("phases"), fields.mapping("spans")
        return cls(
            key=fields.text("key"),
            model=fields.text("model"),
            total_s=fields.amount("total_s"),
            phases={name: phases.amount(name) for name in phases.content},
            spans={name: _read_times(spans.mapping(name)) for name in spans.content},
            resident_share=fields.amount("resident_share") if fields.has("resident_share") else None,
        )


def _span_times(report: StartReport) -> dict[str, SpanTimes]:
    times: dict[str, SpanTimes] = {}
    for span in report.spans:
        earlier = times.get(span.key, SpanTimes(span.begin_s, span.end_s))
        times[span.key] = SpanTimes(min(earlier.begin_s, span.begin_s), max(earlier.end_s, span.end_s))
    return times


def _read_times(fields: JsonFields) -> SpanTimes:
    return SpanTimes(fields.amount("begin_s"), fields.amount("end_s"))


def _round(value: Any) -> Any:
    """Rounds seconds to tenths of a millisecond."""
    if isinstance(value, dict):
        return {name: _round(inner) for name, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value
