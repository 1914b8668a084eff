"""Reads only files that can be trusted, and replaces files atomically. Imports few modules."""

import os
import stat

TYPE_CHECKING = False  # the import of `typing` would delay the start
if TYPE_CHECKING:
    from pathlib import Path

MODE = 0o644
"""The permissions of a file that this program will trust. The umask does not change them."""

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def why_changeable(
    status: os.stat_result, name: object = "it", *, user: int | None = None, allows_sticky: bool = False
) -> str | None:
    """Why users other than root and `user` could change a file or folder. None if they cannot.

    Args:
        status: the status of the file, best read from its open descriptor.
        name: the file's name in the reason.
        user: the user's id, by default of this process's user.
        allows_sticky: accepts a folder in which others can add files, but not replace the user's files.
    """
    if status.st_uid not in (0, os.geteuid() if user is None else user):
        return f"{name} belongs to another user ({status.st_uid})"
    if status.st_mode & _WRITABLE_BY_OTHERS and not (allows_sticky and status.st_mode & stat.S_ISVTX):
        return f"other users can write to {name} (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


_MOST_BYTES = 16 << 20
"""The most bytes of a file that is read as a whole. This program writes no larger file."""


def read_own(path: str | os.PathLike[str]) -> bytes:
    """The content of a regular file that only root and this user can change. Otherwise raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        reason = why_changeable(status) if stat.S_ISREG(status.st_mode) else "it is not a regular file"
        if reason is not None:
            raise PermissionError(f"{os.fspath(path)} is not used: {reason}")
        if status.st_size > _MOST_BYTES:
            raise OSError(f"{os.fspath(path)} is not used: it has {status.st_size} bytes")
        return file.read()


def write_whole(path: "Path", text: str, *, mode: int | None = None) -> None:
    """Replaces the file atomically, so that readers never see a part of a file.

    The file gets the permissions `mode`, or by default those of a new file. If the path is a link, its target
    is replaced. If it is not a regular file but, for example, a pipe, the text is written into it.

    Raises:
        OSError: the file cannot be written. An old file is unchanged.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        beside.write_text(text, encoding="utf-8")
        if mode is not None:
            beside.chmod(mode)
        os.replace(beside, path)  # noqa: PTH105 - documented to be atomic
    finally:
        beside.unlink(missing_ok=True)


_LONGEST_NAME = 1024
_LONGEST_PART = 255


def is_safe_name(name: str) -> bool:
    """Whether a name that others have given, with `/` between its parts, is that of a file inside a folder.

    It has no characters that change a terminal, and no part that leads out of the folder or is too long.
    """
    if not name.isprintable() or "\\" in name or len(name.encode()) > _LONGEST_NAME:
        return False
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return False
    return all(len(part.encode()) <= _LONGEST_PART for part in parts)


def nearest_existing(folder: "Path") -> "Path":
    """The folder itself, or its nearest parent that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def write_problem(folder: str) -> str | None:
    """Why no file can be written in a folder. None if files can be written. Tries it, as `tempfile` does.

    The folder's mode is not enough: root may write with any mode, but not on a full disk or in /proc.
    """
    path = f"{folder}/vllm-cli-{os.urandom(8).hex()}-probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        return err.strerror
    try:
        os.write(fd, b"\0")
    except OSError as err:
        return err.strerror
    finally:
        os.close(fd)
        os.unlink(path)  # noqa: PTH108 - as the other calls of os here
    return None
