"""Writes a file completely or not at all, so that readers never see half of one."""

import os
import threading
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces the file atomically; its permissions are those of a new file.

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
        os.replace(beside, path)  # noqa: PTH105 - documented to be atomic
    finally:
        beside.unlink(missing_ok=True)
