"""Shell completion of model names: models in the hub's cache, and folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from envs.errors import EnvError
from envs.registry import env

_PREFIX: Final = "models--"


def complete_model(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """If no model matches, the shell completes folders."""
    download_dir = ctx.params.get("download_dir")
    names = [name for name in sorted(cached_models(download_dir)) if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="dir")]


def cached_models(download_dir: str | None = None) -> Iterator[str]:
    """Hub ids of downloaded models, taken from the names of folders."""
    try:
        folder = Path(download_dir) if download_dir else env.HF_HUB_CACHE.get()
        for entry in folder.iterdir():
            if entry.name.startswith(_PREFIX) and (entry / "snapshots").is_dir():
                yield entry.name.removeprefix(_PREFIX).replace("--", "/")
    except (OSError, EnvError):
        return
