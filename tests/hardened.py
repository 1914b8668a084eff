"""Launchers that run a command as a hardened container does: as another user, on a read-only root.

They need root; where they do not work, the functions return None.
"""

import subprocess
from pathlib import Path

_MAY_READ_ALL = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
"""Interpreter and model are readable in a container; on this machine they may be in root's home folder."""
_READ_ONLY = "mount --make-rprivate / && mount -o bind,remount,ro / && "
_BUT_FOR_ONE = 'mount --bind "$0" "$0" && '


def as_user(uid: int, gid: int, *must_read: Path) -> tuple[str, ...] | None:
    """A launcher for a user id without a name that can read these files."""
    user = ("setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups")
    for command in ((*user, *_MAY_READ_ALL), user):
        if all(_works(*command, "head", "-c1", str(path)) for path in must_read):
            return command
    return None


def on_read_only_root(writable: Path | None = None) -> tuple[str, ...] | None:
    """A launcher with a read-only root file system, except for one folder."""
    script = f'{_BUT_FOR_ONE if writable else ""}{_READ_ONLY}exec "$@"'
    command = ("unshare", "-m", "sh", "-c", script, str(writable or "sh"))
    return command if _works(*command, "true") else None


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return False
