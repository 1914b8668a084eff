"""vLLM's inspections of models from the folder of `vllm-cli bake`."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from envs.registry import env
from startup.ground.caches import CACHE, INSPECTIONS, find_baked


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
