"""Downloads models from the Hugging Face hub; a failure is reported with its reason in one line."""

import errno
import logging
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, TypeVar

from envs.redaction import without_login
from envs.registry import env
from server.wording import format_bytes
from startup.errors import ModelNotFoundError
from startup.model.download_progress import DownloadProgress, Show

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 3.0
_DEADLINE_S: Final = 4.0
"""Bounds what a request's timeout does not, such as the hub's DNS lookup."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_TEXTS: Final = ("*.json", "*.txt", "*.model", "*.model.v*", "*.jinja", "*.tiktoken", "*.py")
_MODULE: Final = re.compile(r"\d+_[A-Za-z]+")

T = TypeVar("T")


@dataclass(frozen=True)
class HubModel:
    """What to download, and the cache folder to download to."""

    model_id: str
    revision: str | None
    token: str | None
    cache_dir: Path
    with_weights: bool = True


def hub_endpoint() -> str:
    """The address of the hub, or of a mirror."""
    from huggingface_hub import constants

    return (env.HF_ENDPOINT.get() or constants.ENDPOINT).rstrip("/")


def download(model: HubModel, show: Show) -> Path:
    """Downloads the model's files and returns their folder; `show` takes the progress as text.

    Raises:
        ModelNotFoundError: the hub cannot be reached, does not have the model, or denies access to it.
    """
    from huggingface_hub import snapshot_download

    endpoint = hub_endpoint()
    sizes = _list_files(model, endpoint)
    names = wanted_files(list(sizes), with_weights=model.with_weights)
    total_bytes = sum(sizes[name] or 0 for name in names)
    logger.info("downloading %s from %s", model.model_id, without_login(endpoint))
    try:
        with DownloadProgress(model.model_id, total_bytes or None, show) as progress:
            folder = snapshot_download(
                model.model_id,
                revision=model.revision,
                cache_dir=model.cache_dir,
                token=model.token,
                endpoint=endpoint,
                allow_patterns=names,
                tqdm_class=progress.bar_class,
            )
    except Exception as err:
        reason = _refusal(err, model, endpoint) or _full_disk(err, model, total_bytes)
        reason = reason or f"{endpoint}/{model.model_id} could not be downloaded: {_line(err)}"
        raise ModelNotFoundError(without_login(reason)) from err
    return Path(folder)


def wanted_files(names: list[str], *, with_weights: bool) -> list[str]:
    """The files to download: configuration, tokenizer, and the weights in one format."""
    top = [name for name in names if "/" not in name]
    texts = [name for name in top if any(fnmatch(name, pattern) for pattern in _TEXTS)]
    return [*texts, *_weights(top), *_module_files(names)] if with_weights else texts


def _module_files(names: list[str]) -> list[str]:
    """Modules of sentence-transformers, such as 1_Pooling/config.json, and 2_Dense with weights."""
    folders: dict[str, list[str]] = {}
    for folder, _, name in (name.partition("/") for name in names):
        if name and _MODULE.fullmatch(folder):
            folders.setdefault(folder, []).append(name)
    return [
        f"{folder}/{name}"
        for folder, inside in folders.items()
        for name in (*(name for name in inside if name == "config.json"), *_weights(inside))
    ]


def _weights(names: list[str]) -> list[str]:
    for pattern in (r"model(-\d+-of-\d+)?\.safetensors", r".*\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin"):
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return found
    return []


def _list_files(model: HubModel, endpoint: str) -> dict[str, int | None]:
    """Names and sizes in bytes; None for a size that the hub does not report."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=model.token)
    try:
        info = _within_deadline(
            lambda: api.model_info(
                model.model_id, revision=model.revision, timeout=REQUEST_TIMEOUT_S, files_metadata=True
            )
        )
    except Exception as err:
        unreachable = f"{model.model_id} is not cached, and the hub at {endpoint} cannot be reached ({_line(err)})"
        raise ModelNotFoundError(without_login(_refusal(err, model, endpoint) or unreachable)) from err
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


def _refusal(err: Exception, model: HubModel, endpoint: str) -> str | None:
    """The meaning of the hub's error response; None if the hub did not respond."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{endpoint}/{model.model_id}"
    if isinstance(err, GatedRepoError):
        return f"{model.model_id} is gated: accept its terms at {page}, then give a token by --hf-token or HF_TOKEN"
    if isinstance(err, RepositoryNotFoundError):
        return f"{page} does not exist; if it is private, give a token by --hf-token or HF_TOKEN"
    if isinstance(err, RevisionNotFoundError):
        return f"{page} has no revision {model.revision!r}"
    return f"{page} cannot be downloaded: {_line(err)}" if isinstance(err, HfHubHTTPError) else None


def _full_disk(err: BaseException | None, model: HubModel, total_bytes: int) -> str | None:
    """Advice for a full disk; None if the error has another cause."""
    while err is not None and getattr(err, "errno", None) not in _NO_ROOM:
        err = err.__cause__ or err.__context__
    if err is None:
        return None
    return (
        f"{model.model_id} could not be downloaded: its {format_bytes(total_bytes)} do not fit into {model.cache_dir} "
        f"({os.strerror(err.errno)}): free space, or give another --download-dir; files already there are kept"  # type: ignore[attr-defined]
    )


def _line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
