"""Runs a job of `startup.compile_cache.sharing` in a helper process, which may be slow."""

import json
import math
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from startup.compile_cache.messages import AddJob, FetchJob, SharingReport
from startup.processes import death_pipe, group_signals

_WHEN_IDLE: Final = """
import os
os.nice(19)
try:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except OSError:  # some containers forbid it
    pass
"""
"""Before everything else: the server answers requests meanwhile."""
_FAILED: Final = "the helper process ended without a report"
_LATE: Final = "fetching is given up after {:.0f} s: check that the location answers, and how fast"
_LEAST_LIMIT_S: Final = 30.0
_POLLED_EVERY_MS: Final = 100
_LONGEST_END_S: Final = 1.0


class SharingProcess:
    """The launcher's handle of a helper, which ends with the thread that started it."""

    def __init__(self, job: FetchJob | AddJob) -> None:
        """Raises OSError if it cannot be started."""
        from startup.download.process import helper_command

        command = helper_command("startup.compile_cache.process", first=_WHEN_IDLE if isinstance(job, AddJob) else "")
        with group_signals.blocked():  # until the process ignores them
            self._helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._helper.stdin is not None
        message = {"task": type(job).__name__, "parent_pid": os.getpid(), "job": asdict(job)}
        with suppress(BrokenPipeError), self._helper.stdin:
            self._helper.stdin.write(json.dumps(message).encode())
        self._limit_s = _LEAST_LIMIT_S if isinstance(job, FetchJob) else math.inf
        self._is_closed = False

    def result(self) -> SharingReport:
        """Waits for the report; a helper that fetches for more than 30 s and than compiling took is killed.

        Nobody waits for the end of that one: the kernel may keep a process that waits for a volume.
        """
        begin_s, limit_s, content, chunk = time.monotonic(), self._limit_s, b"", b"none yet"
        assert self._helper.stdout is not None
        with self._helper.stdout as output:
            poll = select.poll()
            poll.register(output, select.POLLIN)
            while chunk and not self._is_closed and time.monotonic() - begin_s < limit_s:
                if poll.poll(_POLLED_EVERY_MS):
                    chunk = os.read(output.fileno(), 1 << 16)
                    content += chunk
                    with suppress(ValueError):
                        limit_s = max((limit_s, *map(float, content.split(b"\n")[:-1])))
        self._helper.kill()
        with suppress(subprocess.TimeoutExpired):
            self._helper.wait(_LONGEST_END_S)
        if chunk and not self._is_closed:
            return SharingReport(problems=[_LATE.format(limit_s)], is_late=True)
        with suppress(ValueError, TypeError):
            return SharingReport(**json.loads(content.splitlines()[-1] if content else b""))
        return SharingReport(problems=[_FAILED])

    def close(self) -> None:
        """Ends the helper, if it is running; `result` then returns on its thread."""
        self._is_closed = True
        self._helper.kill()


def main() -> None:
    """Runs the job on standard input and exits; writes how long compilations took, then the report."""
    import msgspec  # noqa: PLC0415 - in the helper only

    from startup.compile_cache.sharing import add, fetch  # noqa: PLC0415

    message: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    death_pipe.follow_parent(message["parent_pid"])
    group_signals.ignore()
    if message["task"] == AddJob.__name__:
        report = add(msgspec.convert(message["job"], AddJob))
    else:
        report = fetch(msgspec.convert(message["job"], FetchJob), _write)
    _write(json.dumps(asdict(report)))
    os._exit(0)  # a store's client may still have threads


def _write(line: object) -> None:
    os.write(1, f"{line}\n".encode())
