"""Downloads the missing files of a model for a start of vLLM, and gives vLLM their folders."""

import logging
from collections.abc import Iterator

from startup.files.download.messages import DownloadError
from startup.files.model.file_plan import FilePlan, plan_files
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
        if not _may_vllm_find_it(failure):
            raise failure

    def _warn(self, err: DownloadError) -> None:
        """Logs a failure that does not end the start, at once. Called on another thread."""
        if _may_vllm_find_it(err):
            logger.warning("%s. vLLM itself looks for the model", err)

    def finish(self) -> VllmLine:
        """Waits for the download, because vLLM needs the files now. Returns the line with their folders."""
        line = with_folders(self._line)
        if self._download is None:
            return line
        with self._session.timeline.span("resolve_model", waits_for="download"):
            self._download.stop_asking()
            try:
                self._download.result()
            except DownloadError as err:
                if not _may_vllm_find_it(err):
                    raise
                return line
        self.is_offline = self.is_offline or forbid_requests(line, plan_files(line.request))
        return line


def _may_vllm_find_it(err: DownloadError) -> bool:
    """vLLM tries a hub for half a minute after its imports, which may be ready then."""
    return err.kind in ("unreachable", "failed")


def with_folders(line: VllmLine) -> VllmLine:
    """Replaces the default model and `file:///folder` by folders. The served name does not change."""
    paths = dict(_find_paths(line.file_plan)) if line.file_plan is not None else {}
    return (line.with_served_name() if line.model in paths else line).with_paths(paths)


def _find_paths(plan: FilePlan) -> Iterator[tuple[str, str]]:
    for place in plan.main_places:
        if place.kind == "folder" and place.name == DEFAULT_MODEL_ID:
            yield place.name, str(place.folder)
        elif place.kind == "folder" and without_file_scheme(place.name) != place.name:
            yield place.name, without_file_scheme(place.name)
