"""Keeps the times of earlier starts, from which the remaining time of a start is estimated."""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from startup.reports.timeline.report import StartReport
from startup.storage.caches import CachedValue, of_type

MAX_PER_KEY: Final = 20
_METADATA: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.(dist-info|egg-info)")


class SpanTimes(NamedTuple):
    """When a span began and ended, in seconds since the start began."""

    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """The times of a finished start in seconds. A span is one phase in one process: `process:phase`."""

    total_s: float
    spans: Mapping[str, SpanTimes]
    """The times of all spans, even of spans that did not delay the start."""

    def __post_init__(self) -> None:
        if self.total_s < 0:
            raise ValueError("a start takes no negative time")

    @classmethod
    def from_report(cls, report: StartReport) -> "StartRecord":
        times: dict[str, SpanTimes] = {}
        for span in report.spans:
            begin_s, end_s = times.get(span.key, SpanTimes(span.begin_s, span.end_s))
            begin_s, end_s = min(begin_s, span.begin_s), max(end_s, span.end_s)
            times[span.key] = SpanTimes(_round(begin_s), _round(end_s))
        return cls(total_s=_round(report.total_s), spans=times)


@dataclass(frozen=True)
class EarlierStarts:
    """Starts with the same key. There is at least one, and the oldest is first."""

    records: tuple[StartRecord, ...]

    @cached_property
    def total_s(self) -> float:
        """The median duration of these starts, in seconds."""
        return _median(record.total_s for record in self.records)

    @cached_property
    def spans(self) -> Mapping[str, SpanTimes]:
        """The median times of each span. Only starts with this span count."""
        times: dict[str, list[SpanTimes]] = {}
        for record in self.records:
            for name, of_start in record.spans.items():
                times.setdefault(name, []).append(of_start)
        medians: dict[str, SpanTimes] = {}
        for name, of_starts in times.items():
            begins_s, ends_s = zip(*of_starts, strict=True)
            medians[name] = SpanTimes(_median(begins_s), _median(ends_s))
        return medians


_RECORDS: Final = of_type(tuple[StartRecord, ...])


def read_history(key: str) -> EarlierStarts | None:
    """The earlier starts with this key (`StartSubject.history_key`). None if there are none.

    Starts during the build of an image count only until the user's first start is recorded.
    """
    records = _cached(key).read(_RECORDS)
    return EarlierStarts(records) if records else None


def record_start(key: str, record: StartRecord) -> None:
    """Adds a start to this key, and drops the key's oldest starts. Takes about a millisecond."""
    earlier = _cached(key).read(_RECORDS, is_own=True) or ()
    latest = (*earlier, record)[-MAX_PER_KEY:]
    _cached(key).write([vars(each) for each in latest])


def _cached(key: str) -> CachedValue:
    return CachedValue("history", key)


def _median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two middle ones. Importing `statistics` would take 8 ms."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def _round(time_s: float) -> float:
    return round(time_s, 4)


@dataclass(frozen=True, kw_only=True)
class StartSubject:
    """The model, engine and packages of a start, and the key under which the times of the start are kept."""

    model: str
    engine: str = "embedded"
    start_method: str
    packages: tuple[str, ...]
    """The packages whose versions influence the duration of the start."""
    history_key: Callable[[Mapping[str, str]], str]
    """Returns the key for these versions of the packages. Only comparable starts have the same key."""
    report_file: Path | None = None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of installed packages, read from the names of their metadata folders to save 30 ms."""
    wanted = {package.replace("-", "_").lower(): package for package in packages}
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        with suppress(OSError):
            names = sorted(path.name for path in folder.iterdir())
            for match in filter(None, map(_METADATA.fullmatch, names)):
                if (package := wanted.get(match["name"].lower())) is not None:
                    found.setdefault(package, match["version"])
    return dict(sorted(found.items()))
