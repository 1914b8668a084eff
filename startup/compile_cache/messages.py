"""What the launcher and the helper process that shares compiled models tell each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from startup.compile_cache.record import CompiledModel


@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """What to fetch, and where from."""

    locations: tuple[str, ...]
    model: str
    versions: Mapping[str, str]
    start_id: str
    """Chooses the archives if there is no digest."""
    digest: str = ""
    found_folder: str
    """Gets the records of all archives that were found."""


@dataclass(frozen=True, kw_only=True)
class AddJob:
    """What this start has loaded or compiled."""

    records: tuple[CompiledModel, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further folders of a compiled model, by its key."""
    began_s: float
    """When this start began, in seconds since 1970: kernels that are older are not its own."""
    location: str | None


@dataclass
class SharingReport:
    """What a helper has done."""

    num_models: int = 0
    num_bytes: int = 0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    is_late: bool = False
    """Whether the helper was killed because it took too long."""
