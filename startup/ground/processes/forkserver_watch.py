"""Kills a forkserver that does nothing although a process waits for it, which then gets an error."""

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
"""A network disk can hold up an import for long."""
_MOST_STOPPED_POLLS: Final = 20
"""Job control stops and continues all processes of a start; a debugger may stop one."""
_STOPPED: Final = ("T", "t")


@contextmanager
def ended_if_it_hangs(pid: int) -> Iterator[None]:
    """While this process waits for the forkserver in the block; the error after its end names the reason."""
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
    """Polls are counted instead of seconds: this process may be stopped, too."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="forkserver-watch", daemon=True)
        self.has_ended = threading.Event()
        self.reason = ""
        """Why the forkserver was killed; empty if it was not."""
        self._pid = pid

    def run(self) -> None:
        last, num_polls = "", 0
        while not self.has_ended.wait(_POLL_S):
            try:
                state, *fields = stat_fields(self._pid)
            except (OSError, ValueError):
                return
            now = " ".join(fields[6:13])  # page faults and processor time, with those of its children (proc(5))
            num_polls = num_polls + 1 if now == last else 0
            last = now
            if num_polls >= (_MOST_STOPPED_POLLS if state in _STOPPED else _MOST_IDLE_POLLS):
                self.reason = "stopped" if state in _STOPPED else f"idle for {num_polls * _POLL_S:.0f} s"
                with suppress(OSError):
                    os.kill(self._pid, signal.SIGKILL)
                return
