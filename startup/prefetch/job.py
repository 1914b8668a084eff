"""The settings that the launcher passes to the helper process on its command line."""

import json
from typing import Final, NamedTuple

LIFE_FD: Final = 3
"""The helper's descriptor of its death pipe."""


class Job(NamedTuple):
    """The settings of one prefetch; the files follow as further arguments."""

    num_threads: int
    block_bytes: int
    reserve_bytes: int
    memory_bytes: int | None
    is_forced: bool
    """Whether to read even if that helps little."""
    progress_interval_s: float | None
    parent_pid: int
    begin_ns: int
    """When the launcher began to start the helper, in monotonic nanoseconds."""
    pages: str | None = None
    """A record of what earlier starts have read, which is read before the files."""

    def to_argument(self) -> str:
        """The settings as one command-line argument."""
        return json.dumps(self)

    @classmethod
    def from_argument(cls, word: str) -> "Job":
        """Reads what `to_argument` has written."""
        return cls(*json.loads(word))
