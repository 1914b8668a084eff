"""The download helper: lists what is missing, fetches several files at once, and reports in lines of JSON.

It shares no interpreter lock with the launcher, which kills it to stop it. Standard input has the job, which
may contain a token; standard output takes the lines.
"""

import errno
import fcntl
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from base.wording import format_bytes
from envs.redaction import without_login
from startup.download.fetch import NO_ROOM, Fetch
from startup.download.hub_client import HubClient
from startup.download.messages import DownloadError, DownloadProgress, DownloadReport, Job, to_line
from startup.download.repository import CachedRepository, Listing, no_room, setting_of, total_size
from startup.download.transfer import Source
from startup.model.file_plan import Download
from startup.processes import death_pipe, group_signals

if TYPE_CHECKING:
    from startup.download.object_store import ObjectStoreClient

logger = logging.getLogger(__name__)

Send = Callable[[str, Any], None]
"""Takes the kind of a message and its content."""

_PROCESS_NAME: Final = "vllm-download"
_POLLED_EVERY_S: Final = 0.25
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def main() -> None:
    """Runs the job on standard input and exits."""
    entry_ns = time.monotonic_ns()
    job: Job = pickle.load(sys.stdin.buffer)
    death_pipe.follow_parent(job.parent_pid)
    _configure_process()
    DownloadRun(job, _send, entry_ns).run()
    os._exit(0)  # a thread may still wait for the network


@contextmanager
def held_by_one(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Waits until no other process holds the lock; without locks on this file system, goes on at once.

    The kernel releases the lock however its owner ends.

    Args:
        path: the lock's file.
        on_wait: called several times a second while another process holds it.

    Raises:
        OSError: the file cannot be created.
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
    """A repository of the job with its files on the hub."""

    download: Download
    repository: CachedRepository
    listing: Listing
    client: "HubClient | ObjectStoreClient"


class DownloadRun:
    """All downloads of a job, one repository after the other; runs on the main thread of the helper."""

    def __init__(self, job: Job, send: Send, entry_ns: int) -> None:
        """`send` takes the messages for the launcher."""
        self._job = job
        self._options = job.options
        self._send = send
        self._begin_s = time.monotonic()
        self._spans = [("download_start", job.begin_ns, entry_ns)]
        self._fetched_bytes = 0

    def run(self) -> None:
        """Downloads, and sends the report; never raises."""
        try:
            report = self._run()
        except DownloadError as err:
            report = DownloadReport(failure=err.kind, reason=str(err))
        except Exception as err:  # noqa: BLE001 - the boundary of the process: the launcher gets the error
            report = DownloadReport(failure="failed", reason=f"the download failed: {type(err).__name__}: {err}")
        self._send("report", report._replace(fetched_bytes=self._fetched_bytes)._asdict())

    def _run(self) -> DownloadReport:
        begin_ns = time.monotonic_ns()
        plans = [self._list(download) for download in self._job.downloads]
        hosts = (
            endpoint for plan in plans for endpoint in plan.listing.endpoints if plan.download.hub == "huggingface"
        )
        self._send("listed", {"host": without_login(next(hosts, ""))})
        listed_ns = time.monotonic_ns()
        folders = tuple(str(self._obtain(plan)) for plan in plans)
        end_ns = time.monotonic_ns()
        self._spans += [("download_list", begin_ns, listed_ns), ("download_fetch", listed_ns, end_ns)]
        return DownloadReport(folders, took_s=(end_ns - listed_ns) / 1e9, spans=tuple(self._spans))

    def _list(self, download: Download) -> _Plan:
        client = self._create_client(download)
        try:
            listing = client.list_files(download.repo_id, download.revision, self._options.endpoints, self._pause)
        except DownloadError as err:
            if err.kind != "unreachable" or download.cached is None:
                raise
            logger.warning("%s; taking what the last start has downloaded", err)
            listing = Listing(download.cached.name, {}, ())
        return _Plan(download, CachedRepository(download.cache_dir, download.repo_id), listing, client)

    def _create_client(self, download: Download) -> "HubClient | ObjectStoreClient":
        if download.hub != "object_store":
            return HubClient(token=download.token, stall_s=self._options.stall_s)
        from startup.download.object_store import ObjectStoreClient

        return ObjectStoreClient(stall_s=self._options.stall_s)

    def _pause(self, seconds: float, reason: str) -> None:
        self._show(DownloadProgress("", note=reason))
        self._check_time(ahead_s=seconds)
        time.sleep(seconds)

    def _check_time(self, ahead_s: float = 0.0) -> None:
        limit = self._options.timeout_s
        if limit is not None and time.monotonic() - self._begin_s + ahead_s > limit:
            names = ", ".join(download.repo_id for download in self._job.downloads)
            reason = f"{names} is not complete after {limit:g} s (--download-timeout); what has arrived is kept"
            raise DownloadError("timeout", reason)

    def _obtain(self, plan: _Plan) -> Path:
        """Fetches what is missing of one repository; returns its snapshot."""
        repository, commit = plan.repository, plan.listing.commit
        try:
            if not self._is_complete(plan):
                waiting = DownloadProgress("", note="another start is downloading")
                with held_by_one(repository.lock_path, lambda: self._show(waiting)):
                    self._fetch_missing(plan)
        except OSError as err:
            raise self._disk_error(err, plan) from err
        return repository.snapshot(commit)

    def _is_complete(self, plan: _Plan) -> bool:
        """Whether every file is in the snapshot, and the revision known: nothing has to be written."""
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
        self._send("progress", progress._asdict())

    def _choose(self, plan: _Plan) -> list[str]:
        """The names of the wanted files; raises LookupError before the index is on disk."""
        wanted, files = plan.download.wanted, plan.listing.files
        index = wanted.index_of(files)
        if index is None:
            return wanted.choose(files)
        return wanted.choose(files, plan.repository.read_index(plan.listing.commit, files[index]))

    def _disk_error(self, err: OSError, plan: _Plan) -> DownloadError:
        """What a failed write means for the user."""
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


def _configure_process() -> None:
    """Ignores group signals, on which the launcher acts; logs go to the launcher as lines."""
    group_signals.ignore()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(_PROCESS_NAME, encoding="ascii")
    logging.basicConfig(level=logging.WARNING, handlers=[_LineHandler()])


class _LineHandler(logging.Handler):
    """Sends log records to the launcher."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("startup."):  # the hub's client logs each repeated request
            _send("log", {"level": record.levelno, "text": record.getMessage()})


def _send(kind: str, content: Any) -> None:
    os.write(1, to_line(kind, content))
