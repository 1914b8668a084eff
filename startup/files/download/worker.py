"""The job of the download helper: lists the wanted files, downloads them, watches this, and reports."""

import errno
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self, TypeVar

from envs.redaction import without_login
from envs.registry import env
from startup.files.download.hub_client import HubClient, check_reachable, try_each
from startup.files.download.messages import (
    DownloadError,
    DownloadJob,
    DownloadProgress,
    DownloadReport,
    LogLine,
)
from startup.files.download.repository import CachedRepository, HubFile, Listing, check_room
from startup.files.model.checkpoint_folder import read_index
from startup.files.model.file_plan import Download
from startup.files.model.model_place import near_on_disk, unfinished_marker
from startup.processes.helper import Send

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLLED_EVERY_S: Final = 0.25
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

_CHECKED_EVERY_S: Final = 0.2
_BLOCK_BYTES: Final = 1 << 22
_SHA256: Final = re.compile("[0-9a-f]{64}")
_SHA1: Final = re.compile("[0-9a-f]{40}")


def run(job: DownloadJob, send: Send) -> None:
    """Runs the downloads. Sends lines for the log, the progress and the report."""
    os.environ[env.HF_ENDPOINT.name] = job.endpoints[0]
    os.environ[env.HF_HUB_OFFLINE.name] = "0"  # the start may have forbidden requests since
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # it costs a request
    logging.basicConfig(level=logging.WARNING, handlers=[_LogSender(send)])
    send(DownloadRun(job, send).run())


class _Plan(NamedTuple):
    download: Download
    repository: CachedRepository
    listing: Listing
    client: HubClient

    @property
    def folder(self) -> Path:
        return self.repository.snapshot(self.listing.commit)

    @property
    def index_file(self) -> list[HubFile]:
        """The index of the weights, which says which weight files are wanted. Empty if there is none."""
        name = self.download.wanted.index_of(self.listing.files)
        return [] if name is None else [self.listing.files[name]]

    @property
    def wanted(self) -> list[HubFile]:
        """The wanted files, by the index if it is on disk. Otherwise, shards are found by their numbers."""
        weight_map = next((read_index(self.folder / file.name) for file in self.index_file), None)
        names = self.download.wanted.choose(self.listing.files, weight_map)
        return [self.listing.files[name] for name in names]

    def missing_bytes(self, files: Sequence[HubFile], sizes: Mapping[str, int]) -> int:
        """Returns how many bytes of the files are not on disk. Raises DownloadError if they do not fit."""
        missing = self.repository.missing_bytes(self.listing.commit, files, sizes)
        check_room(self.repository.folder, missing, self.download.repo_id)
        return missing


class DownloadRun:
    """Runs the downloads of a job on a thread, one after the other. The caller's thread watches them."""

    def __init__(self, job: DownloadJob, send: Send) -> None:
        self._job = job
        self._send = send
        self._names = ", ".join(download.repo_id for download in job.downloads)
        self._begin_s = time.monotonic()
        self._arrived_s = self._begin_s
        """When data arrived last."""
        self._followed: tuple[_Plan, Sequence[HubFile]] | None = None
        self._followed_bytes = 0
        self._fetched_bytes = 0
        self._sizes: dict[str, int] = {}
        self._note = ""
        """Why the download waits. Empty if it does not wait."""
        self._pool = ThreadPoolExecutor(thread_name_prefix="download")

    def run(self) -> DownloadReport:
        """Returns a report in any case. A failed download is part of the report, not an exception."""
        begin_ns = time.monotonic_ns()
        try:
            plans = [(each, self._watched(each, partial(self._list, each))) for each in self._job.downloads]
            listed_ns = time.monotonic_ns()
            found = [(each, plan and self._watched(each, partial(self._obtain, plan))) for each, plan in plans]
        except DownloadError as err:
            return DownloadReport(failure=err.kind, reason=str(err), fetched_bytes=self._fetched_bytes)
        finally:
            self._pool.shutdown(wait=False)
        end_ns = time.monotonic_ns()
        spans = (
            ("download_start", self._job.begin_ns, begin_ns),
            ("download_list", begin_ns, listed_ns),
            ("download_fetch", listed_ns, end_ns),
        )
        folders = tuple(folder or download.cached_folder for download, folder in found)
        return DownloadReport(
            folders, fetched_bytes=self._fetched_bytes, took_s=(end_ns - listed_ns) / 1e9, spans=spans
        )

    def _watched(self, download: Download, work: Callable[[], T]) -> T | None:
        """Runs the work on a thread. Abandons it if time is over, nothing arrives, or the disk has no room.

        Returns None if the work fails and the files of the last download can be used. Raises DownloadError if
        there are none.
        """
        self._arrived_s = time.monotonic()
        outcome = self._pool.submit(work)
        try:
            while not wait([outcome], _POLLED_EVERY_S).done:
                self._check_time()
                self._send(self._progress())
            return outcome.result()
        except DownloadError as err:
            if download.cached is None:
                near = near_on_disk(download.repo_id, download.cache_dir) if err.kind == "unreachable" else ""
                raise DownloadError(err.kind, f"{err}{near}") from err
            logger.warning("%s. Using the files on disk of %s: %s", err, download.repo_id, download.cached_text)
            return None

    def _check_time(self) -> None:
        now_s, limit_s, stall_s = time.monotonic(), self._job.timeout_s, self._job.stall_s
        if limit_s is not None and now_s - self._begin_s > limit_s:
            reason = f"{self._names} is not complete after {limit_s:g} s (--download-timeout). Complete files are kept"
            raise DownloadError("timeout", reason)
        if now_s - self._arrived_s > stall_s:
            advice = "try again later, or set HF_HUB_DISABLE_XET=1"
            raise DownloadError("unreachable", f"no data of {self._names} has arrived for {stall_s:g} s: {advice}")

    def _progress(self) -> DownloadProgress:
        """Returns the progress by the sizes of files on disk. Raises DownloadError if there is no room."""
        if self._followed is None:
            return DownloadProgress("", note=self._note)
        (plan, files), now_s = self._followed, time.monotonic()
        if (sizes := plan.repository.content_sizes()) != self._sizes:
            self._sizes, self._arrived_s = sizes, now_s
        missing = plan.missing_bytes(files, sizes)
        total = sum({file.oid: file.size or 0 for file in files}.values())
        rate = max(self._followed_bytes - missing, 0) / max(now_s - self._begin_s, _POLLED_EVERY_S)
        return DownloadProgress(plan.download.repo_id, total - missing, total, rate, self._note)

    def _pause(self, seconds: float, err: DownloadError) -> None:
        self._note = f"{err}, waiting {seconds:.0f} s"
        time.sleep(seconds)
        self._note = ""

    def _list(self, download: Download) -> _Plan:
        check_reachable(download.repo_id, self._job.endpoints)
        client = HubClient(token=download.token)
        listing = try_each(
            self._job.endpoints,
            lambda endpoint: client.list_files(download.repo_id, download.revision, endpoint),
            self._pause,
        )
        begin = f"downloading {download.repo_id} from {without_login(listing.endpoint)}"
        self._send(LogLine(logging.INFO, download.describe_commit(listing.commit) if download.is_update else begin))
        return _Plan(download, CachedRepository(download.cache_dir, download.repo_id), listing, client)

    def _obtain(self, plan: _Plan) -> Path:
        """Fetches the missing files of one repository. Returns its snapshot."""
        repository, commit, revision = plan.repository, plan.listing.commit, plan.download.revision or "main"
        try:
            if repository.lacks(commit, plan.wanted) or not repository.is_finished(commit, revision):
                self._follow(plan, plan.wanted)  # another start may be downloading them
                is_doubtful = unfinished_marker(plan.folder).exists()  # an earlier start ended before its check
                with repository.changing(commit, revision, plan.wanted):
                    self._fetch_files(plan, plan.index_file, is_doubtful=is_doubtful)
                    self._fetch_files(plan, plan.wanted, is_doubtful=is_doubtful)
        except OSError as err:
            raise self._disk_error(err, plan) from err
        return plan.folder

    def _fetch_files(self, plan: _Plan, files: Sequence[HubFile], *, is_doubtful: bool) -> None:
        """Fetches files that the snapshot lacks, from the address that has listed them or another one.

        Compares their contents with the listing. If `is_doubtful`, those of files that were there, too.

        Goes on as long as each attempt completes a file.
        """
        repository, listing = plan.repository, plan.listing
        unchecked = [*files] if is_doubtful else repository.lacks(listing.commit, files)

        def fetch(endpoint: str) -> None:
            check = ContentCheck(repository, listing.commit, unchecked)
            try:
                with check:
                    plan.client.fetch(repository, listing, [file.name for file in files], endpoint)
            except DownloadError as err:
                if err.kind == "unreachable":
                    err.retry_s = err.retry_s or 0.0
                raise
            finally:
                unchecked[:] = check.unproven
            if check.wrong:
                name = f"{check.wrong[0].name} of {repository.repo_id}"
                raise DownloadError("wrong", f"{endpoint} has sent {name} with another content than it lists", 0.0)
            if left := repository.lacks(listing.commit, files):
                name = f"{left[0].name} of {repository.repo_id}"
                raise DownloadError("wrong", f"{endpoint} has not sent {name} as listed", 0.0)

        missing = self._follow(plan, files)
        others = [endpoint for endpoint in self._job.endpoints if endpoint != listing.endpoint]
        while (lacking := repository.lacks(listing.commit, files)) or unchecked:
            try:
                try_each((listing.endpoint, *others), fetch, self._pause)
            except DownloadError:
                if len(repository.lacks(listing.commit, files)) == len(lacking):
                    raise
        self._fetched_bytes += missing

    def _follow(self, plan: _Plan, files: Sequence[HubFile]) -> int:
        """Makes these files those whose progress is sent. Returns how many of their bytes are missing."""
        sizes = plan.repository.content_sizes()
        self._followed, self._followed_bytes = (plan, files), plan.missing_bytes(files, sizes)
        return self._followed_bytes

    def _disk_error(self, err: OSError, plan: _Plan) -> DownloadError:
        """Returns the error for the user after a write to the disk has failed."""
        repo_id, path = plan.download.repo_id, err.filename or plan.download.cache_dir
        reason = f"{repo_id} could not be downloaded: {path} cannot be written to ({os.strerror(err.errno or 0)})"
        return DownloadError("disk" if err.errno in _NO_ROOM else "cache", f"{reason}: give another --download-dir")


class _LogSender(logging.Handler):
    """Sends log records to the launcher."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("startup."):  # the hub's client logs each repeated request
            self._send(LogLine(record.levelno, record.getMessage()))


class ContentCheck:
    """Compares files of a snapshot with the hashes of their listing, on its own thread, while others arrive.

    The hub's client compares only sizes, unless it uses Xet. A mirror or a cache may send other bytes. The
    end of the `with` block waits for the last file.
    """

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
            is_last = self._all_arrived.wait(_CHECKED_EVERY_S)
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
