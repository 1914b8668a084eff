"""The start as a trace in Chrome's event format, which Perfetto and chrome://tracing open."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from startup.timeline.report import StartReport
from startup.timeline.spans import Stretch

_CRITICAL_PATH: Final = "critical path"
_MICRO: Final = 1_000_000


def build_trace(report: StartReport) -> dict[str, Any]:
    """The trace as JSON: a track for the critical path, then one per process; times are microseconds."""
    tracks = {_CRITICAL_PATH: list(report.critical_path)}
    for span in report.spans:
        tracks.setdefault(span.process, []).append(span)
    events: list[dict[str, Any]] = []
    for number, (name, spans) in enumerate(tracks.items()):
        events += _name_track(number, name)
        events += _draw_spans(number, spans)
    events += [_draw_mark(name, time_s) for name, time_s in report.marks.items()]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"model": report.facts.model, "outcome": report.facts.outcome, "created_at": report.created_at},
    }


def _name_track(number: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": number, "tid": 0, "args": {"sort_index": number}}


def _draw_spans(number: int, spans: Iterable[Stretch]) -> Iterator[dict[str, Any]]:
    rows: list[list[Stretch]] = []
    for span in sorted(spans, key=lambda span: (span.begin_s, -span.end_s)):
        begin, end = round(span.begin_s * _MICRO), round(span.end_s * _MICRO)
        yield {
            "ph": "X",
            "name": span.name,
            "cat": "startup",
            "pid": number,
            "tid": _find_row(rows, span),
            "ts": begin,
            "dur": end - begin,
            "args": {"process": span.process, "waits_for": span.waits_for},
        }


def _find_row(rows: list[list[Stretch]], span: Stretch) -> int:
    """The first row (a thread, in the format) where the span overlaps others only by nesting."""
    for index, open_spans in enumerate(rows):
        while open_spans and open_spans[-1].end_s <= span.begin_s:
            open_spans.pop()
        if not open_spans or span.end_s <= open_spans[-1].end_s:
            open_spans.append(span)
            return index
    rows.append([span])
    return len(rows) - 1


def _draw_mark(name: str, time_s: float) -> dict[str, Any]:
    return {"ph": "i", "s": "g", "name": name, "cat": "startup", "pid": 0, "tid": 0, "ts": round(time_s * _MICRO)}
