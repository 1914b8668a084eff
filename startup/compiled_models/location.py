"""A location, in which machines share archives of compiled models: a folder, or a part of an object store.

An archive is written once and never changed. If several machines write the same archive, the first archive
stays, so no locks are needed. The archives have executable code, so a folder is used only if nobody except
this user and root can change its content.
"""

import errno
import heapq
import io
import os
import re
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, NamedTuple

from base.errors import with_causes
from base.machine.files import MODE, nearest_existing, why_changeable, write_problem
from envs.foreign import expand_home
from startup.compiled_models.record import ARCHIVE_SUFFIX
from startup.files.model.model_place import is_object_address, missing_package, without_file_scheme
from startup.storage.caches import why_not_trusted

MOST_LISTED: Final = 200
MOST_EXAMINED: Final = 1_000_000
"""The most archives of a location that are considered. For each, its name, size and time are in memory."""
_PART: Final = r"[A-Za-z0-9][\w.+-]{0,199}"
_NAME: Final = re.compile(rf"({_PART})/({_PART}{re.escape(ARCHIVE_SUFFIX)})", re.ASCII)
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.ASCII)
_ABANDONED_S: Final = 86_400.0
_WITHOUT_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_REMEDIES: Final = {errno.ENOSPC: "remove archives", errno.EDQUOT: "remove archives", errno.ENOENT: "add it first"}
_CHUNK_BYTES: Final = 1 << 20

_LONGEST_REQUEST_S: Final = 20.0
_LONGEST_RANGE_S: Final = 60.0
_SLOWEST_UPLOAD: Final = 250_000
"""The least bytes per second of an upload. A slower upload is aborted."""
_TAIL_BYTES: Final = 128 << 10
"""The bytes at an archive's end that the first request reads. The directory and the record are there."""
_PUT_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "s3": {"mode": "create", "chunksize": 8 << 20, "max_concurrency": 2},
    "gs": {"mode": "create", "chunksize": 8 << 20},
    "az": {"overwrite": False, "max_concurrency": 2},
}
"""Store -> options with which the store refuses objects that exist, and uploads need little memory."""
_EXISTS: Final = ("PreconditionFailed", "ConditionalRequestConflict")
"""S3's codes for an object that exists or that another client is writing. s3fs does not handle both."""


class LocationError(OSError):
    """The location cannot be used as requested. The message is one line with the address and advice."""


class StoredArchive(NamedTuple):
    """An archive in the list of a location."""

    name: str
    """The name of the archive: `KIND/FILE.zip`."""
    size: int
    modified_s: float
    """When the archive was added or last used, in seconds since 1970 by the clock of the location."""


class Location(ABC):
    """Archives by name. All methods raise LocationError, for example if the name of an archive is not valid.

    An OSError about the caller's own file (`path`, `scratch`) is raised unchanged.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def list(self, family: str = "", *, most: int = MOST_LISTED) -> list[StoredArchive]:
        """The newest archives of a family or of all families, newest first. Other files are left out."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Opens an archive to read a part of it. A store needs one or two requests for the record."""

    def open_whole(self, name: str, scratch: Path) -> BinaryIO:
        """Opens an archive to read all of it. An object is downloaded into a nameless file in `scratch`."""
        return self.open(name)

    @abstractmethod
    def add(self, name: str, path: Path) -> bool:
        """Adds the file `path` as an archive. Returns False if the location already has this archive."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes an archive. Does nothing if there is no such archive."""

    def write_problem(self) -> str | None:
        """Why archives cannot be added, as far as this is known without an attempt. None if none is known."""
        return None

    def touch(self, name: str) -> None:  # noqa: B027 - stores do nothing
        """Marks an archive as used now, if the folder permits it. Object stores have no such mark."""

    def _split(self, name: str) -> tuple[str, str]:
        if (match := _NAME.fullmatch(name)) is None:
            raise LocationError(f"{name!r} cannot be the name of an archive in {self.address}")
        return match[1], match[2]


def open_location(address: str) -> Location:
    """The location at an address. Sends no requests.

    Args:
        address: a folder, `file:///folder`, or an address that begins with `s3://`, `gs://` or `az://`.

    Raises:
        LocationError: the address is of no known kind, a package is missing, or the folder is not trusted. A
            folder need not exist yet if its parent folder exists.
    """
    if is_object_address(address):
        if problem := missing_package(address):
            raise LocationError(problem)
        return _StoreLocation(address)
    path = without_file_scheme(address)
    if not path or "://" in path:
        raise LocationError(f"{address!r} is not a location: give a folder, or s3://, gs:// or az:// with a bucket")
    return _FolderLocation(address, Path(expand_home(path)))


class _FolderLocation(Location):
    def __init__(self, address: str, folder: Path) -> None:
        super().__init__(address)
        with self._explained("read"):
            self._folder = folder.absolute()
            self._check()
            self._folder = folder.resolve()
            is_file = self._folder.exists() and not self._folder.is_dir()
            if is_file or not self._folder.parent.is_dir():
                raise LocationError(f"{address} is neither a folder nor a name in an existing folder: correct it")

    def list(self, family: str = "", *, most: int = MOST_LISTED) -> list[StoredArchive]:
        with self._explained("read"):
            self._check(family)
            entries = () if family else _entries(self._folder)
            families = [family] if family else [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return _newest(chain.from_iterable(map(self._archives_of, families)), most)

    def open(self, name: str) -> BinaryIO:
        family, file_name = self._split(name)
        with self._explained("read", name):
            self._check(family)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = open(os.open(self._folder / family / file_name, flags), "rb")  # noqa: PTH123, SIM115
            status = os.fstat(file.fileno())
            reason = why_changeable(status, name) if stat.S_ISREG(status.st_mode) else f"{name} is not a regular file"
            if reason is not None:
                file.close()
                raise LocationError(f"{reason}, so it is not used: remove it from {self.address}")
            return file

    def add(self, name: str, path: Path) -> bool:
        family, file_name = self._split(name)
        with self._explained("written to", name):
            folder = self._folder / family
            for each in (self._folder, folder):
                each.mkdir(mode=0o755, exist_ok=True)
            self._check(family)
            return not os.path.lexists(folder / file_name) and _add(folder, file_name, path)

    def remove(self, name: str) -> None:
        family, file_name = self._split(name)
        with self._explained("written to", name):
            self._check(family)
            (self._folder / family / file_name).unlink(missing_ok=True)

    def write_problem(self) -> str | None:
        return write_problem(str(nearest_existing(self._folder)))

    def touch(self, name: str) -> None:
        family, file_name = self._split(name)
        with suppress(OSError):
            os.utime(self._folder / family / file_name, follow_symlinks=False)

    def _archives_of(self, family: str) -> Iterator[StoredArchive]:
        for entry in _entries(self._folder / family):
            name = f"{family}/{entry.name}"
            if _NAME.fullmatch(name) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield StoredArchive(name, status.st_size, status.st_mtime)

    def _check(self, family: str = "") -> None:
        problem = why_not_trusted(self._folder, os.geteuid(), parts=(family,) if family else ())
        if problem is not None:
            remedy = "only its user and root may be able to write there, and to the folders above"
            raise LocationError(f"{problem}, so {self.address} is not used: {remedy}")

    @contextmanager
    def _explained(self, verb: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except LocationError:
            raise
        except OSError as err:
            remedy = _REMEDIES.get(err.errno or 0, "check its permissions, and that the volume is mounted")
            what = f"{name} in {self.address}" if name else self.address
            raise LocationError(f"{what} cannot be {verb}: {err.strerror or err}: {remedy}") from err


def _add(folder: Path, name: str, path: Path) -> bool:
    """Copies a file to a temporary file, then links the name to it, so that no partial archive is visible."""
    beside = folder / f".{name}.{os.urandom(8).hex()}.part"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as target, path.open("rb") as source:  # noqa: PTH123 - a descriptor
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
            target.flush()
            os.fchmod(fd, MODE)
            os.fsync(fd)
            _remove_abandoned(folder, os.fstat(fd).st_mtime)
        return _link(beside, folder / name)
    finally:
        beside.unlink(missing_ok=True)


def _link(beside: Path, path: Path) -> bool:
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        return False
    except OSError as err:
        if err.errno not in _WITHOUT_LINKS:
            raise
        if os.path.lexists(path):
            return False
        beside.rename(path)
    return True


def _remove_abandoned(folder: Path, now_s: float) -> None:
    """Removes temporary files of killed writers. `now_s` is the present time by the file system's clock."""
    for entry in _entries(folder):
        with suppress(OSError):
            if _TEMPORARY.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < now_s - _ABANDONED_S:
                Path(entry.path).unlink()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        yield from entries


def _newest(archives: Iterable[StoredArchive], most: int) -> list[StoredArchive]:
    return heapq.nlargest(most, archives, key=lambda archive: archive.modified_s)


class _StoreLocation(Location):
    """Archives in an object store. The store's client library sends the requests, on a thread of fsspec."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        from startup.files.download.object_store import file_system, root_of

        self._sizes: dict[str, int] = {}
        """Name of an archive -> its size. Archives do not change, so neither does the size."""
        with self._explained("read"):
            self._system = file_system(address)
            self._root = root_of(self._system, address)

    def list(self, family: str = "", *, most: int = MOST_LISTED) -> list[StoredArchive]:
        with self._explained("read"):
            folder = f"{self._root}/{family}/" if family else f"{self._root}/"
            found = self._wait(self._system._find, folder, detail=True)
        stored = (
            StoredArchive(name, int(info["size"]), _modified_s(info))
            for path, info in found.items()
            if _NAME.fullmatch(name := path.removeprefix(f"{self._root}/"))
        )
        archives = _newest(stored, most)
        self._sizes.update((archive.name, archive.size) for archive in archives)
        return archives

    def open(self, name: str) -> BinaryIO:
        size = self._size_of(name)
        content = _StoredObject(size, lambda *span: b"".join(self._ranges(name, *span)))
        return io.BufferedReader(content, _CHUNK_BYTES)

    def open_whole(self, name: str, scratch: Path) -> BinaryIO:
        size = self._size_of(name)
        file: Any = TemporaryFile(dir=scratch)  # noqa: SIM115 - the caller closes it
        try:
            for chunk in self._ranges(name, 0, size):
                file.write(chunk)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file  # type: ignore[no-any-return]

    def add(self, name: str, path: Path) -> bool:
        self._split(name)
        upload_s = path.stat().st_size / _SLOWEST_UPLOAD
        options = _PUT_OPTIONS[self.address.partition("://")[0].lower()]
        with self._explained("written to", name):
            if self._wait(self._system._exists, f"{self._root}/{name}"):
                return False
            try:
                self._wait(self._system._put_file, str(path), f"{self._root}/{name}", upload_s=upload_s, **options)
            except Exception as err:
                if not _is_conflict(err):
                    raise
                return False
            return True

    def remove(self, name: str) -> None:
        self._split(name)
        with self._explained("written to", name), suppress(FileNotFoundError):
            self._wait(self._system._rm_file, f"{self._root}/{name}")

    def _size_of(self, name: str) -> int:
        self._split(name)
        if name not in self._sizes:
            with self._explained("read", name):
                self._sizes[name] = int(self._wait(self._system._info, f"{self._root}/{name}")["size"])
        return self._sizes[name]

    def _ranges(self, name: str, begin: int, end: int) -> Iterator[bytes]:
        from startup.files.download.object_store import read_ranges

        with self._explained("read", name):
            path = f"{self._root}/{name}"
            yield from read_ranges(self._system, path, begin, end, longest_range_s=_LONGEST_RANGE_S)

    def _wait(self, request: Any, *arguments: Any, upload_s: float = 0.0, **options: Any) -> Any:
        """Waits for the result of a request. Raises TimeoutError after 20 s plus `upload_s`."""
        from fsspec.asyn import sync

        return sync(self._system.loop, request, *arguments, timeout=_LONGEST_REQUEST_S + upload_s, **options)

    @contextmanager
    def _explained(self, verb: str, name: str = "") -> Iterator[None]:
        from startup.files.download.object_store import explain

        try:
            yield
        except Exception as err:
            address = f"{self.address.rstrip('/')}/{name}" if name else self.address
            failure = explain(err, address, verb=verb)
            remedy = ": check the address and the network" if failure.kind == "unreachable" else ""
            raise LocationError(f"{failure}{remedy}") from err


class _StoredObject(io.RawIOBase):
    """An object that is read in ranges. The last range stays in memory."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read = read
        self._position = self._begin = 0
        self._content = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(bases[whence] + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        position, last = self._position, self._size - _TAIL_BYTES
        if position >= self._size:
            return 0
        if not self._begin <= position < self._begin + len(self._content):
            self._begin = max(last, 0) if position >= last else position
            end = self._size if position >= last else min(position + len(buffer), self._size)
            self._content = self._read(self._begin, end)
        found = self._content[position - self._begin :][: len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def _modified_s(info: Any) -> float:
    modified = info.get("LastModified") or info.get("mtime") or info.get("last_modified")
    return float(modified.timestamp()) if modified is not None else 0.0


def _is_conflict(err: BaseException | None) -> bool:
    """Whether a store has refused an object because the object exists already."""
    return any(isinstance(each, FileExistsError) or _code_of(each) in _EXISTS for each in with_causes(err))


def _code_of(err: BaseException) -> str | None:
    """The code that S3 has answered, which botocore's ClientError has."""
    response = getattr(err, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
