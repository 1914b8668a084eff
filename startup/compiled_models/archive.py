"""An archive of a compiled model or of shared files: a zip file with the files and, at its end, their record.

The record has the sizes, names and SHA-256 of the files, which are checked before vLLM can load them. The
checks only find damage. The files are executable code, so anyone who can write an archive can run code on
every machine that reads it (docs/security.md).
"""

import calendar
import errno
import os
import stat
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from zipfile import ZIP64_LIMIT, ZIP_DEFLATED, BadZipFile, LargeZipFile, ZipFile, ZipInfo

from base.machine.files import is_safe_name
from base.wording import one_line
from startup.compiled_models.record import CompiledModel, FileFacts, SharedFiles

MANIFEST: Final = "manifest.json"
MOST_FILES: Final = 60_000
"""The most files in an archive. Without ZIP64, a zip file counts its members in 16 bits."""

_LEVEL: Final = 1
_CHUNK_BYTES: Final = 1 << 20
_MOST_MANIFEST_BYTES: Final = 32 << 20
_MOST_SHOWN: Final = 255
"""The most characters of a wrong name in a message."""
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)
"""The date of the record's member, and of all members in archives of earlier releases."""
_LAST_DATE: Final = (2107, 12, 31, 23, 59, 58)
_DAMAGE: Final = (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error)
"""Exceptions of `zipfile` for a file that is damaged or is not an archive."""


Record = TypeVar("Record", CompiledModel, SharedFiles)


class ArchiveError(ValueError):
    """The archive is damaged, or has a form that this program does not read. The message is one line."""


class DamagedError(ArchiveError):
    """A file in the archive has changed since it was packed."""


def write_archive(path: Path, record: Record, sources: Mapping[str, Path]) -> Record:
    """Packs files into a new archive. Returns the record with the facts about these files.

    `sources` maps names in the archive to files. `path` must not exist yet. Links, files that are not regular
    and files that no longer exist are left out.

    Raises:
        OSError: a file cannot be read, or the archive cannot be written. A partly written archive remains.
        ValueError: a name is not allowed, the files are too many or too large, or `read_record` rejects the
            archive.
    """
    if problem := _why_wrong_names(sources):
        raise ValueError(f"an archive of a compiled model cannot be written: {problem}")
    files: dict[str, FileFacts] = {}
    try:
        with ZipFile(path, "x", ZIP_DEFLATED, allowZip64=False, compresslevel=_LEVEL) as archive:
            for name, source in sorted(sources.items()):
                if (facts := _pack(archive, name, source)) is not None:
                    files[name] = facts
            packed = record.with_files(files)
            archive.writestr(ZipInfo(MANIFEST), packed.to_json(), ZIP_DEFLATED, _LEVEL)
    except LargeZipFile as err:
        raise ValueError(f"an archive of a compiled model cannot be written: {err}") from err
    with path.open("rb") as file:
        read_record(file, type(record))
    return packed


def read_record(file: BinaryIO, kind: type[Record]) -> Record:
    """The record in an archive. Only the archive's directory and this member are read.

    Raises:
        ArchiveError: the file is not an archive of this format.
        OSError: the file cannot be read.
    """
    with _opened(file) as archive:
        return _read_record(archive, kind)


def unpack(file: BinaryIO, folder: Path, kind: type[Record], *, max_bytes: int) -> Record:
    """Unpacks the files into an empty folder, compares each file with the record, and returns the record.

    If an error is raised, the caller removes the folder. Files get mode 0600 and folders 0700. Files keep
    their modification times, rounded to 2 s, because ninja compares these times when FlashInfer compiles. The
    files are not synced to the disk.

    Raises:
        ArchiveError: the file is not an archive of this format, is damaged, or has more than `max_bytes`.
        OSError: the archive cannot be read, or a file cannot be written.
    """
    with _opened(file) as archive:
        record = _read_record(archive, kind)
        if problem := _why_wrong_names(record.files):
            raise ArchiveError(problem)
        if record.num_bytes > max_bytes:
            raise ArchiveError(f"its files have {record.num_bytes} bytes, more than {max_bytes}")
        for parent in sorted(_parents(record.files)):
            (folder / parent).mkdir(mode=0o700)
        for name, facts in record.files.items():
            if _write_file(_read_member(archive, name, facts.size), folder / name) != facts.sha256:
                raise DamagedError(f"{name!r} does not have the SHA-256 in its {MANIFEST}")
            _set_date(folder / name, archive.getinfo(name))
    return record


def _pack(archive: ZipFile, name: str, source: Path) -> FileFacts | None:
    """Adds a file with its present size to the archive. Returns None if the file is left out."""
    try:
        status = source.lstat()
        if not stat.S_ISREG(status.st_mode):
            return None
        file = source.open("rb")
    except FileNotFoundError:
        return None
    with file:
        if status.st_size > ZIP64_LIMIT:
            raise LargeZipFile(f"{source} has {status.st_size} bytes")
        digest, size = sha256(), 0
        with archive.open(name, "w") as member:
            while chunk := file.read(min(_CHUNK_BYTES, status.st_size - size)):
                member.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    date = time.gmtime(status.st_mtime)[:6]
    archive.getinfo(name).date_time = min(max(date, _NO_DATE), _LAST_DATE)
    return FileFacts(size, digest.hexdigest())


def _why_wrong_names(names: Mapping[str, object]) -> str | None:
    """Why an archive cannot have files with these names. None if all names are allowed."""
    if len(names) > MOST_FILES:
        return f"it has {len(names)} files, more than {MOST_FILES}"
    wrong = next((name for name in names if name == MANIFEST or not is_safe_name(name)), None)
    if wrong is not None:
        return f"{wrong[:_MOST_SHOWN]!r} is not an allowed name of a file"
    both = _parents(names).intersection(names)
    return f"{min(both)!r} is both a file and a folder" if both else None


def _parents(names: Mapping[str, object]) -> set[str]:
    found: set[str] = set()
    for name in names:
        parent = name.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


@contextmanager
def _opened(file: BinaryIO) -> Iterator[ZipFile]:
    with _explained(ArchiveError, "it was cut, or is not a zip file"):
        archive = ZipFile(file)
    with archive:
        yield archive


@contextmanager
def _explained(kind: type[ArchiveError], what: str) -> Iterator[None]:
    """Raises errors of `zipfile` in the block as errors of this kind. Their messages begin with `what`."""
    try:
        yield
    except ArchiveError:
        raise
    except _DAMAGE as err:
        raise kind(f"{what}: {err}") from err
    except OSError as err:
        if err.errno != errno.EINVAL:  # a seek before the beginning, where the directory of a cut file points
            raise
        raise kind(f"{what}: {err}") from err


def _read_record(archive: ZipFile, kind: type[Record]) -> Record:
    content = b"".join(_read_member(archive, MANIFEST, _MOST_MANIFEST_BYTES))
    try:
        return kind.from_json(content)
    except ValueError as err:
        raise ArchiveError(one_line(err)) from err


def _read_member(archive: ZipFile, name: str, most_bytes: int) -> Iterator[bytes]:
    """Yields the member's content in chunks. Raises ArchiveError if it has more than `most_bytes`."""
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise DamagedError(f"it has no {name!r}") from None
    if member.file_size > most_bytes or member.compress_type != ZIP_DEFLATED:
        raise ArchiveError(f"{name!r} has {member.file_size} bytes, more than {most_bytes}, or is not deflated")
    with _explained(DamagedError, f"{name!r} is damaged"), archive.open(member) as content:
        while chunk := content.read(_CHUNK_BYTES):  # ends after `file_size` bytes
            yield chunk


def _write_file(content: Iterator[bytes], path: Path) -> str:
    digest = sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as target:  # noqa: PTH123 - a descriptor
        for chunk in content:
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _set_date(path: Path, member: ZipInfo) -> None:
    if member.date_time != _NO_DATE:
        with _explained(ArchiveError, f"{member.filename!r} has no valid date"):
            changed_s = calendar.timegm((*member.date_time, 0, 0, 0))
        os.utime(path, (changed_s, changed_s))
