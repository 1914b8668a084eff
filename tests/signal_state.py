"""What a process does about signals, as the kernel tells it (proc(5))."""

import signal
from collections.abc import Iterable


def disturbing(status: str, signals: Iterable[signal.Signals]) -> set[signal.Signals]:
    """Those that the process neither blocks nor ignores, by what was in its `/proc/PID/status`."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    quiet = int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16)
    return {number for number in signals if not quiet >> (number - 1) & 1}
