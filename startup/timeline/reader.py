"""Reads reports and records of starts from files, which may have been edited."""

import json
import math
from collections.abc import Callable
from typing import Any

from startup.timeline.report import SCHEMA, SCHEMA_VERSION, PageCacheFacts, StartFacts, StartReport
from startup.timeline.spans import Stretch


class JsonFields:
    """A JSON object; a member of an unexpected type raises a ValueError with its name and value."""

    def __init__(self, content: Any, what: str) -> None:
        if not isinstance(content, dict):
            raise ValueError(f"{what} is not a JSON object")
        self.content: dict[str, Any] = content
        self._what = what

    def text(self, name: str) -> str:
        """A string."""
        return str(self._take(name, "a text", lambda value: isinstance(value, str)))

    def amount(self, name: str) -> float:
        """A finite number, 0 or more."""
        return float(self._take(name, "a number, 0 or more", _is_amount))

    def items(self, name: str) -> list[Any]:
        """A list of anything."""
        return list(self._take(name, "a list", lambda value: isinstance(value, list)))

    def mapping(self, name: str) -> "JsonFields":
        """An inner object."""
        return JsonFields(self._take(name, "an object", lambda value: isinstance(value, dict)), name)

    def has(self, name: str) -> bool:
        """Whether the member is present and not null."""
        return self.content.get(name) is not None

    def _take(self, name: str, expected: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self.content.get(name)
        if not is_valid(value):
            raise ValueError(f"{name} of {self._what} is {value!r:.40}, not {expected}")
        return value


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
    return StartReport(
        facts=_read_facts(fields),
        created_at=fields.text("created_at"),
        total_s=fields.amount("total_s"),
        critical_path=tuple(_read_stretch(item, "the path") for item in fields.items("critical_path")),
        spans=tuple(_read_stretch(item, "a span") for item in fields.items("spans")),
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


def _read_stretch(content: Any, what: str) -> Stretch:
    fields = JsonFields(content, what)
    stretch = Stretch(
        fields.text("process"),
        fields.text("name"),
        fields.amount("begin_s"),
        fields.amount("end_s"),
        fields.text("waits_for") if fields.has("waits_for") else None,
    )
    if stretch.took_s < 0:
        raise ValueError(f"{stretch.key} ends at {stretch.end_s:g} s, before it begins at {stretch.begin_s:g} s")
    return stretch


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < math.inf
