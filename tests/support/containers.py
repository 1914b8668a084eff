"""Launchers run a command as in a container: as another user, with its own processes, files or cgroup.

A launcher is the arguments to put before the command. Launchers need rights that a machine may not give.
Where a launcher does not work, its function returns None.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base.machine import cgroups

_MAY_READ_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""Lets the user read interpreter and model, which may be in root's home folder on this machine."""
_NEW_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")
_OWN_PROCESSES = ("unshare", "--user", "--map-root-user", *_NEW_PROCESSES)


def as_user(uid: int, gid: int, *must_read: Path) -> tuple[str, ...] | None:
    """A launcher that runs a command as a user id without a name. The user can read `must_read`."""
    user = ("setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups")
    for command in ((*user, *_MAY_READ_ALL), user):
        if all(works(*command, "head", "-c1", str(path)) for path in must_read):
            return command
    return None


def own_processes(*options: str) -> tuple[str, ...] | None:
    """A launcher that runs a command as process 1 of a new process namespace."""
    command = (*_OWN_PROCESSES, *options)
    return command if works(*command, "true") else None


def own_mounts(script: str, folder: Path) -> tuple[str, ...] | None:
    """A launcher that first runs a script in the folder. Only the launched programs see the script's mounts.

    The script runs twice. Processes that the script starts, such as those of FUSE, end with the program.
    """
    whole = f'here=$PWD; cd "$0"; {script}; cd "$here"; exec "$@"'
    command = ("unshare", "--mount", *_NEW_PROCESSES, "sh", "-ec", whole, str(folder))
    return command if works(*command, "true") else None


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def own_cgroup() -> Iterator[Path | None]:
    """Yields the folder of a new cgroup, or None if none can be made. The cgroup must be empty at the end."""
    mount = next((mount for mount in cgroups.mounts() if mount.version == 2), None)
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = dict(line.split(":", 2)[1:] for line in lines)
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
