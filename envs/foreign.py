"""Reads variables of other programs by name, and a few of our own variables that a warm start needs early.

`registry` also declares these few variables (VCLI_STANDBY, VCLI_ENGINE and folders), but a warm start has no
time to import `registry`. The command that runs next reads them through `registry`, and reports wrong values.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def snapshot() -> dict[str, str]:
    """A copy of the whole environment. Lacks a variable that another thread removes meanwhile."""
    return {name: value for name in os.environ if (value := os.environ.get(name)) is not None}


def text_of(name: str) -> str:
    """The value of a variable. Empty if the variable is not set."""
    return os.environ.get(name, "")


def is_set(name: str) -> bool:
    """Whether the variable is set, even if it is empty."""
    return name in os.environ


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
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return {name: after.get(name, "") for name in names}


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


def expand_home(path: str) -> str:
    """Replaces `~` in a path, as vLLM does. `~NAME` of an unknown user stays.

    The home folder is `/` if HOME is not set and the user has no name or home folder, as in some containers.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 - pathlib takes 5 ms to import, and raises errors
    return f"/{expanded[2:]}" if expanded == "~" or expanded.startswith("~/") else expanded
