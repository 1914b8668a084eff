"""Starts the download helper, and receives its progress and report on a thread."""

import logging
import pickle
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from base.wording import format_bytes
from envs.registry import env
from startup.files.download.branch import AskJob, Question
from startup.files.download.messages import (
    DownloadError,
    DownloadJob,
    DownloadProgress,
    DownloadReport,
    LogLine,
    Show,
    Warn,
)
from startup.files.model.file_plan import Download
from startup.files.model.hub_settings import hub_token, listing_url
from startup.processes import group_signals
from startup.processes.helper import Helper, HelperEndedError

logger = logging.getLogger(__name__)

_LOGGED_EVERY_S: Final = 10.0


class DownloadHandle(AbstractContextManager["DownloadHandle"]):
    """The launcher's handle of running downloads. Its owner must close it, which kills the helper."""

    def __init__(self, helper: Helper, downloads: Sequence[Download], show: Show, warn: Warn) -> None:
        self.downloads = tuple(downloads)
        self.names = ", ".join(download.repo_id for download in downloads)
        self._helper = helper
        self._show = show
        self._warn = warn
        self._is_closed = False
        self.report: DownloadReport | None = None
        """None until the downloads have ended."""
        self._are_updates = all(download.is_update for download in downloads)
        self._has_moved = False
        self._logged_s = time.monotonic()
        self._thread = group_signals.start_thread("download-progress", self._receive)

    def stop_asking(self) -> None:
        """Uses the files on disk if they are not known to be outdated. Called after the start's imports."""
        if self.report is None and not self._has_moved and self._are_updates:
            self.report = self._take_cached("the hub has not answered whether the branch has moved")
            self._helper.kill()

    def result(self) -> tuple[Path, ...]:
        """Waits until the downloads have ended. Returns the snapshot of each download.

        Raises:
            DownloadError: a download has failed. The message is one line.
        """
        while self._thread.is_alive():
            self._thread.join(60.0)
        self.close()
        if self.failure is not None:
            raise self.failure
        assert self.report is not None
        return self.report.folders

    @property
    def failure(self) -> DownloadError | None:
        """Why the downloads have failed. None while they run and after a success."""
        report = self.report
        return DownloadError(report.failure, report.reason) if report and report.failure else None

    def close(self) -> None:
        self._is_closed = True
        self.report = self.report or DownloadReport(failure="failed", reason=f"{self.names}: it was ended")
        self._helper.kill()
        self._thread.join()
        self._helper.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        try:
            while self.report is None:
                self._take(self._helper.receive())
        except HelperEndedError as err:
            self.report = self.report or self._take_cached(f"the download of {self.names} failed: {err}")
        finally:
            self._show("")
        if self.failure is not None and not self._is_closed:
            self._warn(self.failure)

    def _take_cached(self, reason: str) -> DownloadReport:
        """Returns a report in place of the helper's. It reports a failure if not all files are on disk."""
        if not self._are_updates:
            return DownloadReport(failure="failed", reason=reason)
        found = ", ".join(f"{download.repo_id}: {download.cached_text}" for download in self.downloads)
        logger.warning("%s. Using the files on disk of %s", reason, found)
        return DownloadReport(tuple(download.cached_folder for download in self.downloads))

    def _take(self, event: object) -> None:
        if isinstance(event, DownloadProgress):
            self._show_progress(event)
        elif isinstance(event, bool):
            self._has_moved = event
            if not event:
                for download in self.downloads:
                    logger.info("%s", download.describe_commit(download.cached_folder.name))
                self.report = DownloadReport(tuple(download.cached_folder for download in self.downloads))
        elif isinstance(event, str):
            self.report = self._take_cached(event)
        elif isinstance(event, LogLine):
            logger.log(event.level, "%s", event.text)
        elif isinstance(event, DownloadReport):
            if event.failure is None and event.fetched_bytes:
                fetched = format_bytes(event.fetched_bytes)
                logger.info("downloaded %s of %s in %.1f s", fetched, self.names, event.took_s)
            self.report = event

    def _show_progress(self, progress: DownloadProgress) -> None:
        self._show(str(progress))
        if time.monotonic() - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            logger.info("%s: %s", progress.repo_id or self.names, progress)


def start_download(
    downloads: Sequence[Download],
    show: Show = lambda _: None,
    warn: Warn = lambda _: None,
    **settings: Any,
) -> DownloadHandle:
    """Downloads in a helper process while the launcher imports. Returns within a few milliseconds.

    Call it on the main thread, because the helper ends with the thread that started it. Another thread calls
    `show` and, if the download fails, `warn`. `settings` are fields of `DownloadJob`. Raises DownloadError if
    the helper cannot be started.
    """
    job = DownloadJob(downloads=tuple(downloads), begin_ns=time.monotonic_ns(), **settings)
    try:
        if all(download.is_update for download in downloads):
            helper = Helper("download", "startup.files.download.branch:run", _ask_first(job))
        else:
            helper = Helper("download", "startup.files.download.worker:run", job)
    except OSError as err:
        raise DownloadError("failed", f"the download cannot be started: {err.strerror}") from err
    return DownloadHandle(helper, downloads, show, warn)


def _ask_first(job: DownloadJob) -> AskJob:
    def urls(download: Download) -> tuple[str, ...]:
        return tuple(listing_url(each, download.repo_id, download.revision) for each in job.endpoints)

    questions = (Question(urls(each), hub_token(each.token), each.cached_folder.name) for each in job.downloads)
    return AskJob(tuple(questions), env.HF_HUB_ETAG_TIMEOUT.get(), pickle.dumps(job))
