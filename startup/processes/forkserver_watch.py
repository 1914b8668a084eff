"""Kills a forkserver that does nothing while a process waits for it. The waiting process gets an error."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from base.machine.processes import stat_fields
from startup.processes import group_signals

_POLL_S: Final = 0.5
_MOST_IDLE_POLLS: Final = 120
"""The most polls in a row without progress. The limit is high, because a network disk can delay an import."""
_MOST_STOPPED_POLLS: Final = 20
"""The most polls in a row that find the forkserver stopped. Job control stops the polling process, too."""
_STOPPED: Final = ("T", "t")


@contextmanager
def ended_if_it_hangs(pid: int) -> Iterator[None]:
    """Kills the forkserver if it hangs while this block waits for it. The block's error names the reason."""
    watch = _Watch(pid)
    group_signals.start_thread("forkserver-watch", watch.run)
    try:
        yield
    except Exception as err:
        if watch.reason:
            raise type(err)(f"the forkserver was {watch.reason}, and was killed") from err
        raise
    finally:
        watch.has_ended.set()


class _Watch:
    """Counts polls instead of seconds, so that the count pauses while this process is stopped as well."""

    def __init__(self, pid: int) -> None:
        self.has_ended = threading.Event()
        self.reason = ""
        """Why the forkserver was killed. Empty if it was not killed."""
        self._pid = pid

    def run(self) -> None:
        last, num_polls = "", 0
        while not self.has_ended.wait(_POLL_S):
            try:
                state, *fields = stat_fields(self._pid)
            except (OSError, ValueError):
                return
            now = " ".join(fields[6:13])  # page faults and processor time, also of its children (proc(5))
            num_polls = num_polls + 1 if now == last else 0
            last = now
            if num_polls >= (_MOST_STOPPED_POLLS if state in _STOPPED else _MOST_IDLE_POLLS):
                self.reason = "stopped" if state in _STOPPED else f"idle for {num_polls * _POLL_S:.0f} s"
                with suppress(OSError):
                    os.kill(self._pid, signal.SIGKILL)
                return
