"""Which signals a process handles by default, from /proc (proc(5))."""

import signal
from collections.abc import Iterable


def disturbing(status: str, signals: Iterable[signal.Signals]) -> set[signal.Signals]:
    """The signals that the process neither blocks nor ignores, from the text of its `/proc/PID/status`."""
    fields = dict(line.split(":", 1) for line in status.splitlines())
    quiet = int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16)
    return {number for number in signals if not quiet >> (number - 1) & 1}
