"""Locates a model or tokenizer by the rules of `startup.model.source`, but without network access."""

from enum import Enum
from pathlib import Path
from typing import NamedTuple

from envs.home import expand_home
from server.config import ModelFiles
from startup.config import ModelConfig
from startup.model.checkpoint_folder import model_problem, tokenizer_problem
from startup.model.hub_cache import find_snapshot, hub_cache_dir, is_hub_id
from startup.preflight.snapshot import dangling_links


class PlaceKind(Enum):
    """Where the files of a model come from."""

    FOLDER = "a local folder"
    SNAPSHOT = "a complete snapshot in the hub's cache"
    HUB = "to be downloaded"
    NOWHERE = "neither a folder nor the name of a model"


class ModelPlace(NamedTuple):
    """A model's or tokenizer's files: where they are, or will be downloaded to."""

    kind: PlaceKind
    name: str
    """The name as given by the user."""
    folder: Path | None = None
    """The files' folder; before a download the incomplete snapshot, if there is one."""
    revision: str | None = None
    is_tokenizer: bool = False
    has_other_source: bool = False
    """Whether it is available without the hub too, as the default model is."""

    @property
    def is_local(self) -> bool:
        """Whether all files are on disk."""
        return self.kind in (PlaceKind.FOLDER, PlaceKind.SNAPSHOT)


def locate_model(config: ModelConfig) -> ModelPlace:
    """Locates the model."""
    if config.model is None:
        return _locate_default(config)
    return _locate(config.model, config, is_tokenizer=False)


def locate_tokenizer(config: ModelConfig) -> ModelPlace | None:
    """Locates the tokenizer; None if it comes with the model."""
    return _locate(config.tokenizer, config, is_tokenizer=True) if config.tokenizer is not None else None


def locate_files(config: ModelConfig) -> ModelFiles | None:
    """The files that will be served; None unless all of them are on disk."""
    model = locate_model(config)
    tokenizer = locate_tokenizer(config) or model
    if model.folder is None or tokenizer.folder is None or not (model.is_local and tokenizer.is_local):
        return None
    return ModelFiles(path=model.folder, tokenizer_path=tokenizer.folder)


def _locate(name: str, config: ModelConfig, *, is_tokenizer: bool) -> ModelPlace:
    folder = Path(expand_home(name))
    if folder.is_dir():
        return ModelPlace(PlaceKind.FOLDER, name, folder.absolute(), is_tokenizer=is_tokenizer)
    if folder.exists() or not is_hub_id(name):
        return ModelPlace(PlaceKind.NOWHERE, name, is_tokenizer=is_tokenizer)
    revision = config.revision if name == config.model else None
    return _locate_in_cache(name, revision, hub_cache_dir(config), is_tokenizer=is_tokenizer)


def _locate_in_cache(model_id: str, revision: str | None, cache_dir: Path, *, is_tokenizer: bool) -> ModelPlace:
    snapshot = find_snapshot(model_id, revision=revision, cache_dir=cache_dir)
    problem_of = tokenizer_problem if is_tokenizer else model_problem
    is_complete = snapshot is not None and problem_of(snapshot) is None and not dangling_links(snapshot)
    kind = PlaceKind.SNAPSHOT if is_complete else PlaceKind.HUB
    return ModelPlace(kind, model_id, snapshot, revision, is_tokenizer=is_tokenizer)


def _locate_default(config: ModelConfig) -> ModelPlace:
    from startup.model.default_model import DEFAULT_MODEL_ID, prepared_folder

    if model_problem(prepared_folder()) is None:
        return ModelPlace(PlaceKind.FOLDER, DEFAULT_MODEL_ID, prepared_folder())
    place = _locate_in_cache(DEFAULT_MODEL_ID, None, hub_cache_dir(config), is_tokenizer=False)
    return place._replace(has_other_source=True)
