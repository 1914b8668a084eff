"""Settings of the prefetch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from base.setting import Group, setting

PrefetchMode = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class PrefetchOptions:
    """How files are read into the page cache."""

    help_group: ClassVar[Group] = "Start"

    mode: PrefetchMode = setting(
        "auto",
        "--prefetch",
        "Read the weights into the page cache during the imports; auto does so if it can help.",
    )
    """`on` reads as much as fits in memory, however little that is; `off` reads nothing."""
    num_threads: int = 8
    """Threads that read."""
    block_bytes: int = 16 << 20
    """What a thread reads at once; then it searches for the next block that is not resident."""
    memory_bytes: int | None = None
    """Memory taken to be available; None reads it from the kernel and the cgroup."""
    progress_interval_s: float | None = None
    """Interval of progress reports; None sends none."""
