"""Writes a file whole or not at all, so that nobody ever reads half of one."""

import os
import threading
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces the file in one step; its permissions are those of a new file.

    A link stays one; something that is no ordinary file, such as a pipe, is written to as it is.

    Raises:
        OSError: the old file, if any, is untouched.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)  # noqa: PTH105 - says that it is atomic
    finally:
        beside.unlink(missing_ok=True)
