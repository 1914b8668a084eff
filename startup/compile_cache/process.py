"""Runs a job of `startup.compile_cache.sharing` in a helper process, which may be slow."""

import json
import os
import subprocess
import sys
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

    def result(self) -> SharingReport:
        """Waits for the end."""
        assert self._helper.stdout is not None
        with self._helper:
            content = self._helper.stdout.read()
        with suppress(ValueError, TypeError):
            return SharingReport(**json.loads(content))
        return SharingReport(problems=[_FAILED])

    def close(self) -> None:
        """Ends the helper, if it is running; `result` then returns on its thread."""
        self._helper.kill()


def main() -> None:
    """Runs the job on standard input and exits."""
    import msgspec  # noqa: PLC0415 - in the helper only

    from startup.compile_cache.sharing import add, fetch  # noqa: PLC0415

    message: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    death_pipe.follow_parent(message["parent_pid"])
    group_signals.ignore()
    if message["task"] == AddJob.__name__:
        report = add(msgspec.convert(message["job"], AddJob))
    else:
        report = fetch(msgspec.convert(message["job"], FetchJob))
    sys.stdout.write(json.dumps(asdict(report)))
    sys.stdout.flush()
    os._exit(0)  # a store's client may still have threads
