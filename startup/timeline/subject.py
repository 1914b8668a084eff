"""What is started, as far as its history and its timeline are concerned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StartSubject:
    """One start, whichever engine it is of."""

    model: str
    start_method: str
    packages: tuple[str, ...]
    """Distributions whose versions matter to how long the start takes."""
    key: Callable[[Mapping[str, str]], str]
    """From those versions, a name that comparable starts share."""
    report_file: Path | None = None
    trace_file: Path | None = None
