"""A cgroup of version 2 below that of this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base.machine import cgroups


@contextmanager
def own_cgroup() -> Iterator[Path | None]:
    """The folder of a new cgroup, which must be empty at the end; None if none may be made here."""
    mount = next((mount for mount in cgroups.mounts() if mount.version == 2), None)
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    parent = mount.folder_of(paths[""]) if mount and "" in paths else None
    folder = parent / f"vllm-cli-test-{os.getpid()}" if parent else None
    try:
        if folder is not None:
            folder.mkdir()
    except OSError:
        folder = None
    yield folder
    if folder is not None:
        folder.rmdir()
