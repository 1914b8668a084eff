"""Writes into the record how a process of the server ended, if that was not by itself and without an error.

A signal leaves no message: its line here has the form of vLLM's log lines, and the stack that of a traceback,
so that the cause is found as in any other log.
"""

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import dropwhile, takewhile
from typing import Final

from server.machine.memory import OomWatch
from server.machine.processes import EndWatch, is_alive
from server.wording import signal_name
from startup.causes.phase import LAST_PHASE
from startup.crash.output_record import OutputRecord, ProcessState

_FRAME: Final = re.compile(r'(  File "[^"]{1,400}", line \d{1,8}) in (\S{1,120})')
_STACK: Final = "Current thread"
"""Begins the stack of the thread that got the signal; Python writes the innermost call first."""
_POLITE: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals with which the launcher and vLLM end processes themselves."""
_BY_WHOM: Final = {True: ", by the kernel's OOM killer", False: ", not by the kernel's OOM killer", None: ""}


class ProcessEnds:
    """Lives in a process that learns how others end; created before they start."""

    def __init__(self, record: OutputRecord) -> None:
        self._record = record
        self._oom_watch = OomWatch()

    def add(self, pid: int, code: int) -> None:
        """A process has ended with this exit code, or by the signal of this negative number."""
        state = self._record.read_state(pid)
        if code and state.name:
            self._record.append("".join(f"({state.name} pid={pid}) {line}\n" for line in self._describe(code, state)))

    def _describe(self, code: int, state: ProcessState) -> Iterator[str]:
        number = -code
        if state.phase:
            yield _log_line("INFO", f"{LAST_PHASE}{state.phase}")
        if number in _POLITE:
            yield _log_line("INFO", f"ended by {signal_name(number)}")
        elif number == signal.SIGKILL and state.parent_pid and _is_ending(state.parent_pid):
            yield _log_line("INFO", f"ended with the process {state.parent_pid}, which has started it")
        elif number == signal.SIGKILL:
            yield _log_line("ERROR", f"killed by SIGKILL{_BY_WHOM[self._oom_watch.has_killed]} (exit code: {code})")
        elif frames := _frames(state.stack) if number > 0 else ():
            yield f"Process {state.name}:"
            yield "Traceback (most recent call last):"
            yield from frames
            yield f"FatalSignal: the process crashed with {signal_name(number)} (exit code: {code})"
        elif number > 0:
            yield _log_line("ERROR", f"the process crashed with {signal_name(number)} (exit code: {code})")
        else:
            yield _log_line("ERROR", f"the process died unexpectedly with exit code {code}")


def _is_ending(pid: int) -> bool:
    """Whether a process has ended, or has begun to: the kernel closes its pipes before it reports its end."""
    if not is_alive(pid):
        return True
    with closing(EndWatch(pid)) as watch:
        return watch.is_exiting()


def _frames(stack: Sequence[str]) -> list[str]:
    """The stack in the order of a traceback."""
    current = dropwhile(lambda line: not line.startswith(_STACK), stack)
    next(current, None)
    found = [_FRAME.match(line) for line in takewhile(str.strip, current)]
    return [f"{frame[1]}, in {frame[2]}" for frame in reversed(found) if frame]


def _log_line(level: str, text: str) -> str:
    return f"{level} {time.strftime('%m-%d %H:%M:%S')} [process_ends.py:1] {text}"
