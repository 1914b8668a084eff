"""Kills a forkserver that does nothing while a process waits for it. The waiting process gets an error."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from base.machine.processes import stat_fields
from startup.ground.processes import group_signals

_POLL_S: Final = 0.5
_MOST_IDLE_POLLS: Final = 120
"""Polls without progress. They are so many because a network disk can hold up an import for long."""
_MOST_STOPPED_POLLS: Final = 20
"""Polls in a stopped state: job control stops all processes of a start, but a debugger may stop one."""
_STOPPED: Final = ("T", "t")


@contextmanager
def ended_if_it_hangs(pid: int) -> Iterator[None]:
    """Kills the forkserver if it hangs while this block waits for it. The block's error names the reason."""
    watch = _Watch(pid)
    group_signals.start_thread(watch)
    try:
        yield
    except Exception as err:
        if watch.reason:
            raise type(err)(f"the forkserver was {watch.reason}, and was killed") from err
        raise
    finally:
        watch.has_ended.set()


class _Watch(threading.Thread):
    """Counts polls, not seconds: if this process is stopped as well, the count stops, too."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="forkserver-watch", daemon=True)
        self.has_ended = threading.Event()
        self.reason = ""
        """Why the forkserver was killed. Empty if it was not."""
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
