"""Finds the model to serve: a folder, a snapshot in the hub's cache, or the hub itself, in this order."""

from collections.abc import Callable
from pathlib import Path

from envs.home import expand_home
from server.config import ModelFiles
from startup.config import ModelConfig
from startup.errors import ModelNotFoundError
from startup.model.checkpoint_folder import model_problem, tokenizer_problem
from startup.model.download_progress import Show
from startup.model.hub import HubModel, download, is_offline
from startup.model.hub_cache import find_snapshot, hub_cache_dir, is_hub_id

Check = Callable[[Path], str | None]


def resolve_model(config: ModelConfig, show: Show = lambda _: None) -> ModelFiles:
    """The files of the configured model; uses the network only for files that are not on disk.

    Args:
        config: the model and tokenizer to find.
        show: takes the progress of a download as text.

    Raises:
        ModelNotFoundError: with the reason in one line.
    """
    path = (
        _find_default(config, show) if config.model is None else _find(config.model, config, show, check=model_problem)
    )
    if config.tokenizer is None:
        _require(path, tokenizer_problem)
        return ModelFiles(path=path, tokenizer_path=path)
    return ModelFiles(path=path, tokenizer_path=_find(config.tokenizer, config, show, check=tokenizer_problem))


def _find_default(config: ModelConfig, show: Show) -> Path:
    from startup.model.default_model import resolve_default_model

    return resolve_default_model(hub_cache_dir(config), show)


def _find(name: str, config: ModelConfig, show: Show, *, check: Check) -> Path:
    folder = Path(expand_home(name))
    if folder.exists():
        return _require(folder.absolute(), check)
    if not is_hub_id(name):
        raise ModelNotFoundError(f"{name} is neither a folder nor a model of the Hugging Face hub")
    return _find_on_hub(name, config, show, check=check)


def _find_on_hub(model_id: str, config: ModelConfig, show: Show, *, check: Check) -> Path:
    model = HubModel(
        model_id=model_id,
        revision=config.revision if model_id == config.model else None,
        token=config.hf_token,
        cache_dir=hub_cache_dir(config),
        with_weights=check is model_problem,
    )
    snapshot = find_snapshot(model_id, revision=model.revision, cache_dir=model.cache_dir)
    if snapshot and check(snapshot) is None:
        return snapshot
    if is_offline():
        state = check(snapshot) if snapshot else f"{model_id} is not in {model.cache_dir}"
        raise ModelNotFoundError(f"{state}, and HF_HUB_OFFLINE forbids the download")
    return _require(download(model, show), check)


def _require(folder: Path, check: Check) -> Path:
    if problem := check(folder):
        raise ModelNotFoundError(problem)
    return folder
