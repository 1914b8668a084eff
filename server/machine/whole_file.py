"""Writes a file completely or not at all, so that readers never see half of one."""

import os
import threading
from pathlib import Path


def write_whole(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replaces the file atomically; its permissions are `mode`, else those of a new file.

    The target of a link is replaced, not the link. A path that is not a regular file, such as a pipe, is
    written to.

    Raises:
        OSError: the old file, if any, is unchanged.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        beside.write_text(text, encoding="utf-8")
        if mode is not None:
            beside.chmod(mode)
        os.replace(beside, path)  # noqa: PTH105 - documented to be atomic
    finally:
        beside.unlink(missing_ok=True)


def write_problem(folder: str) -> str | None:
    """Why no file can be created and written in a folder, tried as `tempfile` does; None if one can.

    Root may write whatever the modes are, and cannot on a full disk or in /proc.
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
