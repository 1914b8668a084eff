"""Records of earlier starts in the cache folder: the source of the ETA.

No fault of the file, the folder or the disk fails a start: unreadable records count as absent, and a record
that cannot be written is dropped.
"""

import fcntl
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from base.json_depth import check_depth
from base.machine.files import write_whole
from startup.caches import cache_folder, layers
from startup.timeline.report import StartReport

logger = logging.getLogger(__name__)

MAX_PER_KEY: Final = 20
MAX_RECORDS: Final = 200
_MAX_FILE_BYTES: Final = 4 << 20
"""A larger file was not written by this module, and is ignored."""
_FILE: Final = "history.jsonl"

_METADATA: Final = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)\.(dist-info|egg-info)")


class SpanTimes(NamedTuple):
    """Seconds since the start began."""

    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """Times are seconds; spans are named `process:phase`."""

    key: str
    """Starts with the same key are comparable (`StartSubject.key`)."""
    model: str
    total_s: float
    spans: Mapping[str, SpanTimes]
    """When each span ran, including those beside the critical path."""
    version: Literal[2] = 2
    """Version of this format."""

    def __post_init__(self) -> None:
        if self.total_s < 0:
            raise ValueError("a start takes no negative time")

    @classmethod
    def from_report(cls, report: StartReport, key: str) -> "StartRecord":
        """The record of a start that became ready."""
        return cls(
            key=key,
            model=report.facts.model,
            total_s=report.total_s,
            spans=_span_times(report),
        )

    def to_line(self) -> str:
        """A line of JSON, without the line break."""
        return json.dumps(_round(asdict(self)), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: bytes) -> "StartRecord | None":
        """The record; None if the line is incomplete, edited, or of another version."""
        import msgspec  # noqa: PLC0415 - the preflight needs it too, a little later

        try:
            check_depth(line)
            return msgspec.json.decode(line, type=cls)
        except ValueError:
            return None


def history_path() -> Path:
    """The history file."""
    return cache_folder() / _FILE


@dataclass(frozen=True)
class EarlierStarts:
    """Starts with the same key, the oldest first; there is at least one."""

    records: tuple[StartRecord, ...]

    @cached_property
    def total_s(self) -> float:
        """The median."""
        return _median(record.total_s for record in self.records)

    @cached_property
    def spans(self) -> Mapping[str, SpanTimes]:
        """Medians over the starts that had the span."""
        names = {name for record in self.records for name in record.spans}
        return {name: _median_times([r.spans[name] for r in self.records if name in r.spans]) for name in names}


def read_history(key: str, path: Path | None = None) -> EarlierStarts | None:
    """The earlier starts with this key; None if there are none, or none that can be read.

    Without a path, the starts of an image's build count until there is one of the user's own.
    """
    for place in (path,) if path else layers(_FILE):
        lines = [line for line in _read(place).splitlines() if key.encode() in line]
        records = tuple(record for record in _parse(lines) if record.key == key)
        if records:
            return EarlierStarts(records[-MAX_PER_KEY:])
    return None


def record_start(record: StartRecord, path: Path | None = None) -> None:
    """Adds a start to the file, which keeps only the newest ones; takes about a millisecond."""
    path = path or history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise FileExistsError(f"{path} is not a file")
        with _lock(path) as is_locked:
            if is_locked:
                _add(record, path)
    except OSError as err:
        logger.debug("this start is not recorded in %s: %s", path, err)


def _add(record: StartRecord, path: Path) -> None:
    """Appends a line of its own, even after an incomplete one; drops old records now and then."""
    content = _read(path)
    lines = content.splitlines()
    if not lines or len(lines) >= 2 * MAX_RECORDS:
        kept = _newest([*_parse(lines), record])
        write_whole(path, "".join(f"{earlier.to_line()}\n" for earlier in kept))
        return
    with path.open("ab") as file:
        file.write(b"" if content.endswith(b"\n") else b"\n")
        file.write(f"{record.to_line()}\n".encode())


def _median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two in the middle; importing `statistics` takes 8 ms."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _median_times(times: Sequence[SpanTimes]) -> SpanTimes:
    return SpanTimes(_median(time.begin_s for time in times), _median(time.end_s for time in times))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES else b""
    except OSError as err:
        logger.debug("earlier starts cannot be read from %s: %s", path, err)
        return b""


def _parse(lines: Iterable[bytes]) -> list[StartRecord]:
    return [record for line in lines if (record := StartRecord.from_line(line))]


def _newest(records: list[StartRecord]) -> list[StartRecord]:
    kept: list[StartRecord] = []
    counts: dict[str, int] = {}
    for record in reversed(records[-MAX_RECORDS * MAX_PER_KEY :]):
        counts[record.key] = counts.get(record.key, 0) + 1
        if counts[record.key] <= MAX_PER_KEY and len(kept) < MAX_RECORDS:
            kept.append(record)
    return kept[::-1]


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Yields True for one process at a time; a start that would have to wait is not recorded."""
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _span_times(report: StartReport) -> dict[str, SpanTimes]:
    times: dict[str, SpanTimes] = {}
    for span in report.spans:
        earlier = times.get(span.key, SpanTimes(span.begin_s, span.end_s))
        times[span.key] = SpanTimes(min(earlier.begin_s, span.begin_s), max(earlier.end_s, span.end_s))
    return times


def _round(value: Any) -> Any:
    """Rounds seconds to tenths of a millisecond."""
    if isinstance(value, dict):
        return {name: _round(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_round(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


@dataclass(frozen=True, kw_only=True)
class StartSubject:
    """One start of any engine."""

    model: str
    engine: str = "embedded"
    start_method: str
    packages: tuple[str, ...]
    """Distributions whose versions influence the duration of the start."""
    key: Callable[[Mapping[str, str]], str]
    """Returns, for these versions, a name that comparable starts share."""
    report_file: Path | None = None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed; the first folder of `sys.path` that has one counts.

    From the names of metadata folders: reading the metadata takes 30 ms.
    """
    wanted = {package.replace("-", "_").lower(): package for package in packages}
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for name, version in _list_versions(folder):
            if name in wanted:
                found.setdefault(wanted[name], version)
    return dict(sorted(found.items()))


def _list_versions(folder: Path) -> list[tuple[str, str]]:
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError:
        return []
    matches = filter(None, map(_METADATA.fullmatch, names))
    return [(match["name"].replace("-", "_").lower(), match["version"]) for match in matches]
