"""The job of the download helper: lists the wanted files, fetches several files at once, and reports."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from base.wording import format_bytes
from envs.redaction import without_login
from envs.registry import env
from startup.files.download.fetch import NO_ROOM, Fetch
from startup.files.download.hub_client import HubClient
from startup.files.download.messages import DownloadError, DownloadJob, DownloadProgress, DownloadReport, LogLine
from startup.files.download.repository import CachedRepository, Listing, no_room, setting_of, total_size
from startup.files.download.transfer import Source
from startup.files.model.file_plan import Download
from startup.ground.processes.helper import Send

if TYPE_CHECKING:
    from startup.files.download.object_store import ObjectStoreClient

logger = logging.getLogger(__name__)

_POLLED_EVERY_S: Final = 0.25
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def run(job: DownloadJob, send: Send) -> None:
    """Runs the downloads. Sends lines for the log, the progress and the report."""
    os.environ[env.HF_ENDPOINT.name] = job.endpoints[0]
    os.environ[env.HF_HUB_OFFLINE.name] = "0"  # the start may have forbidden requests since
    logging.basicConfig(level=logging.WARNING, handlers=[_LogSender(send)])
    send(DownloadRun(job, send).run())


@contextmanager
def held_by_one(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Waits until no other process holds the lock, then holds it during the block.

    On a file system without locks, there is no wait. The kernel releases the lock, however its owner ends.
    During the wait, `on_wait` is called several times a second. Raises OSError if the lock's file cannot be
    created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        _acquire(fd, on_wait)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, on_wait: Callable[[], None]) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            time.sleep(_POLLED_EVERY_S)
        except OSError as err:
            if err.errno not in _NO_LOCKS:
                raise
            return
        else:
            return


class _Plan(NamedTuple):
    download: Download
    repository: CachedRepository
    listing: Listing
    client: "HubClient | ObjectStoreClient"


class DownloadRun:
    """Runs all downloads of a job, one repository after the other, on the main thread of the helper."""

    def __init__(self, job: DownloadJob, send: Send) -> None:
        self._job = job
        self._send = send
        self._begin_s = time.monotonic()
        self._fetched_bytes = 0

    def run(self) -> DownloadReport:
        """Returns a report in any case. A failed download is part of the report, not an exception."""
        try:
            report = self._run()
        except DownloadError as err:
            report = DownloadReport(failure=err.kind, reason=str(err))
        return report._replace(fetched_bytes=self._fetched_bytes)

    def _run(self) -> DownloadReport:
        begin_ns = time.monotonic_ns()
        plans = [(download, self._list(download)) for download in self._job.downloads]
        listed_ns = time.monotonic_ns()
        folders = tuple(self._obtain(plan) if plan else download.cached_folder for download, plan in plans)
        end_ns = time.monotonic_ns()
        spans = (
            ("download_start", self._job.begin_ns, begin_ns),
            ("download_list", begin_ns, listed_ns),
            ("download_fetch", listed_ns, end_ns),
        )
        return DownloadReport(folders, took_s=(end_ns - listed_ns) / 1e9, spans=spans)

    @property
    def _names(self) -> str:
        return ", ".join(download.repo_id for download in self._job.downloads)

    def _list(self, download: Download) -> _Plan | None:
        """Lists the repository's files. None if no hub responds, so that the files on disk are used."""
        try:
            client = self._create_client(download)
            listing = client.list_files(download.repo_id, download.revision, self._job.endpoints, self._pause)
        except DownloadError as err:
            self._fall_back(download, err)
            return None
        host = f" from {without_login(listing.endpoints[0])}" if download.hub == "huggingface" else ""
        begin = f"downloading {download.repo_id}{host}"
        self._send(LogLine(logging.INFO, download.describe_commit(listing.commit) if download.is_update else begin))
        return _Plan(download, CachedRepository(download.cache_dir, download.repo_id), listing, client)

    def _fall_back(self, download: Download, err: DownloadError) -> Path:
        """The last download's folder. Raises `err` if there is none, or if an object store has responded."""
        if download.cached is None or (download.hub == "object_store" and err.kind != "unreachable"):
            raise err
        logger.warning("%s. Using the files on disk of %s: %s", err, download.repo_id, download.cached_text)
        return download.cached

    def _create_client(self, download: Download) -> "HubClient | ObjectStoreClient":
        if download.hub != "object_store":
            return HubClient(token=download.token, stall_s=self._job.stall_s)
        from startup.files.download.object_store import ObjectStoreClient

        return ObjectStoreClient(stall_s=self._job.stall_s)

    def _pause(self, seconds: float, reason: str) -> None:
        self._show(DownloadProgress("", note=reason))
        self._check_time(ahead_s=seconds)
        time.sleep(seconds)

    def _check_time(self, ahead_s: float = 0.0) -> None:
        limit = self._job.timeout_s
        if limit is not None and time.monotonic() - self._begin_s + ahead_s > limit:
            reason = f"{self._names} is not complete after {limit:g} s (--download-timeout). Received parts are kept"
            raise DownloadError("timeout", reason)

    def _obtain(self, plan: _Plan) -> Path:
        """Fetches the missing files of one repository. Returns its snapshot."""
        repository, commit = plan.repository, plan.listing.commit
        try:
            if not self._is_complete(plan):
                waiting = DownloadProgress("", note="another start is downloading")
                with held_by_one(repository.lock_path, lambda: self._show(waiting)):
                    self._fetch_missing(plan)
        except OSError as err:
            return self._fall_back(plan.download, self._disk_error(err, plan))
        except DownloadError as err:
            return self._fall_back(plan.download, err)
        return repository.snapshot(commit)

    def _is_complete(self, plan: _Plan) -> bool:
        """Whether there is nothing to write: the snapshot has all files, and the revision is recorded."""
        commit, revision = plan.listing.commit, plan.download.revision or "main"
        try:
            names = self._choose(plan)
        except LookupError:  # the index is not there yet
            return False
        files = [plan.listing.files[name] for name in names]
        is_known = revision == commit or plan.repository.commit_of(revision) == commit
        is_finished = is_known and not plan.repository.is_unfinished(commit)
        return is_finished and all(plan.repository.is_linked(commit, file) for file in files)

    def _fetch_missing(self, plan: _Plan) -> None:
        repository, commit, wanted = plan.repository, plan.listing.commit, plan.download.wanted
        repository.begin(commit)
        fetch = Fetch(
            Source(plan.client, plan.listing.endpoints, plan.download.repo_id, commit),
            repository,
            on_progress=self._show,
        )
        try:
            if (index := wanted.index_of(plan.listing.files)) is not None:
                fetch.run([plan.listing.files[index]])
            files = fetch.run([plan.listing.files[name] for name in self._choose(plan)])
        finally:
            self._fetched_bytes += fetch.fetched_bytes
        repository.finish(commit, files)
        revision = plan.download.revision or "main"
        if revision != commit:
            repository.write_ref(revision, commit)

    def _show(self, progress: DownloadProgress) -> None:
        self._check_time()
        self._send(progress)

    def _choose(self, plan: _Plan) -> list[str]:
        """Returns the names of the wanted files. Raises LookupError until the index is on disk."""
        wanted, files = plan.download.wanted, plan.listing.files
        index = wanted.index_of(files)
        if index is None:
            return wanted.choose(files)
        return wanted.choose(files, plan.repository.read_index(plan.listing.commit, files[index]))

    def _disk_error(self, err: OSError, plan: _Plan) -> DownloadError:
        """Returns the error for the user after a write to the disk has failed."""
        repo_id, folder = plan.download.repo_id, plan.download.cache_dir
        if err.errno in NO_ROOM:
            needed = total_size(plan.listing.files[name] for name in self._choose_or_nothing(plan))
            fault = os.strerror(err.errno or 0)
            return no_room(repo_id, f"its {format_bytes(needed)} do not fit into {folder} ({fault})")
        reason = f"{repo_id} could not be downloaded: {err.filename or folder} cannot be written to ({err.strerror})"
        return DownloadError("cache", f"{reason}: give another {setting_of(repo_id)}")

    def _choose_or_nothing(self, plan: _Plan) -> list[str]:
        try:
            return self._choose(plan)
        except LookupError:
            return []


class _LogSender(logging.Handler):
    """Sends log records to the launcher."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("startup."):  # the hub's client logs each repeated request
            self._send(LogLine(record.levelno, record.getMessage()))
