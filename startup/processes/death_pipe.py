"""Makes the kernel end this process when its parent ends, even if this process hangs in C code or is stopped.

This module imports little, so that a process can use it before all other modules.
"""

import fcntl
import os
import select
import signal

from base.machine.libc import prctl

_PR_SET_PDEATHSIG = 1


def arm(fd: int) -> None:
    """Makes the kernel kill this process once all write ends of a pipe are closed.

    Only the process that this one must not outlive holds the write end. The kernel closes the write end,
    however that process ends. That process need not have forked this one.

    Args:
        fd: the pipe's read end. Several processes may share it, and each of them calls this function. Nothing
            may ever be written to the pipe, because a byte would trigger the signal, too.
    """
    own_fd = _reopen(fd)  # stays open for as long as the process lives
    fcntl.fcntl(own_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own_fd, fcntl.F_SETSIG, signal.SIGKILL)  # the only signal that works in every state
    fcntl.fcntl(own_fd, fcntl.F_SETFL, fcntl.fcntl(own_fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(own_fd, 0)
    if poll.poll(0):  # the write end was closed before the signal was armed
        os.kill(os.getpid(), signal.SIGKILL)


def follow_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Makes the kernel kill this process when its parent ends, or at once if the parent has ended.

    The setting also holds for a program that this process executes later. The kernel acts when the parent's
    *thread* that forked this process ends (prctl(2)), so parents fork on their main thread.

    Args:
        parent_pid: the process that forked this one. If this process already has another parent, the process
            with this pid has ended.
        number: the signal that the kernel sends.
    """
    prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def follow_no_parent() -> None:
    """Undoes `follow_parent`."""
    prctl(_PR_SET_PDEATHSIG, 0)


def _reopen(fd: int) -> int:
    """Opens the pipe again, because an open file description has only one owner (fcntl(2), F_SETOWN)."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:  # without /proc, this is correct only if no other process shares it
        return os.dup(fd)
