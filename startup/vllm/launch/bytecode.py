"""Redirects Python's bytecode cache to a writable folder if vLLM's own folder has none and is read-only.

Without a cache every process of every start compiles thousands of modules, which takes longer than any other
part of the start. Images whose packages are installed without bytecode are affected.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from server.machine.files import why_changeable
from startup.caches import PREFIX, cache_folder

_PROBES: Final = ("__init__.py", "envs.py", "entrypoints/cli/serve.py")


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
