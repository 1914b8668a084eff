"""Starts vLLM again from the beginning: ends all processes of this start, and executes the same command."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from base.machine.processes import is_alive
from base.wording import one_line
from envs.registry import env
from startup import start_origin
from startup.errors import log_with_code
from startup.hook import names_without
from startup.processes import group_signals
from startup.reports.crash.output_record import OutputRecord
from startup.vllm.launch.plain_start import PLAIN_START, SET_BY_START
from startup.vllm.launch.plain_state import disable_preloading
from startup.vllm.start_kind import StartKind
from startup.vllm_arguments.installed import InstalledVllm

if TYPE_CHECKING:
    from startup.reports.crash.explanation import Cause

logger = logging.getLogger(__name__)

_END_S: Final = 10.0
"""Seconds in which the processes of a failed start must end and, on a GPU, free its memory."""
_POLL_S: Final = 0.005


class NewStart(NamedTuple):
    """How this start can begin again without one of its parts. All methods run on the main thread."""

    vllm: InstalledVllm
    kind: StartKind
    start_method: str
    record: OutputRecord
    environment: Mapping[str, str]
    """The user's environment, without changes that this program has made."""
    kill_all: Callable[[float], None]
    """Kills all other processes of this start within the given seconds."""
    chosen_port: Callable[[], Sequence[str]]
    """The flag `--port` with the port that the system has chosen. Empty unless the user gave port 0."""

    def without_lean_imports(self, failed: Mapping[str, str]) -> NoReturn:
        """Starts again with torch's compiler, because the import of modules without it has failed."""
        logger.warning("importing vLLM without torch's compiler failed (%s). Restarting with the compiler", failed)
        self._begin(env.VCLI_LEAVE_OUT.name, names_without("lean imports"))

    def with_hub(self, err: Exception) -> NoReturn:
        """Starts again with requests to the hub, because vLLM needs files that are not on disk."""
        logger.warning("%s: vLLM needs files that are not on disk, and starts again", one_line(err))
        online = self._replace(environment={**self.environment, env.HF_HUB_OFFLINE.name: "0"})
        online._begin(env.VCLI_LEAVE_OUT.name, names_without("offline hub"))

    def without_preloading_if_ours(self, cause: "Cause") -> None:
        """Starts vLLM again without preloading if code of this package may have caused the failure.

        An unexplained failure may be our fault if this vLLM is not tested with this package on this device. A
        failed import of a library may be our fault, too, because we replace some modules by stand-ins. A GPU
        that cannot be used in a fork is our fault unless the user has chosen the start method `fork`, because
        plain vLLM forks only with this method.
        """
        may_be_ours = not self.vllm.is_start_tested or cause.is_of_library_import
        is_ours = cause.is_own_fault or (cause.is_forked_driver and self.start_method != "fork")
        if is_ours or (may_be_ours and not cause.is_explained):
            self.without_preloading(cause.text, is_remembered=not self.record.has_error_of_machine())

    def without_preloading(self, failure: str, *, is_remembered: bool) -> NoReturn:
        """Starts again without preloading. If `is_remembered`, later starts do so, too, for a while."""
        from startup.reports.crash.crash_report import keep_log  # noqa: PLC0415 - only after a failure
        from startup.reports.crash.explanation import shown  # noqa: PLC0415 - only after a failure

        failure = shown(" ".join(failure.split()))
        reason = f"an earlier start with preloading failed ({failure})"
        state = disable_preloading(self.kind, reason) if is_remembered else None
        where = f"; log: {log}" if (log := keep_log(self.record)) else ""
        end = f"; {state.end}" if state else ""
        text = f"preloading failed ({failure}{where}): vLLM {self.vllm.version} starts again without preloading{end}"
        log_with_code(logger.warning, text, PLAIN_START)
        self._begin(env.VCLI_PLAIN_VLLM.name, SET_BY_START)

    def _begin(self, variable: str, value: str) -> NoReturn:
        """Ends all other processes of this start, and replaces this process by a new start."""
        logging.disable()  # threads of this process would log that others end
        self.kill_all(_END_S)
        _end_children(self.record.begun_pids())
        exec_again(variable, value, self.environment, self.chosen_port())


def _end_children(pids: Iterable[int]) -> None:
    """Kills the processes `pids`, and waits until they and all children of this process have ended.

    The processes need not be children of this process. This function closes the pipe of multiprocessing's
    resource tracker, so that the tracker ends.
    """
    with suppress(OSError):
        os.close(resource_tracker.getfd() or -1)
    orphans = {pid for pid in pids if pid != os.getpid() and is_alive(pid)}
    for pid in orphans:
        with suppress(OSError):
            if os.getpgid(pid) == os.getpgrp():  # not another process that has got the same pid
                os.kill(pid, signal.SIGKILL)
    end_s = time.monotonic() + _END_S
    while (_has_children() or any(map(is_alive, orphans))) and time.monotonic() < end_s:
        time.sleep(_POLL_S)


def _has_children() -> bool:
    """Reaps children of this process that have ended. Returns whether other children still run."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def exec_again(variable: str, value: str, environment: Mapping[str, str], arguments: Sequence[str] = ()) -> NoReturn:
    """Executes this process's command again with `arguments` at the end and a changed environment variable.

    The command's arguments come from `sys.orig_argv`, because /proc/self/cmdline may be masked. In a warm
    start, the process that the user has started executes the command instead of this fork.
    """
    if start_origin.start_again is not None:
        start_origin.start_again(variable, value, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with group_signals.blocked():  # Python's handlers would only record a signal, and `exec` would lose it
        for number in group_signals.GROUP_SIGNALS:
            if callable(signal.getsignal(number)):
                group_signals.set_handler(number, signal.SIG_DFL)
    os.execve(sys.executable, [*sys.orig_argv, *arguments], {**environment, variable: value})
