"""Ends this process with its parent, by the kernel's hand: also while the interpreter is stuck in C or stopped.

Standard library alone, and nothing of this project: any process may use it as its first act.
"""

import ctypes
import fcntl
import os
import select
import signal

_PR_SET_PDEATHSIG = 1


def arm(fd: int, signum: int = signal.SIGKILL) -> None:
    """Has the kernel send `signum` to this process when the last write end of a pipe is closed, or at once if it is.

    The parent that matters holds the write end, and nobody else does: the kernel closes it however that process ends.
    It need not be the process that forked this one.

    Args:
        fd: the pipe's read end; may be shared with other processes, each of which arms it for itself. Nothing may
            ever be written to the pipe, for a byte brings the signal, too.
        signum: what is sent; only SIGKILL works whatever this process is at.
    """
    own_fd = _reopen(fd)  # stays open for as long as the process lives
    fcntl.fcntl(own_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own_fd, fcntl.F_SETSIG, signum)
    fcntl.fcntl(own_fd, fcntl.F_SETFL, fcntl.fcntl(own_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if _has_hung_up(own_fd):  # it was too late for the signal
        os.kill(os.getpid(), signum)


def follow_parent(parent_pid: int, signum: int = signal.SIGKILL) -> None:
    """Has the kernel send `signum` when the process that forked this one ends, or at once if it has.

    To be precise, when the *thread* ends that forked it (prctl(2)): parents fork on their main thread.

    Args:
        parent_pid: who forked this process. If somebody else is its parent by now, that one has gone.
        signum: what is sent.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)


def _reopen(fd: int) -> int:
    """A description of its own, since all who share one share its owner (fcntl(2), F_SETOWN)."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # no /proc: right as long as nobody shares it
        return os.dup(fd)


def _has_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
