"""The files of a repository on the hub, and their paths in the hub's cache on disk.

The layout is that of the hub's client. `blobs/` has the contents of files, named by hash.
`snapshots/<commit>/` has links to the contents, named like the files. `refs/` has the commit of each branch.

A content has a temporary name until it is complete and its hash is verified. Links are made last. So no
process finds an incomplete file, however this process ends.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.wording import format_bytes
from startup.files.download.messages import DownloadError
from startup.files.model.checkpoint_folder import read_index
from startup.files.model.model_place import is_object_address, repository_name, unfinished_marker

PART_ENDING: Final = ".vllm-cli.incomplete"
"""The ending of an incomplete content's name. The hub's own tools remove files that end in `.incomplete`."""

_ETAG: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""The form of a content's name if a mirror reports no hash. Then only the content's size is verified."""
VERSION_PREFIX: Final = "version-"
"""A name with this beginning has an object's version instead of a hash. Size and version are verified."""
MD5_PREFIX: Final = "md5-"
_SHA256_LENGTH: Final = 64
_SHA1_LENGTH: Final = 40
_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class HubFile:
    """A file in a repository. Files with the same bytes share one content in the cache."""

    name: str
    size: int | None
    """The size in bytes. None if the hub does not report it."""
    oid: str
    """The content's name: the SHA-256 of a large file, git's SHA-1 of a small one. Empty if it is unknown."""

    @classmethod
    def from_sibling(cls, fields: Mapping[str, Any]) -> "HubFile":
        """Reads an entry of the hub's list."""
        lfs = fields.get("lfs") or {}
        oid = lfs.get("sha256") or lfs.get("oid") or fields.get("blobId") or ""
        size = lfs.get("size") if lfs.get("size") is not None else fields.get("size")
        return cls(str(fields["rfilename"]), size if isinstance(size, int) else None, _checked_oid(str(oid)))

    def described(self, etag: str, size: int | None) -> "HubFile":
        """Returns the file with the hash and size from the headers of its own address."""
        oid = _checked_oid(etag) or (etag if _ETAG.fullmatch(etag) else "")
        return replace(self, oid=oid, size=self.size if self.size is not None else size)

    @property
    def is_resumable(self) -> bool:
        """Whether bytes that an earlier download has left certainly belong to this content."""
        return self.digest() is not None or self.oid.startswith(VERSION_PREFIX)

    def digest(self) -> "hashlib._Hash | None":
        """Returns a new hash object for the content. None if the content's name is no known kind of hash."""
        if self.oid.startswith(VERSION_PREFIX):
            return None
        if len(self.oid) == _SHA256_LENGTH:
            return hashlib.sha256()
        if len(self.oid) == _SHA1_LENGTH and self.size is not None:
            return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if self.oid.startswith(MD5_PREFIX):
            return hashlib.md5(usedforsecurity=False)
        return None

    def has_hash(self, digest: "hashlib._Hash") -> bool:
        return digest.hexdigest() == self.oid.removeprefix(MD5_PREFIX)


class Listing(NamedTuple):
    """The files of one commit, as a hub lists them."""

    commit: str
    files: Mapping[str, HubFile]
    endpoints: tuple[str, ...]
    """The addresses that have the files. The first address has listed them."""


class CachedRepository:
    """The folder of a repository in the cache."""

    def __init__(self, cache_dir: Path, repo_id: str) -> None:
        self._name = repository_name(repo_id)
        self.folder = cache_dir / self._name
        self.lock_path = cache_dir / ".locks" / self._name / "vllm-cli.lock"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def blob(self, file: HubFile) -> Path:
        return self.folder / "blobs" / file.oid

    def part(self, file: HubFile) -> Path:
        return self.folder / "blobs" / f"{file.oid}{PART_ENDING}"

    def part_bytes(self, file: HubFile) -> int:
        """Returns the number of bytes that an interrupted download of the content has left."""
        try:
            return self.part(file).lstat().st_size
        except OSError:
            return 0

    def has_content(self, file: HubFile) -> bool:
        return _has_size(self.blob(file), file.size)

    def is_linked(self, commit: str, file: HubFile) -> bool:
        return _has_size(self.snapshot(commit) / file.name, file.size)

    def is_unfinished(self, commit: str) -> bool:
        return unfinished_marker(self.snapshot(commit)).exists()

    def commit_of(self, revision: str) -> str | None:
        """Returns the recorded commit of a branch or tag. None if no commit is recorded."""
        try:
            return (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def read_index(self, commit: str, file: HubFile) -> dict[str, str]:
        """Maps the tensors in an index to their files. Empty if the index cannot be read.

        Raises:
            LookupError: the index is not on disk yet.
        """
        for path in (self.snapshot(commit) / file.name, self.blob(file)):
            if path.is_file():
                return read_index(path)
        raise LookupError(file.name)

    def begin(self, commit: str) -> None:
        """Creates the folders, and marks an existing snapshot as unfinished. Raises OSError."""
        for name in ("blobs", "snapshots", "refs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self.snapshot(commit).exists():
            unfinished_marker(self.snapshot(commit)).touch()

    def finish(self, commit: str, files: Sequence[HubFile]) -> None:
        """Adds the files to the snapshot. Their contents are complete. A new snapshot appears as a whole."""
        snapshot = self.snapshot(commit)
        if snapshot.exists() or not self._link_new(snapshot, files):
            present = {file.oid: snapshot / file.name for file in files if self.is_linked(commit, file)}
            for file in files:
                path = snapshot / file.name
                if not _has_size(path, file.size):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if not self._link_one(path, file):
                        self._move_content(path, file, present.get(file.oid))
                    present[file.oid] = path
        unfinished_marker(snapshot).unlink(missing_ok=True)

    def write_ref(self, revision: str, commit: str) -> None:
        path = self.folder / "refs" / revision
        with suppress(OSError):
            if path.read_text(encoding="ascii") == commit:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f"{path.name}{PART_ENDING}")
        work.write_text(commit, encoding="ascii")
        os.replace(work, path)  # noqa: PTH105 - documented as atomic

    def _link_new(self, snapshot: Path, files: Sequence[HubFile]) -> bool:
        """Builds the snapshot in a temporary folder, then renames the folder.

        Returns False if another process has created the snapshot, or if the file system has no links. Without
        links, the snapshot is marked as unfinished, because its files appear one after the other.
        """
        work = self.folder / f"snapshot{PART_ENDING}"
        shutil.rmtree(work, ignore_errors=True)  # left by a killed process: this one has the lock
        for file in files:
            path = work / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._link_one(path, file):
                unfinished_marker(snapshot).touch()
                shutil.rmtree(work, ignore_errors=True)
                return False
        try:
            work.rename(snapshot)
        except OSError:
            shutil.rmtree(work, ignore_errors=True)
            return False
        return True

    def _link_one(self, path: Path, file: HubFile) -> bool:
        """Links the file, in place of any file of its name. Returns False if the file system has no links."""
        target = "/".join([*[".."] * (2 + file.name.count("/")), "blobs", file.oid])
        work = path.with_name(f"{path.name}{PART_ENDING}")
        try:
            work.unlink(missing_ok=True)
            work.symlink_to(target)
            os.replace(work, path)  # noqa: PTH105 - documented as atomic
        except OSError as err:
            if err.errno not in _NO_LINKS:
                raise
            return False
        return True

    def _move_content(self, path: Path, file: HubFile, twin: Path | None) -> None:
        """Moves the content to the file's name, or copies it from `twin`, a file with the same content."""
        if twin is not None and not self.has_content(file):
            shutil.copyfile(twin, self.blob(file))
        os.replace(self.blob(file), path)  # noqa: PTH105


def is_safe_name(name: str) -> bool:
    """Whether a file can have this name, and the name does not lead out of the folder."""
    parts = name.split("/")
    has_control = any(ord(character) < 32 for character in name)
    return not has_control and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def check_room(folder: Path, needed_bytes: int, repo_id: str) -> None:
    """Raises a DownloadError if the disk has less free space than a repository's folder still needs.

    Raises no error if the file system does not report its free space.
    """
    try:
        state = os.statvfs(folder)
    except OSError:
        return
    free = state.f_bavail * state.f_frsize
    if state.f_blocks and needed_bytes > free:
        lack = f"{format_bytes(needed_bytes)} are missing and {format_bytes(free)} are free in {folder.parent}"
        raise no_room(repo_id, lack)


def no_room(repo_id: str, lack: str) -> DownloadError:
    """Returns the error for a disk that is too small."""
    advice = f"free space, or give another {setting_of(repo_id)}. Received parts are kept"
    return DownloadError("disk", f"{repo_id} could not be downloaded: {lack}: {advice}")


def setting_of(repo_id: str) -> str:
    """Returns the setting that names the cache of a repository."""
    return "VLLM_CACHE_ROOT" if is_object_address(repo_id) else "--download-dir"


def total_size(files: Iterable[HubFile]) -> int:
    """Returns the sum of all known sizes."""
    return sum(file.size or 0 for file in files)


def _has_size(path: Path, size: int | None) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return size is None or found.st_size == size


def _checked_oid(oid: str) -> str:
    """Returns a hash in lower case, or an empty text if it is no hash. The result becomes a file's name."""
    oid = oid.lower()
    is_hash = len(oid) in (_SHA1_LENGTH, _SHA256_LENGTH) and set(oid) <= set("0123456789abcdef")
    return oid if is_hash else ""
