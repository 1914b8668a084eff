"""Downloads the missing files of a model for a start of vLLM, and gives vLLM their folders."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from startup.files.download.messages import DownloadError
from startup.files.download.obtain import begin_download
from startup.files.model.file_plan import Download, FilePlan, plan_files
from startup.files.model.model_place import without_file_scheme
from startup.session.session import StartSession
from startup.settings.config import DEFAULT_MODEL_ID
from startup.vllm.launch.hub_requests import forbid_requests
from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)


class ModelFiles:
    """The model files of one start. Downloads missing and changed files during the imports."""

    def __init__(self, session: StartSession, line: VllmLine, timeout_s: float | None) -> None:
        """Begins to download."""
        self._session = session
        self._line = line
        self._download = session.download(line.file_plan, timeout_s, self._warn) if line.file_plan is not None else None
        self.is_offline = line.file_plan is not None and forbid_requests(line, line.file_plan)
        """Whether vLLM's processes may send no requests to the hub, because all files are on disk."""

    def raise_refusal(self) -> None:
        """Raises the download's failure if there is one, unless vLLM itself may find the model."""
        if self._download is None or (failure := self._download.failure) is None:
            return
        if not _may_vllm_find_it(self._download.downloads, failure):
            raise failure

    def _warn(self, err: DownloadError) -> None:
        """Logs a failure that does not end the start, at once. Called on another thread."""
        assert self._line.file_plan is not None
        if _may_vllm_find_it(self._line.file_plan.downloads, err):
            logger.warning("%s. vLLM itself looks for the model", err)

    def finish(self) -> VllmLine:
        """Waits for the download, because vLLM needs the files now. Returns the line with their folders."""
        if self._download is None:
            return with_folders(self._line, {})
        with self._session.timeline.span("resolve_model", waits_for="download"):
            self._download.stop_asking()
            try:
                folders = self._download.result()
            except DownloadError as err:
                if not _may_vllm_find_it(self._download.downloads, err):
                    raise
                return self._line
        line = with_folders(self._line, dict(zip(self._download.downloads, folders, strict=True)))
        self.is_offline = self.is_offline or forbid_requests(line, plan_files(line.request))
        return line


def _may_vllm_find_it(downloads: Iterable[Download], err: DownloadError) -> bool:
    """vLLM tries a hub for half a minute after its imports, which may be ready then."""
    is_in_store = any(download.hub == "object_store" for download in downloads)
    return not is_in_store and err.kind in ("unreachable", "failed")


def with_folders(line: VllmLine, folders: Mapping[Download, Path]) -> VllmLine:
    """Replaces addresses of model and tokenizer in the line by folders. The served name does not change."""
    paths = dict(_find_paths(line.file_plan, folders)) if line.file_plan is not None else {}
    return (line.with_served_name() if line.model in paths else line).with_paths(paths)


def fetch_before_start(line: VllmLine, timeout_s: float | None) -> VllmLine:
    """Downloads models from object stores before a plain start. Returns the line with the models' folders.

    Raises:
        ModelNotFoundError: a download has failed.
    """
    plan = line.file_plan
    if plan is None:
        return line
    objects = replace(plan, places=tuple(place for place in plan.places if place.kind == "object_store"))
    handle = begin_download(objects, lambda _: None, timeout_s=timeout_s) if objects.places else None
    if handle is None:
        return with_folders(line, {})
    with handle:
        return with_folders(line, dict(zip(handle.downloads, handle.result(), strict=True)))


def _find_paths(plan: FilePlan, folders: Mapping[Download, Path]) -> Iterator[tuple[str, str]]:
    for place in plan.main_places:
        if place.kind == "object_store" and (folder := folders.get(plan.download_of(place))) is not None:
            yield place.name, str(folder)
        elif place.kind == "folder" and place.name == DEFAULT_MODEL_ID:
            yield place.name, str(place.folder)
        elif place.kind == "folder" and without_file_scheme(place.name) != place.name:
            yield place.name, without_file_scheme(place.name)
