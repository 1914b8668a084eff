"""Adds the caches that vLLM itself has written during `vllm-cli bake` to the user's cache folder.

vLLM uses one folder, and writes to it. So each baked file that the user's folder lacks gets an entry there:
a copy of a small file, because vLLM rewrites those in place, and a link to a large one.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from base.machine.files import why_changeable
from envs.registry import env
from startup.caches import CACHE, PREFIX, Hardware, Manifest, cache_folder, find_baked

COPIED_BYTES: Final = 64 << 10
"""Files up to this size are copied."""

_RECORD: Final = "baked.json"
"""In this program's cache folder: which baked folder was added, and the links to it."""

FOR_ANY_HARDWARE: Final = ("modelinfos",)
"""vLLM's caches that do not depend on the hardware; compiled code does."""

_PROBES: Final = ("__init__.py", "envs.py", "entrypoints/cli/serve.py")


@dataclass(frozen=True)
class _Added:
    """What an earlier start has added."""

    source: str = ""
    links: tuple[str, ...] = ()


def add_baked_caches(session_folder: Path) -> str | None:
    """Adds what vLLM's cache folder lacks; returns a warning for the user, if there is a reason for one.

    A second start finds its own record and does nothing else. Nothing that exists is replaced.

    Args:
        session_folder: becomes vLLM's cache folder for this start if its own cannot be written to.
    """
    baked = find_baked().folder
    root = env.VLLM_CACHE_ROOT.get()
    added = _read_record()
    if baked is None and not added.links:
        return None
    try:
        manifest = Manifest.read(baked) if baked is not None else None
    except (OSError, ValueError) as err:
        return f"vLLM's caches in {baked} are not used: {err}"
    source = f"{baked} {manifest.bake_id} {Hardware.present()}" if manifest is not None else ""
    if source == added.source:
        return None
    if baked is not None and not _is_writable(root):
        root = session_folder / "cache"
        os.environ[env.VLLM_CACHE_ROOT.name] = str(root)
    _remove_dead_links(added.links)
    if baked is None or manifest is None:
        _write_record(_Added())
        return None
    is_same = manifest.hardware == Hardware.present()
    links = tuple(_add_all(baked / CACHE, root, with_compiled=is_same))
    _write_record(_Added(source, links))
    return None if is_same else _describe_difference(manifest.hardware, baked / CACHE)


def _add_all(baked: Path, root: Path, *, with_compiled: bool) -> Iterator[str]:
    """Yields the links that were made."""
    own = cache_folder().name
    for folder, names, files in os.walk(baked):
        if folder == str(baked):
            names[:] = [name for name in names if name in FOR_ANY_HARDWARE or (with_compiled and name != own)]
        target = root / Path(folder).relative_to(baked)
        with suppress(OSError):
            target.mkdir(parents=True, exist_ok=True)
            for name in files:
                if _add_file(Path(folder, name), target / name):
                    yield str(target / name)


def _add_file(source: Path, target: Path) -> bool:
    """Adds one file unless it exists; returns whether it is a link."""
    if os.path.lexists(target):
        return False
    if source.stat().st_size > COPIED_BYTES:
        target.symlink_to(source)
        return True
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, beside)  # not the permissions: baked files may be read-only
    with suppress(FileExistsError):  # of another start, which was faster
        os.link(beside, target)
    beside.unlink()
    return False


def _remove_dead_links(links: tuple[str, ...]) -> None:
    """vLLM cannot write to a link whose target is gone."""
    for link in map(Path, links):
        with suppress(OSError):
            if link.is_symlink() and not link.exists():
                link.unlink()


def _is_writable(root: Path) -> bool:
    nearest = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _read_record() -> _Added:
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((cache_folder() / _RECORD).read_bytes())
        return _Added(str(content["source"]), tuple(map(str, content["links"])))
    return _Added()


def _write_record(added: _Added) -> None:
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        (cache_folder() / _RECORD).write_text(json.dumps({"source": added.source, "links": added.links}))


def _describe_difference(baked: Hardware, cache: Path) -> str | None:
    """None if nothing was compiled."""
    if not {path.name for path in cache.iterdir()} - {*FOR_ANY_HARDWARE, cache_folder().name}:
        return None
    here = Hardware.present()
    what = "processor" if baked.cpu != here.cpu else "GPU"
    return f"the baked compile caches are not used: they were made on another {what}"


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
