"""Compares the contents of files with the hashes of their listing, while other files still arrive.

The hub's client compares only sizes, unless it uses Xet. A mirror or a cache in between may send other bytes.
"""

import hashlib
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from startup.files.download.repository import CachedRepository, HubFile

_POLLED_EVERY_S: Final = 0.2
_BLOCK_BYTES: Final = 1 << 22
_SHA256: Final = re.compile("[0-9a-f]{64}")
_SHA1: Final = re.compile("[0-9a-f]{40}")


class ContentCheck:
    """Checks files of a snapshot on its own thread. The end of the `with` block waits for the last one."""

    def __init__(self, repository: CachedRepository, commit: str, files: Sequence[HubFile]) -> None:
        self._repository = repository
        self._commit = commit
        self._left = list(files)
        self._all_arrived = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-check")
        self.wrong: list[HubFile] = []
        """Files with another content than listed. They are removed."""

    @property
    def unproven(self) -> list[HubFile]:
        """The files that are wrong, or that have not arrived."""
        return [*self.wrong, *self._left]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._all_arrived.set()
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while self._left and not is_last:
            is_last = self._all_arrived.wait(_POLLED_EVERY_S)
            for file in [file for file in self._left if self._path(file).exists()]:
                self._left.remove(file)
                with suppress(OSError):  # then the file is missing, which is noticed
                    self._check(file)

    def _check(self, file: HubFile) -> None:
        if not has_content(self._path(file), file.oid):
            self._repository.drop(self._commit, file.name)
            self.wrong.append(file)

    def _path(self, file: HubFile) -> Path:
        return self._repository.file(self._commit, file.name)


def has_content(path: Path, oid: str) -> bool:
    """Whether a file has the listed hash, SHA-256 or git's SHA-1 of a blob. True without a listed hash."""
    if _SHA256.fullmatch(oid):
        digest = hashlib.sha256()
    elif _SHA1.fullmatch(oid):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb", buffering=0) as source:
        while block := source.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == oid
