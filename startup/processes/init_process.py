"""What process 1 of a container owes the others: it collects the dead, passes signals on, and tells how it ended.

The kernel drops signals for which process 1 has no handler, and gives it everybody's orphans. The program therefore
runs in a child, where signals do what they do anywhere. Next to nothing is imported.
"""

import os
import signal
from contextlib import suppress

from envs import foreign

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_WATCHED = (*_PASSED_ON, signal.SIGCHLD)

_MEANT_BY_PID = ("LISTEN_PID", "WATCHDOG_PID")
"""By these a service manager (sd_listen_fds(3), sd_watchdog_enabled(3)) says which process it means."""


def become_init() -> None:
    """Returns in a child, which is the program; this process stays behind as its init and ends as it does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    init_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _take_terminal()
        _take_over_from(init_pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_look_after(pid))


def _look_after(program_pid: int) -> int:
    """Until the program has ended; returns the exit code, 128+n after signal n."""
    while True:
        number = signal.sigwait(_WATCHED)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(program_pid, number)
            continue
        status = _collect(program_pid)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _collect(program_pid: int) -> int | None:
    """Collects all that have ended; the program's status if it was among them."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == program_pid:
                found = status
    return found


def _take_over_from(init_pid: int) -> None:
    """Whoever named this container's first process meant the program."""
    for name in _MEANT_BY_PID:
        if foreign.text_of(name) == str(init_pid):
            os.environ[name] = str(os.getpid())


def _take_terminal() -> None:
    """A group of its own, in the terminal's foreground: Ctrl-C reaches it once, not once more from init."""
    os.setpgid(0, 0)
    with suppress(OSError):
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(0, os.getpid())
        finally:
            signal.signal(signal.SIGTTOU, before)
