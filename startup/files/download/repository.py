"""The files of a repository on the hub, and their paths in the hub's cache on disk.

The layout is that of the hub's client. `blobs/` has the contents of files, named by hash.
`snapshots/<commit>/` has links to the contents, named like the files. `refs/` has the commit of each branch.

While files are added to a snapshot, a marker says so. The commit of a branch is recorded last. So no start
takes an incomplete snapshot for a complete one, however this process ends.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from base.machine.files import is_safe_name, write_whole
from base.wording import format_bytes
from startup.files.download.messages import DownloadError
from startup.files.model.model_place import cached_commit, repository_name, unfinished_marker

logger = logging.getLogger(__name__)

_MOST_SHOWN: Final = 200


class HubFile(NamedTuple):
    """A file in a repository. Files with the same bytes share one content in the cache."""

    name: str
    size: int | None
    """The size in bytes. None if a mirror does not list it."""
    oid: str
    """The content's name: the SHA-256 of a large file, git's SHA-1 of a small one. Empty if it is unknown."""


class Listing(NamedTuple):
    """The files of one commit, as a hub lists them."""

    commit: str
    files: Mapping[str, HubFile]
    endpoint: str
    """The address that has listed the files."""


def keep_safe(repo_id: str, files: Mapping[str, HubFile]) -> dict[str, HubFile]:
    """The files whose names lead nowhere else. Logs once which others a hub has listed."""
    safe = {name: file for name, file in files.items() if is_safe_name(name)}
    folders: set[str] = set()
    for name in safe:
        parts = name.split("/")
        folders.update("/".join(parts[:count]) for count in range(1, len(parts)))
    kept = {name: file for name, file in safe.items() if name not in folders}
    if dropped := [name for name in files if name not in kept]:
        text = "%s lists %d files with names that no file in a folder can have, such as %r: they are left out"
        logger.warning(text, repo_id, len(dropped), dropped[0][:_MOST_SHOWN])
    return kept


class CachedRepository:
    """The folder of a repository in the cache."""

    def __init__(self, cache_dir: Path, repo_id: str) -> None:
        self.cache_dir = cache_dir
        self.repo_id = repo_id
        name = repository_name(repo_id)
        self.folder = cache_dir / name
        self._locks = cache_dir / ".locks" / name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def file(self, commit: str, name: str) -> Path:
        """The file's path in a snapshot. Raises a DownloadError if the name leads elsewhere."""
        if not is_safe_name(name):
            raise DownloadError("wrong", f"{self.repo_id} lists {name[:_MOST_SHOWN]!r}, which is no name of a file")
        return self.snapshot(commit) / name

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.oid

    def lacks(self, commit: str, files: Iterable[HubFile]) -> list[HubFile]:
        """Returns the files that the snapshot lacks, or has in another size."""
        return [file for file in files if not _has_size(self.file(commit, file.name), file.size)]

    def is_finished(self, commit: str, revision: str) -> bool:
        """Whether no download into the snapshot is unfinished, and the revision's commit is recorded."""
        if unfinished_marker(self.snapshot(commit)).exists():
            return False
        return cached_commit(self.folder, revision) == commit

    def content_sizes(self) -> dict[str, int]:
        """Name of each content on disk -> its size in bytes, or the size of its largest incomplete copy."""
        sizes: dict[str, int] = {}
        with suppress(OSError), os.scandir(self.folder / "blobs") as entries:
            for entry in entries:
                with suppress(OSError):
                    oid = entry.name.partition(".")[0]
                    sizes[oid] = max(sizes.get(oid, 0), entry.stat().st_size)
        return sizes

    def missing_bytes(self, commit: str, files: Iterable[HubFile], sizes: Mapping[str, int]) -> int:
        """Returns how many bytes the snapshot lacks, given the `content_sizes`."""
        lacking = {file.oid: file.size or 0 for file in self.lacks(commit, files)}
        missing = (size - sizes.get(oid, 0) for oid, size in lacking.items())
        return sum(each for each in missing if each > 0)

    @contextmanager
    def changing(self, commit: str, revision: str, files: Iterable[HubFile]) -> Iterator[None]:
        """Marks the snapshot as unfinished during the block. Records the commit of the revision at its end.

        Waits until no other start changes the repository. On a file system without locks, there is no wait.
        The kernel releases the lock, however its owner ends. Raises OSError.
        """
        marker = unfinished_marker(self.snapshot(commit))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(parents=True, exist_ok=True)
        path = self._locks / "vllm-cli.lock"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            marker.touch()
            self._drop_damaged(commit, files)
            yield
            if revision != commit:
                self._ref(revision).parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._ref(revision), commit)
            marker.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def remove_leftovers(self) -> None:
        """Removes incomplete contents of killed processes. The hub's client locks what it fetches."""
        for part in (self.folder / "blobs").glob("*.incomplete"):
            with suppress(OSError), (self._locks / f"{part.name.partition('.')[0]}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    def _drop_damaged(self, commit: str, files: Iterable[HubFile]) -> None:
        """Removes files of a wrong size, as after a power failure. The hub's client would keep them."""
        for file in files:
            for path in (self.file(commit, file.name), self.blob(file)):
                if path.is_file() and not _has_size(path, file.size):
                    path.unlink()

    def drop(self, commit: str, name: str) -> None:
        """Removes a file and its content, so that the hub's client fetches it again."""
        path = self.file(commit, name)
        content = path.resolve()
        path.unlink(missing_ok=True)
        if content.parent == (self.folder / "blobs").resolve():
            content.unlink(missing_ok=True)

    def _ref(self, revision: str) -> Path:
        if not is_safe_name(revision):
            shown = revision[:_MOST_SHOWN]
            raise DownloadError("wrong", f"{shown!r} is no name of a branch or tag: correct --revision")
        return self.folder / "refs" / revision


def check_room(folder: Path, needed_bytes: int, repo_id: str) -> None:
    """Raises a DownloadError if the disk has less free space than a repository's folder still needs.

    Raises no error if the file system does not report its free space.
    """
    try:
        disk = shutil.disk_usage(folder)
    except OSError:
        return
    if disk.total and needed_bytes > disk.free:
        lack = f"{format_bytes(needed_bytes)} are missing and {format_bytes(disk.free)} are free in {folder.parent}"
        advice = "free space, or give another --download-dir. Complete files are kept"
        raise DownloadError("disk", f"{repo_id} could not be downloaded: {lack}: {advice}")


def _has_size(path: Path, size: int | None) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return size is None or found.st_size == size
