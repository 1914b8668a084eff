"""A memory cgroup, as a container has it; the test is skipped if none can be created."""

import errno
import os
from contextlib import suppress
from typing import Final, Self

import pytest

from base.machine.cgroups import own_cgroups
from tests.waiting import wait_until

_ENTER: Final = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')
_LIMITS: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGES: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_NONE: Final = {1: "-1", 2: "max"}


class MemoryGroup:
    """A cgroup of either version, at first without a limit; its processes exit within the `with` block."""

    def __init__(self, name: str) -> None:
        groups = list(own_cgroups("memory"))
        if not groups:
            pytest.skip("there are no memory cgroups")
        around = min(reversed(groups), key=lambda group: group.version)  # version 2 may lack this controller
        self._version = around.version
        self._folder = around.folder / f"{name}-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir()
            self.set_limit(None)
        except OSError as err:
            with suppress(OSError):
                self._folder.rmdir()
            pytest.skip(f"no memory limit can be set: {err}")
        return self

    def __exit__(self, *_: object) -> None:
        wait_until(self._remove)

    def _remove(self) -> bool:
        """Removes the group; False while the kernel still counts an exited process."""
        try:
            self._folder.rmdir()
        except OSError as err:
            if err.errno == errno.EBUSY:
                return False
            raise
        return True

    @property
    def launcher(self) -> tuple[str, ...]:
        """Executes the arguments that follow under the limit."""
        return (*_ENTER, str(self._folder))

    @property
    def num_used_bytes(self) -> int:
        """The memory of its processes, including the page cache."""
        return int((self._folder / _USAGES[self._version]).read_text())

    def set_limit(self, num_bytes: int | None) -> None:
        """Sets the limit; None removes it."""
        (self._folder / _LIMITS[self._version]).write_text(str(num_bytes) if num_bytes else _NONE[self._version])
