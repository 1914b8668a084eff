"""Reads a start-up report from a file, which may have been edited."""

import json
from typing import Any

from startup.timeline.json_fields import JsonFields
from startup.timeline.phase_table import Stretch
from startup.timeline.report import SCHEMA, SCHEMA_VERSION, PageCacheFacts, StartFacts, StartReport


class ReportError(ValueError):
    """The text is not a start-up report of this schema; the message is one line."""


def read_report(text: str) -> StartReport:
    """The report that `StartReport.to_json` wrote; unknown members are ignored.

    Raises:
        ReportError: names the invalid member and its value.
    """
    try:
        return _read_report(json.loads(text))
    except (ValueError, OverflowError, RecursionError) as err:
        raise ReportError(str(err)) from err


def _read_report(content: Any) -> StartReport:
    fields = JsonFields(content, "the report")
    if fields.text("schema") != SCHEMA:
        raise ValueError(f"its schema is {fields.text('schema')!r}, not {SCHEMA!r}")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"its schema version is {content.get('schema_version')!r}, this program reads {SCHEMA_VERSION}"
        )
    spans = [JsonFields(item, "a span") for item in fields.items("spans")]
    return StartReport(
        facts=_read_facts(fields),
        created_at=fields.text("created_at"),
        total_s=fields.amount("total_s"),
        critical_path=tuple(_read_stretch(JsonFields(item, "the path")) for item in fields.items("critical_path")),
        spans=tuple(map(_read_stretch, spans)),
        waits={_read_stretch(span).key: span.text("waits_for") for span in spans if span.has("waits_for")},
        marks={name: fields.mapping("marks").amount(name) for name in fields.mapping("marks").content},
    )


def _read_facts(fields: JsonFields) -> StartFacts:
    outcome = fields.text("outcome")
    if outcome not in ("starting", "ready", "failed"):
        raise ValueError(f"outcome is {outcome!r}, not starting, ready or failed")
    page_cache = fields.mapping("page_cache") if fields.has("page_cache") else None
    return StartFacts(
        model=fields.text("model"),
        start_method=fields.text("start_method"),
        versions={name: str(value) for name, value in fields.mapping("versions").content.items()},
        page_cache=_read_page_cache(page_cache) if page_cache else None,
        outcome=outcome,  # type: ignore[arg-type]
        error=fields.text("error") if fields.has("error") else None,
    )


def _read_page_cache(fields: JsonFields) -> PageCacheFacts:
    total, resident = fields.amount("total_bytes"), fields.amount("resident_bytes")
    return PageCacheFacts(total_bytes=int(total), resident_bytes=int(resident))


def _read_stretch(fields: JsonFields) -> Stretch:
    stretch = Stretch(fields.text("process"), fields.text("name"), fields.amount("begin_s"), fields.amount("end_s"))
    if stretch.took_s < 0:
        raise ValueError(f"{stretch.key} ends at {stretch.end_s:g} s, before it begins at {stretch.begin_s:g} s")
    return stretch
