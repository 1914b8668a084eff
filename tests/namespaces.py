"""A process namespace of its own, as a container has."""

import subprocess

_COMMAND = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def own_processes(*options: str) -> tuple[str, ...] | None:
    """A launcher whose program is process 1 of a new namespace; None if `unshare` fails."""
    command = (*_COMMAND, *options)
    try:
        works = subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return None
    return command if works else None
