"""A container's processes, as far as they can be had without one."""

import subprocess

_COMMAND = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def own_processes(*options: str) -> tuple[str, ...] | None:
    """A launcher whose program is process 1 of a namespace, with what else `unshare` is to take from it; or None."""
    command = (*_COMMAND, *options)
    try:
        works = subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return None
    return command if works else None
