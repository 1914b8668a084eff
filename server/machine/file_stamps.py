"""Tells whether the files of a folder have changed. Standard library only."""

import os
from pathlib import Path
from typing import NamedTuple


class FileStamp(NamedTuple):
    """What changes when a file is written or replaced."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int


Stamps = frozenset[FileStamp]


def read_stamps(folder: Path) -> Stamps:
    """The stamps of all files in a folder and its subfolders."""
    return frozenset(_stamp(Path(parent, name)) for parent, _, names in os.walk(folder.resolve()) for name in names)


def _stamp(path: Path) -> FileStamp:
    try:
        found = path.stat()
    except OSError:  # a broken link
        return FileStamp(str(path), -1, 0, 0, 0)
    return FileStamp(str(path), found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)
