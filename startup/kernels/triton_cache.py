"""Triton's caches: where a start keeps kernels, and where it finds those of others.

Triton itself uses ~/.triton/cache, and vLLM the folder of a compiled model. A volume on VLLM_CACHE_ROOT has
neither `~` nor, for another model, that folder. So a start keeps kernels in a folder of its own below
VLLM_CACHE_ROOT, unless the user has chosen Triton's folder. Everything here works without Triton.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from base.json_depth import read_json
from base.machine.file_stamps import read_stamp
from base.machine.files import is_safe_name, why_changeable, write_whole
from envs.foreign import expand_home
from envs.registry import env
from startup.storage.caches import cache_folder

CACHE_DIR: Final = "TRITON_CACHE_DIR"
HOME: Final = "TRITON_HOME"
GROUP: Final = "__grp__"
"""Beginning of the name of a file in which Triton lists a kernel's files by their absolute paths."""
TEMPORARY: Final = "tmp.pid_"
"""Beginning of the names of folders in which Triton writes a file before it moves the file to its place."""
KEPT: Final = "triton"
"""The folder of kernels in this program's cache folder."""

_MODE: Final = 0o700
"""Triton's folders in this one are writable for the group if the umask allows it."""
_LONGEST_NAME: Final = 150
"""Triton cuts the name of a kernel's files to as many characters."""
_MODELS: Final = (
    "torch_aot_compile/*/inductor_cache/triton/*",
    "*/rank_*/inductor_cache/triton/*",
    "*/rank_*/triton_cache",
)
"""Folders in `torch_compile_cache` to which vLLM or torch sets TRITON_CACHE_DIR for one model."""
_MOST_MODELS: Final = 16
"""The most of these folders that are searched, newest first."""


def is_chosen(variables: Mapping[str, str]) -> bool:
    """Whether the user has chosen the folder of Triton's cache."""
    return bool(variables.get(CACHE_DIR) or variables.get(HOME))


def triton_folder(variables: Mapping[str, str]) -> Path:
    """The folder that Triton uses with these variables."""
    home = variables.get(HOME) or expand_home("~/")
    return Path(variables.get(CACHE_DIR) or Path(home, ".triton", "cache"))


def kept_folder(variables: Mapping[str, str]) -> Path:
    """The folder in which a start with these variables keeps kernels: the user's, or one of this program."""
    return triton_folder(variables) if is_chosen(variables) else cache_folder().absolute() / KEPT


def usable_folders(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The folders in which to look for kernels. New ones go to the first. Empty if none can be written to."""
    triton, kept = triton_folder(variables), kept_folder(variables)
    folders = [kept] if create_kept_folder(variables) else []
    found = dict.fromkeys((*folders, triton))
    ordered = sorted(found, key=lambda folder: not _can_write(folder))
    return tuple(map(str, ordered)) if _can_write(ordered[0]) else ()


def create_kept_folder(variables: Mapping[str, str]) -> bool:
    """Creates the folder, unless the user has chosen one. Returns whether only this user can write to it."""
    if is_chosen(variables):
        return True
    folder = kept_folder(variables)
    with suppress(OSError):
        folder.mkdir(_MODE, parents=True, exist_ok=True)
        return why_changeable(folder.lstat()) is None
    return False


def _can_write(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def model_folders() -> list[Path]:
    """The newest folders of compiled models with kernels. A first start of vLLM puts all kernels there."""
    compiled = env.VLLM_CACHE_ROOT.get().absolute() / "torch_compile_cache"
    found = (path for pattern in _MODELS for path in compiled.glob(pattern))
    return sorted(found, key=lambda path: -read_stamp(path).mtime_ns)[:_MOST_MODELS]


def is_cached(folder: str, key: str, name: str) -> bool:
    """Whether a cache has the kernel of this key. `name` is the name of the kernel's function."""
    return os.path.exists(f"{folder}/{key}/{GROUP}{name[:_LONGEST_NAME]}.json")  # noqa: PTH110 - called often


def has_files(folder: str | Path, key: str) -> bool:
    """Whether a cache has any file of this key: a kernel, a library, or what Triton has measured."""
    with suppress(OSError), os.scandir(f"{folder}/{key}") as entries:
        return any(entry.is_file() for entry in entries)
    return False


def keep(keys: Iterable[str], variables: Mapping[str, str]) -> None:
    """Keeps the kernels of these keys for later starts, wherever they are. Raises OSError.

    If this takes no space on the disk, they are added to Triton's own cache as well. So vLLM finds
    them without this program.
    """
    triton, kept = triton_folder(variables), kept_folder(variables)
    if triton == kept or usable_folders(variables)[:1] != (str(kept),):
        return
    used = set(filter(is_safe_name, keys))
    missing = [key for key in used if not has_files(kept, key)]
    others = (triton, *model_folders()) if missing else ()
    for key in missing:
        bring(key, others, kept)
    if _has_one_disk(kept, triton):
        libraries = {path.parent.name for path in kept.glob("*/*.so")}
        for key in used | libraries:
            if not has_files(triton, key):
                bring(key, (kept,), triton)


def _has_one_disk(kept: Path, triton: Path) -> bool:
    return os.access(triton, os.W_OK) and triton.stat().st_dev == kept.stat().st_dev


def bring(key: str, sources: Iterable[str | Path], target: str | Path) -> None:
    """Adds a kernel of the first cache that has it to another cache. Raises OSError."""
    for source in sources:
        if has_files(source, key):
            _copy(Path(source, key), Path(target, key))
            break


def _copy(source: Path, target: Path) -> None:
    """Adds the files of a kernel to a folder, and replaces none. The list of the files comes last."""
    files = [path for path in source.iterdir() if path.is_file() and not path.name.endswith(".tmp")]
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(files, key=lambda path: path.name.startswith(GROUP)):
        new = target / path.name
        if os.path.lexists(new):
            continue
        if path.name.startswith(GROUP):
            write_whole(new, readdressed(path.read_bytes(), target))
        else:
            _link(path, new)


def _link(path: Path, new: Path) -> None:
    """Makes a link to a file, or a copy on another file system. Triton replaces files and changes none."""
    try:
        new.hardlink_to(path)
    except OSError:
        beside = new.with_name(f"{new.name}.{os.urandom(8).hex()}.tmp")
        try:
            shutil.copyfile(path, beside)
            beside.rename(new)
        finally:
            beside.unlink(missing_ok=True)


def readdressed(group: bytes, folder: Path) -> str:
    """Triton's list of a kernel's files with paths in `folder`. With wrong paths, Triton would compile."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):  # Triton ignores such a list, too
        names = read_json(group)["child_paths"].keys()
        return json.dumps({"child_paths": {name: str(folder / Path(name).name) for name in names}})
    return group.decode(errors="replace")
