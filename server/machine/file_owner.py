"""Tells whether other users could change a file that this program executes or obeys; little is imported."""

import os
import stat

MODE = 0o644
"""Of such a file, whatever the umask."""

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def why_changeable(
    status: os.stat_result, name: object = "it", *, user: int | None = None, allows_sticky: bool = False
) -> str | None:
    """Why others than root and the user could change a file or folder; None if they cannot.

    Args:
        status: best of the file's open descriptor.
        name: of the file in the reason.
        user: this process's if not given.
        allows_sticky: whether others may add files to a folder where they cannot replace those of the user.
    """
    if status.st_uid not in (0, os.geteuid() if user is None else user):
        return f"{name} belongs to another user ({status.st_uid})"
    if status.st_mode & _WRITABLE_BY_OTHERS and not (allows_sticky and status.st_mode & stat.S_ISVTX):
        return f"other users can write to {name} (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def read_own(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file that only root and this user can change; raises OSError for any other."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        reason = why_changeable(status) if stat.S_ISREG(status.st_mode) else "it is not a regular file"
        if reason is not None:
            raise PermissionError(f"{os.fspath(path)} is not used: {reason}")
        return file.read()
