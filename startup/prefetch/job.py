"""What the launcher tells the helper process, through its command line."""

import json
from typing import Final, NamedTuple

LIFE_FD: Final = 3
"""Where the helper finds its death pipe."""


class Job(NamedTuple):
    """The settings of one prefetch; the files follow as arguments of their own."""

    num_threads: int
    block_bytes: int
    reserve_bytes: int
    memory_bytes: int | None
    is_forced: bool
    """Whether to read also where that helps little."""
    progress_interval_s: float | None
    parent_pid: int
    begin_ns: int
    """When the launcher began to start the helper, monotonic."""

    def to_argument(self) -> str:
        """As one word of a command line."""
        return json.dumps(self)

    @classmethod
    def from_argument(cls, word: str) -> "Job":
        """What `to_argument` wrote."""
        return cls(*json.loads(word))
