"""A location, a folder in which machines share archives of compiled models.

An archive is written once and never changed. If several machines write the same archive, the first archive
stays, so no locks are needed. The archives have executable code, so a folder is used only if nobody except
this user and root can change its content.
"""

import errno
import heapq
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from base.machine.files import MODE, nearest_existing, why_changeable, write_problem
from envs.foreign import expand_home
from startup.compiled_models.record import ARCHIVE_SUFFIX
from startup.files.model.model_place import without_file_scheme
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


class LocationError(OSError):
    """The location cannot be used as requested. The message is one line with the address and advice."""


class StoredArchive(NamedTuple):
    """An archive in the list of a location."""

    name: str
    """The name of the archive: `KIND/FILE.zip`."""
    size: int
    modified_s: float
    """When the archive was added or last used, in seconds since 1970 by the clock of the location."""


def open_location(address: str) -> "Location":
    """The location at an address: a folder, or `file:///folder`.

    Raises:
        LocationError: the address is not a folder, or the folder is not trusted. A folder need not exist yet
            if its parent folder exists.
    """
    path = without_file_scheme(address)
    if not path or "://" in path:
        raise LocationError(f"{address!r} is not a location: give a folder, such as one of a mounted bucket")
    return Location(address, Path(expand_home(path)))


class Location:
    """Archives by name. All methods raise LocationError, for example if the name of an archive is not valid.

    An OSError about the caller's own file is raised unchanged.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        with self._explained("read"):
            self._folder = folder.absolute()
            self._check()
            self._folder = folder.resolve()
            is_file = self._folder.exists() and not self._folder.is_dir()
            if is_file or not self._folder.parent.is_dir():
                raise LocationError(f"{address} is neither a folder nor a name in an existing folder: correct it")

    def list(self, family: str = "", *, most: int = MOST_LISTED) -> list[StoredArchive]:
        """The newest archives of a family or of all families, newest first. Other files are left out."""
        with self._explained("read"):
            self._check(family)
            entries = () if family else _entries(self._folder)
            families = [family] if family else [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return _newest(chain.from_iterable(map(self._archives_of, families)), most)

    def open(self, name: str) -> BinaryIO:
        """Opens an archive to read it."""
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
        """Adds the file `path` as an archive. Returns False if the location already has this archive."""
        family, file_name = self._split(name)
        with self._explained("written to", name):
            folder = self._folder / family
            for each in (self._folder, folder):
                each.mkdir(mode=0o755, exist_ok=True)
            self._check(family)
            return not os.path.lexists(folder / file_name) and _add(folder, file_name, path)

    def remove(self, name: str) -> None:
        """Removes an archive. Does nothing if there is no such archive."""
        family, file_name = self._split(name)
        with self._explained("written to", name):
            self._check(family)
            (self._folder / family / file_name).unlink(missing_ok=True)

    def write_problem(self) -> str | None:
        """Why archives cannot be added, as far as this is known without an attempt. None if none is known."""
        return write_problem(str(nearest_existing(self._folder)))

    def touch(self, name: str) -> None:
        """Marks an archive as used now, if the folder permits it."""
        family, file_name = self._split(name)
        with suppress(OSError):
            os.utime(self._folder / family / file_name, follow_symlinks=False)

    def _split(self, name: str) -> tuple[str, str]:
        if (match := _NAME.fullmatch(name)) is None:
            raise LocationError(f"{name!r} cannot be the name of an archive in {self.address}")
        return match[1], match[2]

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
