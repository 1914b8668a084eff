"""Settings of the prefetch."""

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from server.setting import Group, check_ranges, setting

PrefetchMode = Literal["auto", "on", "off"]

MIN_BLOCK_BYTES: Final = 64 << 10
MAX_BLOCK_BYTES: Final = 1 << 30
MAX_THREADS: Final = 64


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
    num_threads: int = setting(8, "--prefetch-threads", "Threads that read.", minimum=1, maximum=MAX_THREADS)
    block_bytes: int = setting(
        16 << 20,
        "--prefetch-block-size",
        "Bytes that a thread reads at once, such as 16MiB.",
        syntax="size",
        minimum=MIN_BLOCK_BYTES,
        maximum=MAX_BLOCK_BYTES,
        expected="between 64KiB and 1GiB",
    )
    """A thread then searches for the next block that is not resident."""
    memory_bytes: int | None = None
    """Memory taken to be available; None reads it from the kernel and the cgroup."""
    progress_interval_s: float | None = None
    """Interval of progress reports; None sends none."""

    def __post_init__(self) -> None:
        check_ranges(self)
