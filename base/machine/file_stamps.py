"""Detects changes of files and folders by their sizes, times, inode numbers and contents.

Inode numbers hold on one machine only. So records on disk, which other machines may read, have times and
sizes. Two files with different contents can have both in common, because tools for reproducible images
(SOURCE_DATE_EPOCH, Bazel, `tar --mtime`) set one time for all files. Where this is possible, records also
have a hash of the content.
"""

import _imp
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

StoredStamp: TypeAlias = tuple[int, int]
"""Modification time in whole seconds, and size. The layers of a container image preserve both."""

_NEIGHBOURS_S: Final = 60
_WHOLE_BYTES: Final = 4 << 20
"""A larger file is hashed only at its begin and its end."""
_PART_BYTES: Final = 64 << 10
"""The bytes that are hashed at each end of a larger file. A library has its build id at the begin."""


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


def written_times(times_s: Iterable[int]) -> frozenset[int]:
    """The times at which files were really written. The others may have been set by a tool.

    An installation takes longer than a second. So another file was written within a minute, at another
    second. A time that a tool has set has no such neighbour, because all files of the tool have it.
    """
    known = sorted({*times_s} - {MISSING.stored[0]})
    near = ({begin, end} for begin, end in pairwise(known) if end - begin <= _NEIGHBOURS_S)
    return frozenset[int]().union(*near)


def store_stamps(paths: Iterable[str]) -> dict[str, tuple[int, int, str]]:
    """The stamps of files, and a hash of the content where a tool may have set the time (else no text).

    A record with these stamps is valid until one of them changes.
    """
    stamps = {path: read_stamp(path).stored for path in paths}
    written = written_times(time_s for time_s, _ in stamps.values())
    return {path: (*stamp, "" if stamp[0] in written else hash_content(path)) for path, stamp in stamps.items()}


def are_unchanged(stamps: Mapping[str, Sequence[int | str]]) -> bool:
    """Whether all files still have the stamps, or the contents, that `store_stamps` recorded."""
    return all(
        hash_content(path) == content if content else read_stamp(path).stored == (time_s, size)
        for path, (time_s, size, content) in stamps.items()
    )


def hash_content(path: str) -> str:
    """A hash of a file's content. For a large file, it is that of size, begin and end.

    For a folder, it is the hash of the names in it. No text if the path cannot be read.
    """
    try:
        if os.path.isdir(path):  # noqa: PTH112
            return checksum("\0".join(sorted(os.listdir(path))).encode()).hex()  # noqa: PTH208
        with open(path, "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            if size <= _WHOLE_BYTES:
                return checksum(file.read()).hex()
            begin = file.read(_PART_BYTES)
            file.seek(size - _PART_BYTES)
            return checksum(b"%d " % size + begin + file.read()).hex()
    except (OSError, ValueError):
        return ""


def read_file(path: str) -> bytes:
    """The content of a file. Faster than `open`, for a call for thousands of files. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def checksum(data: bytes) -> bytes:
    """The fast hash with which CPython compares sources and bytecode: 8 bytes, 2 GB/s."""
    return _imp.source_hash(0, data)


def read_folder(folder: Path) -> FolderStamps:
    """The stamps of all files below a folder, by path."""
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder.resolve()) for name in names)  # noqa: PTH118
    return {path: read_stamp(path) for path in paths}
