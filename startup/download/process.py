"""Starts the download helper, and receives its progress and report on a thread."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from base.wording import format_bytes
from envs import foreign
from envs.redaction import without_login
from envs.registry import env
from startup.download.messages import (
    DownloadError,
    DownloadOptions,
    DownloadProgress,
    DownloadReport,
    Job,
    download_error,
    hub_endpoints,
)
from startup.model.file_plan import Download
from startup.processes import group_signals

logger = logging.getLogger(__name__)

_LOGGED_EVERY_S: Final = 10.0
_ROOT: Final = str(Path(__file__).parents[2])
_INSTALLED: Final = ("site-packages", "dist-packages")


class DownloadHandle:
    """The launcher's handle of running downloads; closed by its owner, which kills the helper."""

    def __init__(
        self, helper: "subprocess.Popen[bytes]", downloads: Sequence[Download], show: Callable[[str], None]
    ) -> None:
        self.downloads = tuple(downloads)
        self._helper = helper
        self._show = show
        self._changed = threading.Condition()
        self._report: DownloadReport | None = None
        self._logged_s = time.monotonic()
        self._thread = threading.Thread(target=self._receive, name="download-progress", daemon=True)
        group_signals.start_thread(self._thread)

    @property
    def names(self) -> str:
        """What is downloaded, for messages."""
        return ", ".join(download.repo_id for download in self.downloads)

    def result(self) -> tuple[Path, ...]:
        """Waits for the end; returns a snapshot for each download.

        Raises:
            DownloadError: with the reason in one line.
        """
        with self._changed:
            while self._report is None:
                self._changed.wait(60.0)
            report = self._report
        self.close()
        if self.failure is not None:
            raise self.failure
        return report.paths

    @property
    def report(self) -> DownloadReport | None:
        """The report, once the downloads have ended."""
        return self._report

    @property
    def failure(self) -> DownloadError | None:
        """Why the downloads have failed; None while they run."""
        report = self._report
        return download_error(report.failure, without_login(report.reason)) if report and report.failure else None

    def close(self) -> None:
        """Ends the helper, if it is running."""
        self._helper.kill()
        self._thread.join()  # it reads to the end of the helper's output
        with self._helper:
            pass

    def __enter__(self) -> "DownloadHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> None:
        """Runs on the thread until the helper closes its output."""
        assert self._helper.stdout is not None
        try:
            for line in self._helper.stdout:
                self._take(json.loads(line))
        finally:
            with self._changed:
                ended = DownloadReport(failure="failed", reason=f"the download of {self.names} ended without a reason")
                self._report = self._report or ended
                self._changed.notify_all()
            self._show("")

    def _take(self, message: dict[str, Any]) -> None:
        if "progress" in message:
            self._show_progress(DownloadProgress(**message["progress"]))
        elif "log" in message:
            logger.log(message["log"]["level"], "%s", message["log"]["text"])
        elif "listed" in message:
            host = message["listed"]["host"]
            logger.info("downloading %s%s", self.names, f" from {host}" if host else "")
        else:
            report = DownloadReport.from_fields(message["report"])
            if report.failure is None:
                self._log_end(report)
            with self._changed:
                self._report = report
                self._changed.notify_all()

    def _show_progress(self, progress: DownloadProgress) -> None:
        self._show(str(progress))
        if time.monotonic() - self._logged_s >= _LOGGED_EVERY_S:
            self._logged_s = time.monotonic()
            logger.info("%s: %s", progress.repo_id or self.names, progress)

    def _log_end(self, report: DownloadReport) -> None:
        if report.fetched_bytes:
            fetched = format_bytes(report.fetched_bytes)
            logger.info("downloaded %s of %s in %.1f s", fetched, self.names, report.took_s)


def start_download(
    downloads: Sequence[Download], show: Callable[[str], None] = lambda _: None, options: DownloadOptions | None = None
) -> DownloadHandle:
    """Downloads in a helper process, while the launcher imports; returns within a few milliseconds.

    To be called on the main thread: the helper ends with the thread that started it.

    Args:
        downloads: what is not on disk.
        show: takes the progress as text, on a thread.
        options: how; by default from the addresses in HF_ENDPOINT.

    Raises:
        DownloadError: the helper cannot be started.
    """
    options = options or DownloadOptions(endpoints=hub_endpoints())
    job = Job(downloads=tuple(downloads), options=options, parent_pid=os.getpid(), begin_ns=time.monotonic_ns())
    helper = _start_helper(options)
    assert helper.stdin is not None
    with suppress(BrokenPipeError), helper.stdin:
        pickle.dump(job, helper.stdin)
    return DownloadHandle(helper, downloads, show)


def _import_path() -> list[str]:
    """Where the helper finds its modules, behind the standard library: this project and packages."""
    installed = [path for path in sys.path if Path(path).name in _INSTALLED]
    spec = find_spec("huggingface_hub")
    own = [str(Path(spec.origin).parents[1])] if spec is not None and spec.origin is not None else []
    return list(dict.fromkeys((_ROOT, *own, *installed)))


def helper_command(module: str, *, first: str = "") -> list[str]:
    """A program that runs `main` of this module, isolated from the site module and from the user's folders.

    Args:
        module: one of ours.
        first: code that runs before anything is imported, with a line break at its end.
    """
    code = f"{first}import sys; sys.path += sys.argv[1:]; from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, *_import_path()]


def _start_helper(options: DownloadOptions) -> "subprocess.Popen[bytes]":
    command = helper_command("startup.download.worker")
    environment = {**foreign.snapshot(), env.HF_ENDPOINT.name: options.endpoints[0]}
    try:
        with group_signals.blocked():  # until the process ignores them
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    except OSError as err:
        raise DownloadError("failed", f"the download cannot be started: {err.strerror}") from err
