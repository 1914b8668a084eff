"""Fetches the contents of several files at once. Meanwhile checks the disk space and reports progress."""

import errno
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final

from startup.files.download.hub_client import RetryableError, backoff_s
from startup.files.download.messages import DownloadError, DownloadProgress
from startup.files.download.repository import CachedRepository, HubFile, check_room, total_size
from startup.files.download.transfer import MAX_FAILURES, Source, Transfer

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_NUM_THREADS: Final = 8
_TICK_S: Final = 0.02
_SHOWN_EVERY_S: Final = 0.25


class Fetch:
    """Fetches files of one repository. Call `run` on the main thread of the helper."""

    def __init__(
        self, source: Source, repository: CachedRepository, on_progress: Callable[[DownloadProgress], None]
    ) -> None:
        self._source = source
        self._repository = repository
        self._on_progress = on_progress
        self._transfers: list[Transfer] = []
        self._begin_s = time.monotonic()
        self._finished_bytes = 0
        """Bytes received in earlier calls of `run`."""

    @property
    def fetched_bytes(self) -> int:
        """Bytes received. Bytes that were received twice count twice."""
        return self._finished_bytes + sum(transfer.fetched_bytes for transfer in self._transfers)

    def run(self, files: Sequence[HubFile]) -> list[HubFile]:
        """Fetches the contents that are not on disk. Returns the files with all sizes and hashes.

        Raises:
            DownloadError: a content cannot be obtained, or does not fit on the disk.
            OSError: a content cannot be written.
        """
        files = [self._described(file) for file in files]
        commit, repository = self._source.commit, self._repository
        lacking = (f for f in files if not repository.has_content(f) and not repository.is_linked(commit, f))
        by_content = {file.oid: file for file in lacking}
        missing = list(by_content.values())
        check_room(
            self._repository.folder,
            total_size(missing) - sum(map(self._repository.part_bytes, missing)),
            self._source.repo_id,
        )
        self._fetch(missing)
        return files

    def _described(self, file: HubFile) -> HubFile:
        """Returns the file with its size and hash. Requests both if a mirror's list does not have them."""
        if file.oid and file.size is not None:
            return file
        failure = ""
        for number in range(MAX_FAILURES):
            try:
                return self._source.client.describe(self._source.address(file, number), file)
            except RetryableError as err:
                failure = str(err)
                self._show(0, 0, err.wait.reason or f"{err}, trying again")
                self._source.pause(err.wait.seconds or backoff_s(number + 1))
        reason = f"{file.name} of {self._source.repo_id} could not be downloaded: {failure}"
        raise DownloadError("unreachable", f"{reason}, {MAX_FAILURES} times in a row")

    def _fetch(self, files: Sequence[HubFile]) -> None:
        self._finished_bytes = self.fetched_bytes
        self._transfers = [Transfer(self._source, self._repository, file) for file in files]
        waiting: SimpleQueue[Transfer] = SimpleQueue()
        for transfer in self._transfers:
            waiting.put(transfer)
        failures: list[Exception] = []
        threads = [
            threading.Thread(target=self._run_thread, args=(waiting, failures), name=f"download-{number}", daemon=True)
            for number in range(min(_NUM_THREADS, len(files)))
        ]
        try:
            for thread in threads:
                thread.start()
            self._watch(threads, failures)
        finally:
            self._source.stopping.set()
        if failures:
            raise failures[0]
        self._source.stopping.clear()

    def _run_thread(self, waiting: "SimpleQueue[Transfer]", failures: list[Exception]) -> None:
        while not self._source.stopping.is_set():
            try:
                waiting.get_nowait().run()
            except Empty:
                return
            except Exception as err:  # noqa: BLE001 - raised again on the main thread
                failures.append(err)
                self._source.stopping.set()

    def _watch(self, threads: Sequence[threading.Thread], failures: Sequence[Exception]) -> None:
        total_bytes = total_size(transfer.file for transfer in self._transfers)
        shown_s = 0.0
        while not failures and any(thread.is_alive() for thread in threads):
            self._source.pause(_TICK_S)
            if time.monotonic() - shown_s >= _SHOWN_EVERY_S:
                shown_s = time.monotonic()
                left = sum(transfer.remaining_bytes for transfer in self._transfers)
                check_room(self._repository.folder, left, self._source.repo_id)
                notes = [transfer.note for transfer in self._transfers if transfer.note]
                self._show(total_bytes, total_bytes - left, notes[0] if notes else "")

    def _show(self, total_bytes: int, done_bytes: int, note: str) -> None:
        rate = self.fetched_bytes / max(time.monotonic() - self._begin_s, _TICK_S)
        self._on_progress(DownloadProgress(self._source.repo_id, done_bytes, total_bytes, rate, note))
