"""Finds downloaded models in the cache of the Hugging Face hub, without importing its client."""

import re
from pathlib import Path
from typing import Final

from envs.home import expand_home
from envs.registry import env
from startup.config import ModelConfig

_DEFAULT_REVISION: Final = "main"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
