"""Downloads models from the Hugging Face hub; a failure is reported with its reason in one line."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from envs.redaction import without_login
from envs.registry import env
from server.wording import format_bytes
from startup.errors import ModelNotFoundError, NoAccessError, NoSpaceError
from startup.model.download_progress import DownloadProgress, Show
from startup.model.file_plan import Download

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 3.0
_DEADLINE_S: Final = 4.0
"""Bounds what a request's timeout does not, such as the hub's DNS lookup."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

T = TypeVar("T")


def hub_endpoint() -> str:
    """The address of the hub, or of a mirror."""
    from huggingface_hub import constants

    return (env.HF_ENDPOINT.get() or constants.ENDPOINT).rstrip("/")


def download(model: Download, show: Show) -> Path:
    """Downloads the repository's files and returns their folder; `show` takes the progress as text.

    Raises:
        ModelNotFoundError: the hub cannot be reached, does not have the model, or denies access to it.
    """
    from huggingface_hub import snapshot_download

    endpoint = hub_endpoint()
    sizes = _list_files(model, endpoint)
    names = model.wanted.choose(sizes)
    total_bytes = sum(sizes[name] or 0 for name in names)
    logger.info("downloading %s from %s", model.repo_id, without_login(endpoint))
    try:
        with DownloadProgress(model.repo_id, total_bytes or None, show) as progress:
            folder = snapshot_download(
                model.repo_id,
                revision=model.revision,
                cache_dir=model.cache_dir,
                token=model.token,
                endpoint=endpoint,
                allow_patterns=names,
                tqdm_class=progress.bar_class,
            )
    except Exception as err:
        failed = ModelNotFoundError(without_login(f"{endpoint}/{model.repo_id} could not be downloaded: {_line(err)}"))
        raise _refusal(err, model, endpoint) or _full_disk(err, model, total_bytes) or failed from err
    return Path(folder)


def _list_files(model: Download, endpoint: str) -> dict[str, int | None]:
    """Names and sizes in bytes; None for a size that the hub does not report."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=model.token)
    try:
        info = _within_deadline(
            lambda: api.model_info(
                model.repo_id, revision=model.revision, timeout=REQUEST_TIMEOUT_S, files_metadata=True
            )
        )
    except Exception as err:
        unreachable = f"{model.repo_id} is not cached, and the hub at {endpoint} cannot be reached ({_line(err)})"
        raise _refusal(err, model, endpoint) or ModelNotFoundError(without_login(unreachable)) from err
    return {sibling.rfilename: sibling.size for sibling in info.siblings or []}


def _within_deadline(request: Callable[[], T]) -> T:
    """Runs a request in a thread, which is abandoned if it hangs beyond its own timeout."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(request())
        except Exception as err:  # noqa: BLE001 - raised again by `outcome.result`
            outcome.set_exception(err)

    threading.Thread(target=run, name="hub-request", daemon=True).start()
    try:
        return outcome.result(timeout=_DEADLINE_S)
    except TimeoutError as err:
        raise TimeoutError(f"no answer within {_DEADLINE_S:g} s") from err


def _refusal(err: Exception, model: Download, endpoint: str) -> ModelNotFoundError | None:
    """The meaning of the hub's error response; None if the hub did not respond."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = without_login(f"{endpoint}/{model.repo_id}")
    if isinstance(err, GatedRepoError):
        give_token = "then give a token by --hf-token or HF_TOKEN"
        return NoAccessError(f"{model.repo_id} is gated: accept its terms at {page}, {give_token}")
    if isinstance(err, RepositoryNotFoundError):
        return NoAccessError(f"{page} does not exist; if it is private, give a token by --hf-token or HF_TOKEN")
    if isinstance(err, RevisionNotFoundError):
        return NoAccessError(f"{page} has no revision {model.revision!r}")
    if isinstance(err, HfHubHTTPError):
        return ModelNotFoundError(f"{page} cannot be downloaded: {without_login(_line(err))}")
    return None


def _full_disk(err: BaseException | None, model: Download, total_bytes: int) -> NoSpaceError | None:
    """Advice for a full disk; None if the error has another cause."""
    while err is not None and getattr(err, "errno", None) not in _NO_ROOM:
        err = err.__cause__ or err.__context__
    if err is None:
        return None
    return NoSpaceError(
        f"{model.repo_id} could not be downloaded: its {format_bytes(total_bytes)} do not fit into {model.cache_dir} "
        f"({os.strerror(err.errno)}): free space, or give another --download-dir; files already there are kept"  # type: ignore[attr-defined]
    )


def _line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
