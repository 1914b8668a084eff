"""Transfers one file's content: resumes an earlier transfer, repeats failed requests, verifies the hash."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from startup.files.download.hub_client import FileAddress, HubClient, RetryableError, backoff_s
from startup.files.download.messages import DownloadError
from startup.files.download.repository import CachedRepository, HubFile
from startup.files.model.model_place import is_object_address

if TYPE_CHECKING:
    from startup.files.download.object_store import ObjectStoreClient

MAX_FAILURES: Final = 8
"""The most attempts in a row without a byte, for each address. Then the download fails."""
_FAILURES_PER_ENDPOINT: Final = 2
"""After this many attempts in a row without a byte, the next address is tried if there is one."""
_MAX_WRONG: Final = 2
"""How often a content may have a wrong hash before the download fails."""
_READ_BYTES: Final = 1 << 20


class Source:
    """The client and the addresses for the files of one commit. All threads share this object."""

    def __init__(
        self, client: "HubClient | ObjectStoreClient", endpoints: Sequence[str], repo_id: str, commit: str
    ) -> None:
        self.client = client
        self.repo_id = repo_id
        self.commit = commit
        self.endpoints = tuple(endpoints)
        self.stopping = threading.Event()
        """Set when the download has failed or ended."""

    def address(self, file: HubFile, number: int = 0) -> FileAddress:
        """Returns the file's address at mirror `number`. The first mirror comes again after the last one."""
        endpoint = self.endpoints[number % len(self.endpoints)]
        return FileAddress(endpoint, self.repo_id, self.commit, file.name)

    def pause(self, seconds: float) -> None:
        self.stopping.wait(seconds)


class Transfer:
    """Fetches the content of one file. One thread calls `run`. Any thread may read the attributes."""

    def __init__(self, source: Source, repository: CachedRepository, file: HubFile) -> None:
        self.file = file
        self._source = source
        self._repository = repository
        self._digest = file.digest()
        self._num_failures = 0
        self._num_wrong = 0
        self.done_bytes = 0
        """The bytes on disk, including those of an earlier download."""
        self.fetched_bytes = 0
        """The bytes received. Bytes that were received twice count twice."""
        self.note = ""
        """Why this transfer waits. Empty while bytes arrive."""

    @property
    def remaining_bytes(self) -> int:
        return max((self.file.size or 0) - self.done_bytes, 0)

    def run(self) -> None:
        """Fetches the content. Returns once it is complete and verified, or when the whole download ends.

        Raises:
            DownloadError: the server refuses the request, has other content, or fails repeatedly.
            OSError: the disk is full, or cannot be written to.
        """
        with _PartFile(self._repository.part(self.file)) as part:
            self._resume(part)
            while not self._source.stopping.is_set():
                before = self.fetched_bytes
                try:
                    self._fetch_rest(part)
                    if self._is_verified(part):
                        break
                except RetryableError as err:
                    self._wait_after(err, has_progressed=self.fetched_bytes > before)
                except DownloadError as err:
                    self._try_next_address(err)
        if not self._source.stopping.is_set():
            os.replace(self._repository.part(self.file), self._repository.blob(self.file))  # noqa: PTH105

    def _resume(self, part: "_PartFile") -> None:
        """Keeps the bytes that an earlier download has left, if they certainly belong to the file."""
        for chunk in part.read() if self.file.is_resumable else ():
            if self._digest is not None:
                self._digest.update(chunk)
            self.done_bytes += len(chunk)
        if not self.file.is_resumable or (self.file.size is not None and self.done_bytes > self.file.size):
            self._start_over(part)

    def _fetch_rest(self, part: "_PartFile") -> None:
        size = self.file.size
        if size is not None and self.done_bytes == size:
            return
        source = self._source
        with source.client.stream(self._address, begin=self.done_bytes) as stream:
            if stream.begin != self.done_bytes:
                self._start_over(part)
            for chunk in stream.chunks:
                self._take(part, chunk)
                if source.stopping.is_set():
                    break
        if size is not None and self.done_bytes < size and not source.stopping.is_set():
            raise RetryableError(f"the connection ended after {self.done_bytes} of {size} bytes")

    def _take(self, part: "_PartFile", chunk: bytes) -> None:
        self.note = ""
        self.fetched_bytes += len(chunk)
        if self.file.size is not None and self.done_bytes + len(chunk) > self.file.size:
            self._reject(part, f"more than the {self.file.size} bytes that the hub lists")
        part.write(chunk)
        if self._digest is not None:
            self._digest.update(chunk)
        self.done_bytes += len(chunk)

    def _is_verified(self, part: "_PartFile") -> bool:
        if self._source.stopping.is_set():
            return False
        if self._digest is not None and not self.file.has_hash(self._digest):
            self._reject(part, f"the hash {self._digest.hexdigest()} instead of {self.file.oid}")
        return True

    def _reject(self, part: "_PartFile", what: str) -> None:
        """Drops wrong content. Raises RetryableError, or DownloadError if the content was wrong too often."""
        self._start_over(part)
        self._num_wrong += 1
        reason = f"{self._address} has {what}"
        if self._num_wrong > _MAX_WRONG:
            other = "" if is_object_address(self._source.repo_id) else ", or another HF_ENDPOINT"
            raise DownloadError("wrong", f"{reason}: the content is dropped. Try again later{other}")
        self._num_failures = _FAILURES_PER_ENDPOINT * self._num_wrong  # the next address, if there is one
        raise RetryableError(reason)

    def _start_over(self, part: "_PartFile") -> None:
        part.clear()
        self._digest = self.file.digest()
        self.done_bytes = 0

    def _try_next_address(self, err: DownloadError) -> None:
        """Continues with the next address. Raises `err` if no address is left."""
        self._num_failures += _FAILURES_PER_ENDPOINT
        if err.kind != "refused" or self._num_failures >= _FAILURES_PER_ENDPOINT * len(self._source.endpoints):
            raise err

    def _wait_after(self, err: RetryableError, *, has_progressed: bool) -> None:
        if has_progressed and not self._num_wrong:
            self._num_failures = 0
        self._num_failures += 1
        most = MAX_FAILURES * len(self._source.endpoints)
        if self._num_failures >= most:
            reason = f"{self.file.name} of {self._source.repo_id} could not be downloaded: {err}"
            raise DownloadError("unreachable", f"{reason}, {most} times in a row. Received parts are kept") from err
        seconds = err.wait.seconds or backoff_s(self._num_failures)
        self.note = err.wait.reason or f"{err}, trying again"
        self._source.pause(seconds)

    @property
    def _address(self) -> FileAddress:
        return self._source.address(self.file, self._num_failures // _FAILURES_PER_ENDPOINT)


class _PartFile:
    """The file that receives the bytes. All bytes in it are valid."""

    def __init__(self, path: "os.PathLike[str]") -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(path, flags, 0o666)
        except OSError:  # a link, or a file of another user; a full disk fails again
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            self._fd = os.open(path, flags | os.O_EXCL, 0o666)

    def __enter__(self) -> "_PartFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self) -> Iterator[bytes]:
        while chunk := os.read(self._fd, _READ_BYTES):
            yield chunk

    def write(self, chunk: bytes) -> None:
        """Appends bytes. They are passed to the kernel at once, so that they survive this process."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
