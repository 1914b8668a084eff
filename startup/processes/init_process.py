"""Process 1 of a container: reaps children, forwards signals, and exits with the program's exit code.

The kernel drops a signal to process 1 if there is no handler for it, and makes process 1 the parent of all
orphans. So the program runs in a child, where signals have their usual effect. This module imports as little
as possible.
"""

import os
import signal
from contextlib import suppress

from envs import environment

_FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGWINCH,
)
_WATCHED = (*_FORWARDED, signal.SIGCHLD)


def become_init() -> None:
    """Forks this process. The parent becomes the child's init. The child returns and runs the program."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    init_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _take_terminal()
        environment.readdress(init_pid, os.getpid())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_supervise(pid))


def _supervise(program_pid: int) -> int:
    """Forwards signals and reaps children. Returns the program's exit code, or 128 + n after signal n."""
    while True:
        number = signal.sigwait(_WATCHED)
        if number != signal.SIGCHLD:
            with suppress(ProcessLookupError):
                os.kill(program_pid, number)
            continue
        status = _reap_all(program_pid)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _reap_all(program_pid: int) -> int | None:
    """Reaps all exited children. Returns the program's status if the program has exited."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == program_pid:
                found = status
    return found


def _take_terminal() -> None:
    """Creates a process group for this process, in the terminal's foreground.

    In init's process group, this process would get each Ctrl-C twice: from the terminal and from init.
    """
    os.setpgid(0, 0)
    with suppress(OSError):
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(0, os.getpid())
        finally:
            signal.signal(signal.SIGTTOU, before)
