"""The layout of an import file: the bytecode of many modules, and an index of them.

    head    fixed size: format, place and checksum of the index, size of the file
    code    the marshalled code of the modules, in order of import
    index   marshalled: interpreter, folders, distributions, and each module's stamps and place

Standard library only, and little of it: a start reads the file before its other imports.
"""

import _imp
import marshal
import os
import stat
import struct
import sys
from importlib.util import MAGIC_NUMBER
from typing import Any, Final, NamedTuple

from server.machine.files import why_changeable

_MARK: Final = b"vllm-cli import file"
_FORMAT: Final = 1
_HEAD: Final = struct.Struct("<20sIQQQ8s")
HEAD_BYTES: Final = _HEAD.size


def has_whole_seconds(time_ns: int) -> bool:
    """Whether a modification time may be one that a build tool gives to all files."""
    return time_ns % 10**9 == 0


class ModuleEntry(NamedTuple):
    """One module of the file."""

    is_package: bool
    origin: str
    """The source file."""
    mtime_ns: int
    size: int
    offset: int
    length: int
    checksum: bytes


class Index(NamedTuple):
    """What the file contains and what it was made from."""

    interpreter: tuple[object, ...]
    is_frozen: bool
    """Whether sources count as unchanged while the installed distributions are the same."""
    distributions: tuple[tuple[str, int, int], ...]
    """`distribution_stamps` when it was written."""
    folders: dict[str, int]
    """The folders of the sources, with their modification times."""
    modules: dict[str, tuple[object, ...]]
    """Fields of a `ModuleEntry` by name of the module, in order of import."""
    refused: tuple[str, ...]
    """Modules that cannot be in a file: the path finder finds something else, the source is faulty,
    or a change of the source could not be detected."""


class UnusableFileError(Exception):
    """The file cannot be used; the text says why."""


def this_interpreter() -> tuple[object, ...]:
    """What bytecode and paths depend on."""
    return (MAGIC_NUMBER, sys.version, sys.flags.optimize, sys.prefix, sys.base_prefix)


def checksum(data: bytes) -> bytes:
    """The fast hash by which CPython compares sources with bytecode."""
    return _imp.source_hash(_FORMAT, data)


def pack_head(index_offset: int, index: bytes) -> bytes:
    """The first bytes of a file whose index begins at the offset and ends the file."""
    size = index_offset + len(index)
    return _HEAD.pack(_MARK, _FORMAT, index_offset, len(index), size, checksum(index))


def pack_index(index: Index) -> bytes:
    """The index as it is stored."""
    return marshal.dumps(tuple[Any, ...](index))


def read_index(fd: int) -> Index:
    """Reads and verifies the index.

    Raises:
        UnusableFileError: the file is incomplete, of another interpreter, or not trusted.
        OSError: it cannot be read.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError("it is not a regular file")
    if (reason := why_changeable(status)) is not None:
        raise UnusableFileError(reason)
    head = os.pread(fd, HEAD_BYTES, 0)
    if len(head) != HEAD_BYTES:
        raise UnusableFileError("it is incomplete")
    mark, file_format, offset, length, size, expected = _HEAD.unpack(head)
    if (mark, file_format) != (_MARK, _FORMAT):
        raise UnusableFileError("it has another format")
    data = os.pread(fd, length, offset) if size == status.st_size else b""
    if checksum(data) != expected:
        raise UnusableFileError("it is incomplete or damaged")
    index = Index(*marshal.loads(data))
    if index.interpreter != this_interpreter():
        raise UnusableFileError("it was written by another interpreter, or with other flags of it")
    return index
