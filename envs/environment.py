"""Copies, compares and replaces the whole environment, with our own variables."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def snapshot() -> dict[str, str]:
    """A copy of the whole environment. Lacks a variable that another thread removes meanwhile."""
    return {name: value for name in os.environ if (value := os.environ.get(name)) is not None}


def replace_all(wanted: Mapping[str, str]) -> dict[str, str]:
    """Replaces the whole environment. Returns the changed variables, with empty values for removed ones."""
    before = snapshot()
    for name in before.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if before.get(name) != value:
            os.environ[name] = value
    return changes(before, wanted)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """The variables that differ, with their values in `after`. The value of a removed variable is empty."""
    names = before.keys() | after.keys()
    changed = sorted(name for name in names if before.get(name) != after.get(name))
    return {name: after.get(name, "") for name in changed}


def readdress(old_pid: int, new_pid: int) -> None:
    """Replaces the pid in variables that a service manager sets for the process with this pid."""
    for name in ("LISTEN_PID", "WATCHDOG_PID"):  # sd_listen_fds(3), sd_watchdog_enabled(3)
        if os.environ.get(name) == str(old_pid):
            os.environ[name] = str(new_pid)


@contextmanager
def overlaid(extra: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the block and for processes that it starts. Then restores the previous values."""
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
