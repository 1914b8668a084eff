"""The subject of a start: names and settings that its history and its report need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StartSubject:
    """One start of any engine."""

    model: str
    start_method: str
    packages: tuple[str, ...]
    """Distributions whose versions influence the duration of the start."""
    key: Callable[[Mapping[str, str]], str]
    """Returns, for these versions, a name that comparable starts share."""
    report_file: Path | None = None
    trace_file: Path | None = None
