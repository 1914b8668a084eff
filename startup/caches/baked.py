"""Finds the folder that `vllm-cli bake` has written, and decides whether it can be trusted.

It holds bytecode and pickles, so that whoever can write to it can run code as the user of a start.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Final, NamedTuple

from envs.home import expand_home
from envs.registry import env
from server.machine.files import why_changeable

FIXED_PATH: Final = Path("/opt/vllm-cli/baked")
OFF: Final = "off"

MANIFEST: Final = "manifest.json"
CACHE: Final = "cache"
"""A cache folder as VLLM_CACHE_ROOT names it, with this program's folder inside."""
BYTECODE: Final = "bytecode"
"""A bytecode cache as PYTHONPYCACHEPREFIX names it; missing if all packages have their own."""
PAGES: Final = "pages.json"
"""Which parts of which files the start has read."""


PREFIX: Final = "PYTHONPYCACHEPREFIX"
_DONT_WRITE: Final = "PYTHONDONTWRITEBYTECODE"


class BakedFolder(NamedTuple):
    """The result of the search."""

    folder: Path | None = None
    problem: str | None = None
    """Why a folder that exists, or that the user has named, is not used."""


def find_baked() -> BakedFolder:
    """The folder that VCLI_BAKED names, or the one at the fixed path."""
    named = env.VCLI_BAKED.get()
    if named == OFF:
        return BakedFolder()
    return _examine(Path(expand_home(named)) if named else FIXED_PATH, os.geteuid(), is_named=named is not None)


def use_baked_bytecode() -> bool:
    """Sets the bytecode cache of this process and of programs started after this call, unless one is set.

    The folder has bytecode if the image's packages came without any.
    Python compares each file with its source. What the folder lacks is compiled in memory, since nothing may
    be written to it.
    """
    baked = find_baked().folder
    if baked is None or sys.pycache_prefix is not None or not (baked / BYTECODE).is_dir():
        return False
    sys.pycache_prefix = os.environ[PREFIX] = str(baked / BYTECODE)
    sys.dont_write_bytecode = True
    os.environ[_DONT_WRITE] = "1"
    return True


@functools.cache
def _examine(folder: Path, user: int, *, is_named: bool) -> BakedFolder:
    if not (folder / MANIFEST).is_file():
        missing = f"{env.VCLI_BAKED.name}: {folder} has no {MANIFEST}, so it was not written by `vllm-cli bake`"
        return BakedFolder(problem=missing if is_named else None)
    folder = folder.resolve()
    problem = why_not_trusted(folder, user)
    return BakedFolder(folder) if problem is None else BakedFolder(problem=f"{problem}, so {folder} is not used")


def why_not_trusted(folder: Path, user: int) -> str | None:
    """Why others could change what is in the folder; None if only root and this user can.

    Checks the folder, its parts and its parents.
    """
    for path in (folder, folder / MANIFEST, folder / CACHE, folder / BYTECODE, *folder.parents):
        if (problem := _why_changeable(path, user, allows_sticky=path in folder.parents)) is not None:
            return problem
    return None


def _why_changeable(path: Path, user: int, *, allows_sticky: bool = False) -> str | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as err:
        return f"{path} cannot be examined ({err.strerror})"
    return why_changeable(found, path, user=user, allows_sticky=allows_sticky)
