"""Settings of the prefetch."""

from dataclasses import dataclass
from typing import Final, Literal

from server.config import ConfigError

PrefetchMode = Literal["auto", "on", "off"]

MIN_BLOCK_BYTES: Final = 64 << 10
MAX_BLOCK_BYTES: Final = 1 << 30
MAX_THREADS: Final = 64


@dataclass(frozen=True, kw_only=True)
class PrefetchOptions:
    """How files are read into the page cache."""

    mode: PrefetchMode = "auto"
    """`auto` leaves it where it cannot help; `on` reads whatever fits, even if that is a small part; `off` never."""
    num_threads: int = 8
    block_bytes: int = 16 << 20
    """How much a thread reads before it looks for the next block that is not resident."""
    reserve_bytes: int = 1 << 30
    """Memory that is left to the imports and the engine."""
    memory_bytes: int | None = None
    """Memory taken to be available; None asks the kernel and the cgroup."""
    progress_interval_s: float | None = None
    """How often progress is told; None never."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_threads <= MAX_THREADS:
            raise ConfigError("--prefetch-threads", self.num_threads, f"between 1 and {MAX_THREADS}")
        if not MIN_BLOCK_BYTES <= self.block_bytes <= MAX_BLOCK_BYTES:
            raise ConfigError("--prefetch-block-size", self.block_bytes, "between 64KiB and 1GiB")
