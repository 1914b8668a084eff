"""Runs downloads in the test's process as the helper does."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from startup.files.download.messages import DownloadJob, DownloadProgress, DownloadReport
from startup.files.download.worker import DownloadRun
from startup.files.model.file_plan import Download
from startup.files.model.wanted_files import WantedFiles
from tests.support.hub import HubServer
from tests.support.waiting import wait_until

WEIGHTS = bytes(range(256)) * 4096
"""The content of the weights file, 1 MiB."""
MODEL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}


@dataclass
class Downloads:
    """Runs downloads of one hub into one cache."""

    hub: HubServer
    cache: Path
    progress: list[DownloadProgress] = field(default_factory=list)

    def run(self, repo_id: str = "org/model", **settings: Any) -> DownloadReport:
        """Runs a download. Returns its report once its threads have ended."""
        before = set(threading.enumerate())
        report = DownloadRun(self.job(repo_id, **settings), self._take).run()
        wait_until(lambda: not {one for one in threading.enumerate() if "download" in one.name} - before)
        return report

    def job(self, repo_id: str = "org/model", **settings: Any) -> DownloadJob:
        """The message that a helper gets."""
        options: dict[str, Any] = {"endpoints": (self.hub.url,), "stall_s": 60.0}
        options |= {name: settings.pop(name) for name in ("endpoints", "stall_s", "timeout_s") if name in settings}
        return DownloadJob(
            downloads=(self.download(repo_id, **settings),),
            begin_ns=time.monotonic_ns(),
            **options,
        )

    def download(self, repo_id: str = "org/model", **settings: Any) -> Download:
        """A download of all files of a model."""
        wanted = settings.pop("wanted", WantedFiles(role="model"))
        return Download(repo_id, settings.pop("revision", None), self.cache, wanted, **settings)

    def content(self, report: DownloadReport) -> dict[str, bytes]:
        """Name -> content of the files in the only folder of a report."""
        assert report.failure is None, report.reason
        (folder,) = report.folders
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    @property
    def notes(self) -> set[str]:
        """The reasons for waiting that the progress has shown."""
        return {progress.note for progress in self.progress if progress.note}

    def _take(self, event: object) -> None:
        if isinstance(event, DownloadProgress):
            self.progress.append(event)
