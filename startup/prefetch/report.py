"""What a prefetch did; made in the helper process, read in the launcher."""

from typing import Any, Literal, NamedTuple

MOST_PROBLEMS = 8
"""More are not told, so that a report always fits into the pipe."""

PrefetchState = Literal["done", "off", "stopped", "failed"]


class PrefetchProgress(NamedTuple):
    """How far a prefetch is, in bytes."""

    done_bytes: int
    """Resident now."""
    due_bytes: int
    """What was not resident at the beginning and is to be read."""
    elapsed_s: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(self.done_bytes / self.due_bytes, 1.0) if self.due_bytes else 1.0

    @property
    def gb_per_s(self) -> float:
        """Rate so far in 10**9 bytes per second."""
        return self.done_bytes / self.elapsed_s / 1e9 if self.elapsed_s else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate, None while it is not known."""
        left = self.due_bytes - self.done_bytes
        return left / self.done_bytes * self.elapsed_s if self.done_bytes else None


class PrefetchReport(NamedTuple):
    """The end of a prefetch, in bytes and seconds."""

    state: PrefetchState
    """`off`: there was nothing to do, or it could not help; `stopped`: it ended early; `failed`: it could not run."""
    reason: str | None = None
    """Why it is not `done`, or why it left a part."""
    num_files: int = 0
    total_bytes: int = 0
    resident_bytes: int = 0
    """Of them, in the page cache before the prefetch began."""
    read_bytes: int = 0
    """Not resident before, resident now; a loader may have read some of it meanwhile."""
    read_s: float = 0.0
    problems: tuple[str, ...] = ()
    """Files that could not be read, the first of them."""
    spans: tuple[tuple[str, int, int], ...] = ()
    """Phases of the helper: name, begin and end in monotonic nanoseconds."""

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "PrefetchReport":
        """The report that JSON has been through."""
        spans = tuple((str(name), int(begin), int(end)) for name, begin, end in fields["spans"])
        return cls(**{**fields, "problems": tuple(fields["problems"]), "spans": spans})

    @property
    def resident_share(self) -> float:
        """Share of the files that was in the page cache before, 0 to 1."""
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def gb_per_s(self) -> float:
        """Rate of reading in 10**9 bytes per second; 0 where nothing was read."""
        return self.read_bytes / self.read_s / 1e9 if self.read_s else 0.0

    def __str__(self) -> str:
        what = f"{self.total_bytes / 1e9:.2f} GB in {self.num_files} files, {self.resident_share:.0%} resident before"
        if self.read_bytes:
            what += f", {self.read_bytes / 1e9:.2f} GB read in {self.read_s:.2f} s ({self.gb_per_s:.2f} GB/s)"
        return f"prefetch {self.state}{f' ({self.reason})' if self.reason else ''}: {what}"
