"""Inspections of models from the folder of `vllm-cli bake`, and the bytecode of packages without any."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from base.machine.files import why_changeable
from envs.registry import env
from startup.caches import CACHE, INSPECTIONS, PREFIX, cache_folder, find_baked

_PROBES: Final = ("__init__.py", "envs.py", "entrypoints/cli/serve.py")


def add_baked_inspections(session_folder: Path) -> None:
    """Copies vLLM's inspections of models from the baked folder to vLLM's cache folder, which may lack them.

    Args:
        session_folder: gets vLLM's cache folder for this start if its own cannot be written to.
    """
    baked = find_baked().folder
    if baked is None:
        return
    if not _is_writable(env.VLLM_CACHE_ROOT.get()):
        os.environ[env.VLLM_CACHE_ROOT.name] = str(session_folder / "cache")
    target = env.VLLM_CACHE_ROOT.get() / INSPECTIONS
    with suppress(OSError):
        target.mkdir(parents=True, exist_ok=True)
        for source in (baked / CACHE / INSPECTIONS).glob("*.json"):
            _copy(source, target / source.name)


def _copy(source: Path, target: Path) -> None:
    """Not the permissions: baked files may be read-only, and vLLM rewrites its own."""
    if os.path.lexists(target):
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, beside)
    with suppress(FileExistsError):  # of another start, which was faster
        os.link(beside, target)
    beside.unlink()


def _is_writable(root: Path) -> bool:
    nearest = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def keep_bytecode(package: Path) -> str | None:
    """Sets the bytecode cache for this process and for processes started after this call.

    Args:
        package: vLLM's folder.

    Returns:
        A warning for the user; None if the bytecode exists or can be written in place.
    """
    if sys.pycache_prefix is not None or all(path.exists() for path in _compiled(package)):
        return None
    if sys.dont_write_bytecode:
        return (
            f"{package} has no compiled modules and PYTHONDONTWRITEBYTECODE is set, so that every start compiles "
            "them again: unset it, or run `python -m compileall` when the image is built"
        )
    if os.access(package, os.W_OK):
        return None
    folder = cache_folder() / "bytecode"
    if (reason := _why_unusable(folder)) is not None:
        return f"{package} has no compiled modules and cannot be written to, so every start compiles them: {reason}"
    sys.pycache_prefix = os.environ[PREFIX] = str(folder)
    return f"{package} has no compiled modules and cannot be written to: they are kept in {folder}"


def _why_unusable(folder: Path) -> str | None:
    """Python executes what is in the folder, so it is closed to other users."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = f"{folder} is a link" if folder.is_symlink() else why_changeable(folder.lstat(), folder)
    except OSError as err:
        return f"{folder}: {err.strerror}"
    return reason and f"{reason}: remove it"


def _compiled(package: Path) -> Iterator[Path]:
    return (Path(cache_from_source(str(path))) for name in _PROBES if (path := package / name).exists())
