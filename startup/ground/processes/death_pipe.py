"""Makes the kernel end this process with its parent, even if the interpreter hangs in C code or is stopped.

Imports little, so that any process can use it first.
"""

import fcntl
import os
import select
import signal

from base.machine.libc import prctl

_PR_SET_PDEATHSIG = 1


def arm(fd: int) -> None:
    """Makes the kernel kill this process once all write ends of a pipe are closed.

    Only the logical parent holds the write end: the kernel closes it however that process ends. The parent
    need not be the process that forked this one.

    Args:
        fd: the pipe's read end. May be shared with other processes, each of which arms it for itself. Nothing
            may ever be written to the pipe: a byte triggers the signal too.
    """
    own_fd = _reopen(fd)  # stays open for as long as the process lives
    fcntl.fcntl(own_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own_fd, fcntl.F_SETSIG, signal.SIGKILL)  # the only signal that works in every state
    fcntl.fcntl(own_fd, fcntl.F_SETFL, fcntl.fcntl(own_fd, fcntl.F_GETFL) | os.O_ASYNC)
    if _has_hung_up(own_fd):  # the write end was closed before the signal was armed
        os.kill(os.getpid(), signal.SIGKILL)


def follow_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Makes the kernel kill this process when its parent ends, or at once if the parent has ended.

    This also holds for a program that this process executes later. The kernel acts at the end of the parent's
    *thread* that forked (prctl(2)), so parents fork on their main thread.

    Args:
        parent_pid: the process that forked this one. If this process has another parent by now, that one has
            ended.
        number: the signal.
    """
    prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def follow_no_parent() -> None:
    """Undoes `follow_parent`."""
    prctl(_PR_SET_PDEATHSIG, 0)


def _reopen(fd: int) -> int:
    """Opens the pipe again: processes that share a file description share its owner (fcntl(2), F_SETOWN)."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # without /proc, this is correct only if no other process shares it
        return os.dup(fd)


def _has_hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
