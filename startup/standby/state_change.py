"""Gives a process forked from a template the settings of the process that the user started.

Everything here runs in the fork, while it has one thread; `process_state` reads what this module changes.
"""

import locale
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import psutil  # noqa: TID253 - in the template process, so that its forks need not import it

from startup.standby import cgroup_move
from startup.standby.process_state import IGNORED_BY_PYTHON, LIMITS, STREAMS, current_settings

_PROC: Final = Path("/proc/self")
_UNCHANGEABLE: Final = frozenset({signal.SIGKILL, signal.SIGSTOP})


def apply(settings: Mapping[str, str]) -> str | None:
    """Applies all settings, reads them again, and returns why this process does not equal their owner.

    SIGINT has Python's own handler afterwards; all other signals have their default action or are ignored.
    """
    errors = _change(settings)
    now = current_settings()
    for name, wanted in settings.items():
        is_settled = name not in errors if name in _CHECK_THEMSELVES else now.get(name) == wanted
        if not is_settled:
            detail = errors.get(name) or f"it is {now.get(name, 'unknown')}"
            return f"{name} could not be set to {' '.join(wanted.split())}: {detail}"
    return None


def _change(settings: Mapping[str, str]) -> dict[str, str]:
    """Two passes, since a setting may permit another: RLIMIT_NICE permits a nice value."""
    _restore_handlers()
    errors: dict[str, str] = {}
    for _ in range(2):
        now = current_settings()
        for name, wanted in settings.items():
            if now.get(name) == wanted:
                errors.pop(name, None)
            elif (change := _CHANGES.get(name)) is not None:
                errors.pop(name, None)
                try:
                    change(wanted)
                except (OSError, ValueError, LookupError) as error:
                    errors[name] = getattr(error, "strerror", None) or str(error)
    return errors


def _restore_handlers() -> None:
    """As after Python's start; a template's handlers must not run in a server."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - _UNCHANGEABLE:
        _set_action(number, is_ignored=False)


def _set_action(number: int, *, is_ignored: bool) -> None:
    wanted: Any = signal.SIG_DFL
    if is_ignored or number in IGNORED_BY_PYTHON:
        wanted = signal.SIG_IGN
    elif number == signal.SIGINT:
        wanted = signal.default_int_handler
    if signal.getsignal(number) != wanted:  # handlers of `faulthandler` read as SIG_DFL and stay
        signal.signal(number, wanted)


def _ignore_signals(mask: str) -> None:
    ignored = _signals_in(mask)
    for number in signal.valid_signals() - _UNCHANGEABLE:
        _set_action(number, is_ignored=number in ignored)


def _block_signals(mask: str) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _signals_in(mask))


def _signals_in(mask: str) -> set[int]:
    bits = int(mask, 16)
    return {int(number) for number in signal.valid_signals() if bits >> (number - 1) & 1}


def _set_scheduling_policy(value: str) -> None:
    policy, priority = value.split()
    os.sched_setscheduler(0, int(policy), os.sched_param(int(priority)))


def _take_over_io_priority(pid: str) -> None:
    """The value is the owner's process id: the kernel shows I/O priorities only through a system call."""
    this_process = psutil.Process()
    try:
        own = this_process.ionice()
    except (OSError, psutil.Error):
        return  # a kernel or sandbox without I/O priorities
    try:
        theirs = psutil.Process(int(pid)).ionice()
        if theirs != own:
            this_process.ionice(theirs.ioclass, theirs.value)
    except psutil.Error as error:
        raise OSError(str(error)) from error


def _set_cpu_affinity(cpus: str) -> None:
    ranges = (word.partition("-") for word in cpus.split(","))
    os.sched_setaffinity(0, {n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)})


def _set_nice_value(value: str) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, int(value))


def _set_umask(value: str) -> None:
    os.umask(int(value, 8))


def _set_locale(value: str) -> None:
    locale.setlocale(locale.LC_CTYPE, value)


def _set_text_layer(name: str) -> Callable[[str], None]:
    def change(value: str) -> None:
        stream = getattr(sys, name)
        if value == "closed":
            setattr(sys, name, None)
        elif stream is None:
            raise ValueError("the standby started without this stream")
        else:
            encoding, errors, is_line_buffered, is_written_through = value.split()
            if (encoding, errors) != (stream.encoding, stream.errors):  # fails if a pipe has replaced a file
                stream.reconfigure(encoding=encoding, errors=errors)
            stream.reconfigure(line_buffering=is_line_buffered == "1", write_through=is_written_through == "1")

    return change


def _set_limit(number: int) -> Callable[[str], None]:
    def change(value: str) -> None:
        soft, hard = value.split()
        resource.setrlimit(number, (int(soft), int(hard)))

    return change


def _write(name: str, prefix: str = "") -> Callable[[str], None]:
    def change(value: str) -> None:
        with (_PROC / name).open("w") as file:
            file.write(prefix + value)

    return change


_CHANGES: Final[dict[str, Callable[[str], None]]] = {
    "the cgroup": cgroup_move.enter,
    "the login user": _write("loginuid"),
    "the OOM score adjustment": _write("oom_score_adj"),
    "the CPU affinity": _set_cpu_affinity,
    "the scheduling policy": _set_scheduling_policy,
    "the nice value": _set_nice_value,
    "the I/O priority": _take_over_io_priority,
    "the timer slack": _write("timerslack_ns"),
    "the core dump filter": _write("coredump_filter", prefix="0x"),
    "the command name": _write("comm"),
    "the umask": _set_umask,
    "the character type locale": _set_locale,
    **{f"the text layer of {name}": _set_text_layer(name) for name in STREAMS},
    "the set of ignored signals": _ignore_signals,
    **{name: _set_limit(number) for name, number in LIMITS.items()},
    "the set of blocked signals": _block_signals,
}

_CHECK_THEMSELVES: Final = frozenset({"the cgroup", "the I/O priority"})
"""Settled if the change raised no error: equal limits settle a cgroup, a process id is not a priority."""
