"""Messages between the launcher and the download helper: the job, progress and the report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from base.wording import format_bytes
from envs.redaction import without_login
from startup.errors import TIMEOUT_CAUSE, ModelNotFoundError
from startup.files.model.file_plan import Download
from startup.files.model.hub_settings import hub_endpoints

FailureKind = Literal["refused", "unreachable", "disk", "cache", "timeout", "wrong", "settings", "failed"]
"""The kind of reason for a failed download.

`refused`: the hub does not deliver the files. `disk`: the disk has no room. `cache`: the cache's folder
cannot be written to. `wrong`: the files differ from the hub's list. `settings`: variables allow no request.
"""

Show = Callable[[str], None]
"""Shows a short text in place of the previous one. The last text is empty."""
Warn = Callable[["DownloadError"], None]


@dataclass(frozen=True, kw_only=True)
class DownloadJob:
    """The job of a helper: which files to download, and from where."""

    downloads: tuple[Download, ...]
    endpoints: tuple[str, ...] = field(default_factory=hub_endpoints)
    """The addresses of the hub and its mirrors, in the order in which they are tried."""
    timeout_s: float | None = None
    """The limit for all files together, in seconds. None sets no limit."""
    stall_s: float = 300.0
    """Seconds without data after which the download fails."""
    begin_ns: int
    """When the launcher began to start the helper, in monotonic nanoseconds."""


class LogLine(NamedTuple):
    """A line for the launcher's log."""

    level: int
    text: str


class DownloadProgress(NamedTuple):
    """The progress of one download at one moment."""

    repo_id: str
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0
    """The average rate since the download began, with bytes that another process has fetched."""
    note: str = ""
    """Why the download waits. Empty if it does not wait."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate. None while nothing arrives."""
        return max(self.total_bytes - self.done_bytes, 0) / self.bytes_per_s if self.bytes_per_s > 0 else None

    def __str__(self) -> str:
        """Returns a text such as `downloading 1.2 GiB of 3.4 GiB, 25.0 MiB/s, about 90 s left`."""
        if not self.total_bytes:
            return f"downloading{f': {self.note}' if self.note else ''}"
        parts = [f"downloading {format_bytes(self.done_bytes)} of {format_bytes(self.total_bytes)}"]
        parts.append(f"{format_bytes(self.bytes_per_s)}/s")
        if self.eta_s is not None:
            parts.append(f"about {self.eta_s:.0f} s left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)


class DownloadReport(NamedTuple):
    """The result of all downloads of a job."""

    folders: tuple[Path, ...] = ()
    """The snapshot of each download, in the order of the job. Empty after a failure."""
    failure: FailureKind | None = None
    reason: str = ""
    """Why the downloads failed, in one line. Empty after a success."""
    fetched_bytes: int = 0
    took_s: float = 0.0
    spans: tuple[tuple[str, int, int], ...] = ()
    """Phases of the helper: name, begin and end in monotonic nanoseconds."""


_CAUSES: Final[dict[FailureKind, str]] = {
    "refused": "hub-unauthorized",
    "unreachable": "hub-unreachable",
    "settings": "hub-unreachable",
    "disk": "disk-full",
    "cache": "folder-not-writable",
    "timeout": TIMEOUT_CAUSE,
    "wrong": "hub-error",
    "failed": "hub-error",
}


class DownloadError(ModelNotFoundError):
    """The files could not be downloaded. The message is one line without logins."""

    def __init__(self, kind: FailureKind, reason: str, retry_s: float | None = None) -> None:
        """`retry_s`: seconds until the next attempt, 0 for an increasing wait, None if it would fail, too."""
        super().__init__(without_login(" ".join(reason.split())), cause=_CAUSES[kind])
        self.kind = kind
        self.retry_s = retry_s
