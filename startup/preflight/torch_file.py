"""Checks that a PyTorch `.bin` file is complete, without unpickling it.

Since PyTorch 1.6 such a file is a zip archive with its directory at the end. An older file is a bare pickle,
of which only the beginning can be checked.
"""

import os
from pathlib import Path
from typing import BinaryIO, Final

_ZIP_MAGIC: Final = b"PK\x03\x04"
_PICKLE_MAGIC: Final = b"\x80"
_END_RECORD: Final = b"PK\x05\x06"
_END_BYTES: Final = 22
_END64_LOCATOR: Final = b"PK\x06\x07"
_END64_BYTES: Final = 20
_FIELD_IS_IN_64: Final = 0xFFFFFFFF


def torch_file_problem(path: Path) -> str | None:
    """The file's fault; None if there is none."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_ZIP_MAGIC))
            size = os.fstat(file.fileno()).st_size
            if magic == _ZIP_MAGIC:
                return _archive_problem(file, size)
    except OSError as err:
        return f"cannot be read: {err.strerror}"
    if magic.startswith(_PICKLE_MAGIC):
        return None
    return f"is not a PyTorch checkpoint: it has {size} bytes and begins with {magic!r}"


def _archive_problem(file: BinaryIO, size: int) -> str | None:
    tail_bytes = min(size, _END_BYTES + _END64_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    locator, record = tail[:-_END_BYTES], tail[-_END_BYTES:]
    if not record.startswith(_END_RECORD):
        return f"is truncated: after {size} bytes it ends without the archive's directory"
    directory_bytes, directory_begin = _number(record, 12), _number(record, 16)
    if directory_begin == _FIELD_IS_IN_64:
        return None if locator.startswith(_END64_LOCATOR) else "is corrupt: the archive's directory cannot be found"
    if directory_begin + directory_bytes > size - _END_BYTES:
        wanted = directory_begin + directory_bytes + _END_BYTES
        return f"is truncated: the archive's directory calls for {wanted} bytes, the file has {size}"
    return None


def _number(record: bytes, offset: int) -> int:
    return int.from_bytes(record[offset : offset + 4], "little")
