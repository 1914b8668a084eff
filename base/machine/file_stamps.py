"""Detects changes of files and folders by their sizes, times and inode numbers."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

StoredStamp: TypeAlias = tuple[int, int]
"""Modification time in whole seconds, and size. The layers of a container image preserve both."""


class FileStamp(NamedTuple):
    """Properties that change when a file is written or replaced. (New hard links would also change ctime.)"""

    mtime_ns: int
    size: int
    inode: int

    @property
    def stored(self) -> StoredStamp:
        """The part of the stamp for a record that is kept on disk."""
        return self.mtime_ns // 10**9, self.size


MISSING: Final = FileStamp(-1, -1, 0)
"""The stamp of a path that does not exist or cannot be read."""

FolderStamps: TypeAlias = dict[str, FileStamp]


def read_stamp(path: str | os.PathLike[str] | int) -> FileStamp:
    """The current stamp of a file, also of an open file by its descriptor. A link has its target's stamp."""
    try:
        found = os.stat(path)  # noqa: PTH116 - called for thousands of paths
    except (OSError, ValueError):
        return MISSING
    return FileStamp(found.st_mtime_ns, found.st_size, found.st_ino)


def store_stamps(paths: Iterable[str]) -> dict[str, StoredStamp]:
    """The current stamps of files. A record with these stamps is valid until one of them changes."""
    return {path: read_stamp(path).stored for path in paths}


def are_unchanged(stamps: Mapping[str, Sequence[int]]) -> bool:
    """Whether all files still have the stamps that `store_stamps` recorded."""
    return all(read_stamp(path).stored == tuple(stamp) for path, stamp in stamps.items())


def read_folder(folder: Path) -> FolderStamps:
    """The stamps of all files below a folder, by path."""
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder.resolve()) for name in names)  # noqa: PTH118
    return {path: read_stamp(path) for path in paths}
