"""An archive of one compiled model: a zip file with its files and, as the last member, its record.

Archives are written with `zipfile`, and read by stricter rules: members lie without gaps in the order of the
directory and are deflated, and nothing else is accepted, whatever other zip files may have. The content is
executable code, so each file is compared with the record's SHA-256 before anybody can load it.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from zipfile import ZIP64_LIMIT, ZIP_DEFLATED, LargeZipFile, ZipFile, ZipInfo

from startup.compile_cache.record import CompiledModel, FileFacts

MANIFEST: Final = "manifest.json"
MOST_FILES: Final = 60_000
"""An archive has no fields of more than 32 bits, so its members are counted with 16."""

_LEVEL: Final = 1
_CHUNK_BYTES: Final = 1 << 20
_MOST_MANIFEST_BYTES: Final = 32 << 20
_MOST_DIRECTORY_BYTES: Final = 16 << 20
_LONGEST_NAME: Final = 1024
_LONGEST_PART: Final = 255
"""Bytes of a file's name, which file systems have room for."""

_END: Final = struct.Struct("<4s4H2LH")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_HEADER: Final = struct.Struct("<4s5H3L2H")
_UTF8_FLAG: Final = 0x800
_DEFLATE_FLAGS: Final = 0x006
"""How hard the compressor tried."""
_MS_DOS_FOLDER: Final = 0x10


class ArchiveError(ValueError):
    """The archive is damaged, or of a form that this program does not read; the message is one line."""


class DamagedError(ArchiveError):
    """A file in the archive is not the one that was packed."""


class _Member(NamedTuple):
    name: str
    begin: int
    """Where its header is in the archive."""
    packed_bytes: int
    num_bytes: int


def write_archive(path: Path, record: CompiledModel, sources: Mapping[str, Path]) -> CompiledModel:
    """Packs files into a new archive, and returns the record with them.

    What is a link, not a regular file, or no longer there is left out.

    Args:
        path: of the archive; it must not exist yet.
        record: of the compiled model; its `files` are replaced.
        sources: the files, by their names in the archive.

    Raises:
        OSError: a file cannot be read, or the archive not be written; what is written of it stays.
        ValueError: a name is not allowed, the files are too many or too large, or `read_record` refuses them.
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
        read_record(file)
    return packed


def read_record(file: BinaryIO) -> CompiledModel:
    """The record in an archive; reads its directory and this member only.

    Raises:
        ArchiveError: it is not an archive of this format.
        OSError: it cannot be read.
    """
    return _read_record(file, _read_directory(file)[-1])


def unpack(file: BinaryIO, folder: Path, *, max_bytes: int) -> CompiledModel:
    """Writes the files into a folder and returns their record; each was compared with it.

    After an error, the caller removes the folder. Files have mode 0600, folders 0700. Nothing is synced.

    Args:
        file: the archive, seekable.
        folder: exists and is empty, and belongs to this user alone.
        max_bytes: the most that the files may have together.

    Raises:
        ArchiveError: it is not an archive of this format, is damaged, or has too many bytes.
        OSError: it cannot be read, or a file not be written.
    """
    *members, manifest = _read_directory(file)
    record = _read_record(file, manifest)
    listed = {name: facts.size for name, facts in record.files.items()}
    if {member.name: member.num_bytes for member in members} != listed:
        raise ArchiveError(f"its files are not those of its {MANIFEST}")
    if record.num_bytes > max_bytes:
        raise ArchiveError(f"its files have {record.num_bytes} bytes, more than {max_bytes}")
    for parent in sorted(_parents(record.files)):
        (folder / parent).mkdir(mode=0o700)
    for member in members:
        if _write_file(file, member, folder / member.name) != record.files[member.name].sha256:
            raise DamagedError(f"{member.name!r} has not the SHA-256 of its {MANIFEST}")
    return record


def _pack(archive: ZipFile, name: str, source: Path) -> FileFacts | None:
    """Adds a file of at most the size that it has now."""
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
        with archive.open(name, "w") as member:  # its date is the same in all archives
            while chunk := file.read(min(_CHUNK_BYTES, status.st_size - size)):
                member.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    return FileFacts(size, digest.hexdigest())


def _read_directory(file: BinaryIO) -> list[_Member]:
    """The members in their order in the file; the last one is the manifest."""
    size = file.seek(0, os.SEEK_END)
    end = _read_struct(file, max(size - _END.size, 0), _END)
    mark, disk, first_disk, num_here, num_members, num_bytes, begin, comment = end
    if mark != b"PK\5\6" or comment:
        raise ArchiveError("it has no end of a zip file: it was cut, or is something else")
    if disk or first_disk or num_here != num_members or begin + num_bytes + _END.size != size:
        raise ArchiveError("its directory is not where its end says")
    if not 0 < num_members <= MOST_FILES + 1 or num_bytes > _MOST_DIRECTORY_BYTES:
        raise ArchiveError(f"it has {num_members} members, and a directory of {num_bytes} bytes")
    members = list(_parse_directory(_read_exactly(file, begin, num_bytes), num_members, begin))
    *names, last = (member.name for member in members)
    if last != MANIFEST:
        raise ArchiveError(f"its last member is not its {MANIFEST}")
    if len(set(names)) != len(names):
        raise ArchiveError("two of its members have the same name")
    if problem := _why_wrong_names(names):
        raise ArchiveError(problem)
    return members


def _parse_directory(directory: bytes, num_members: int, directory_begin: int) -> Iterator[_Member]:
    """Each member begins where the one before ends, so that none can contain another."""
    position = begin = 0
    for _ in range(num_members):
        if position + _ENTRY.size > len(directory):
            raise ArchiveError("its directory has fewer entries than it says")
        entry = _ENTRY.unpack_from(directory, position)
        mark, flags, method, packed, size, length = (entry[i] for i in (0, 3, 4, 8, 9, 10))
        extra, comment, disk, _, attributes, at = entry[11:]
        position += _ENTRY.size
        name = _decode(directory[position : position + length])
        position += length
        if mark != b"PK\1\2" or extra or comment or disk or position > len(directory):
            raise ArchiveError("an entry of its directory has another form than this program writes")
        if not _is_plain(flags, method):
            raise ArchiveError(f"{name!r} is encrypted, or not simply deflated")
        if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG) or attributes & _MS_DOS_FOLDER:
            raise ArchiveError(f"{name!r} is not a regular file")
        if at != begin:
            raise ArchiveError(f"{name!r} overlaps another member, or lies after a gap")
        yield _Member(name, begin, packed, size)
        begin += _HEADER.size + length + packed
    if position != len(directory) or begin != directory_begin:
        raise ArchiveError("it has bytes that belong to no member")


def _why_wrong_names(names: Mapping[str, object] | list[str]) -> str | None:
    """Why these cannot be the names of an archive's files; None if they can."""
    if len(names) > MOST_FILES:
        return f"it has {len(names)} files, more than {MOST_FILES}"
    wrong = next((name for name in names if name == MANIFEST or not _is_safe(name)), None)
    if wrong is not None:
        return f"{wrong[:_LONGEST_PART]!r} is not an allowed name of a file"
    both = _parents(names).intersection(names)
    return f"{min(both)!r} is both a file and a folder" if both else None


def _is_safe(name: str) -> bool:
    """Whether the name stays below any folder, and a file of that name can exist."""
    if not name.isprintable() or "\\" in name or len(name.encode()) > _LONGEST_NAME:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_PART for part in name.split("/"))


def _parents(names: Mapping[str, object] | list[str]) -> set[str]:
    """The folders of these files."""
    found: set[str] = set()
    for name in names:
        parent = name.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found


def _is_plain(flags: int, method: int) -> bool:
    return flags & ~(_UTF8_FLAG | _DEFLATE_FLAGS) == 0 and method == ZIP_DEFLATED


def _read_record(file: BinaryIO, manifest: _Member) -> CompiledModel:
    if manifest.num_bytes > _MOST_MANIFEST_BYTES:
        raise ArchiveError(f"its {MANIFEST} has {manifest.num_bytes} bytes, more than {_MOST_MANIFEST_BYTES}")
    content = b"".join(_inflate(file, manifest))
    try:
        return CompiledModel.from_json(content)
    except ValueError as err:
        raise ArchiveError(" ".join(str(err).split())) from err


def _write_file(file: BinaryIO, member: _Member, path: Path) -> str:
    """Writes a member into a new file and returns its SHA-256."""
    digest = sha256()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=0) as target:  # noqa: PTH123 - a descriptor
        for chunk in _inflate(file, member):
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[target.write(rest) :]
    return digest.hexdigest()


def _inflate(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    """The member's bytes in chunks; raises ArchiveError unless they are exactly as many as its size."""
    mark, _, flags, method, _, _, _, packed, size, length, extra = _read_struct(file, member.begin, _HEADER)
    name = _read_exactly(file, member.begin + _HEADER.size, length)
    if mark != b"PK\3\4" or extra or not _is_plain(flags, method):
        raise ArchiveError(f"the header of {member.name!r} has another form than this program writes")
    if (_decode(name), packed, size) != (member.name, member.packed_bytes, member.num_bytes):
        raise DamagedError(f"the header of {member.name!r} differs from the directory")
    inflater, left = zlib.decompressobj(-zlib.MAX_WBITS), member.num_bytes
    position = member.begin + _HEADER.size + length
    end = position + member.packed_bytes
    while not inflater.eof:
        packed_chunk = inflater.unconsumed_tail
        if not packed_chunk:
            packed_chunk = _read_exactly(file, position, min(_CHUNK_BYTES, end - position))
            position += len(packed_chunk)
        try:
            chunk = inflater.decompress(packed_chunk, _CHUNK_BYTES)
        except zlib.error as err:
            raise DamagedError(f"{member.name!r} is damaged: {err}") from err
        left -= len(chunk)
        if left < 0 or not (chunk or packed_chunk):
            raise DamagedError(f"{member.name!r} has not the size that its header says")
        yield chunk
    if left or inflater.unused_data or position != end:
        raise DamagedError(f"{member.name!r} has not the size that its header says")


def _decode(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ArchiveError("the name of a member is not UTF-8") from None


def _read_struct(file: BinaryIO, begin: int, form: struct.Struct) -> tuple[Any, ...]:
    return form.unpack(_read_exactly(file, begin, form.size))


def _read_exactly(file: BinaryIO, begin: int, num_bytes: int) -> bytes:
    file.seek(begin)
    content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise ArchiveError("it ends before its members do")
    return content
