"""Identifies the installed distributions, so that cached facts are used only for the same distributions."""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Final

from base.machine.file_stamps import FileStamp, checksum, read_file, read_stamp

_METADATA: Final = ".dist-info"
_OLD_METADATA: Final = ".egg-info"
_RECORD: Final = "RECORD"
_PATH_FILE: Final = ".pth"


@cache
def distribution_stamps() -> tuple[tuple[str, bytes], ...]:
    """Returns path and checksum of each distribution's list of files (RECORD), and of each `.pth` file.

    The list has a hash of each installed file. So two container images with other packages differ, even if
    all their files have one time. Reading takes 6 ms for 200 distributions; their times and inode numbers
    would be faster, but two images can have them in common. This process keeps the result of the first call,
    because some imports, such as setuptools, add folders to the path.
    """
    return tuple(sorted((path, _checksum_of(path)) for path in distribution_files(sys.path)))


def contents_of(names: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    """Returns, for each of these distributions, name with version and a checksum of its list of files.

    Unlike the result of `distribution_stamps`, it does not depend on the folder of the installation, or on
    the installer: scripts, metadata and bytecode are left out.
    """
    known = tuple(f"/{name.lower().replace('-', '_')}-" for name in names)
    found = []
    for path, _ in distribution_stamps():
        folder = os.path.dirname(path)  # noqa: PTH120
        name = os.path.basename(folder)  # noqa: PTH119
        if f"/{name.lower()}".startswith(known) and path.endswith(_RECORD):
            left_out = (b"../", name.encode())
            with suppress(OSError):
                lines = sorted(read_file(path).splitlines())
                own = (line for line in lines if not line.startswith(left_out) and b"__pycache__" not in line)
                found.append((name, checksum(b"\n".join(own))))
    return tuple(sorted(found))


def _checksum_of(path: str) -> bytes:
    """The checksum of a file's content. Empty if it cannot be read."""
    try:
        return checksum(read_file(path))
    except OSError:
        return b""


def distribution_files(folders: Iterable[str]) -> Iterator[str]:
    """Yields the files that installers replace with each version: lists of files, and `.pth` files.

    A list may not exist, because some installers write none. Old installers write no such list, but metadata
    whose name has the version.
    """
    for folder, names in _site_folders(folders):
        for name in names:
            if name.endswith(_METADATA):
                yield f"{folder}/{name}/{_RECORD}"
            elif name.endswith((_PATH_FILE, _OLD_METADATA)):
                yield f"{folder}/{name}"


def installed_folders() -> tuple[str, ...]:
    """The folders in which only installers write: site-packages and standard library. Each ends with `/`."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    sites = (folder for folder, _ in _site_folders(sys.path))
    return tuple(f"{folder}/" for folder in dict.fromkeys((library, *sites)))


def _site_folders(folders: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields folders with distributions, and their entries. In other folders, `.pth` files hold weights."""
    for folder in filter(None, dict.fromkeys(folders)):
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except OSError:
            continue
        if any(name.endswith(_METADATA) for name in names):
            yield folder, names


_noted: Final[dict[str, FileStamp]] = {}
"""The packages with modules whose import is delayed -> the stamp of each package's own file."""


def note_package(module: str) -> None:
    """Notes the package of a module that will be imported later, perhaps after the server is ready."""
    package = module.partition(".")[0]
    if package not in _noted:
        _noted[package] = _stamp(package)


def import_later(module: str) -> ModuleType:
    """Imports a module whose import was delayed.

    Raises:
        ImportError: another version of the package was installed meanwhile. It would not fit the modules that
            this process has imported.
    """
    if module not in sys.modules:
        check_version(module)
    return importlib.import_module(module)


def check_version(module: str) -> None:
    """Raises ImportError if another version of a noted module's package was installed meanwhile."""
    package = module.partition(".")[0]
    if package in _noted and _stamp(package) != _noted[package]:
        raise ImportError(f"{package} was installed anew while this server was running: start the server again")


def _stamp(package: str) -> FileStamp:
    loaded = sys.modules.get(package)
    known = ModuleType.__getattribute__(loaded, "__dict__") if isinstance(loaded, ModuleType) else {}
    spec = known.get("__spec__") or PathFinder.find_spec(package)  # a late module has no spec yet
    return read_stamp(spec.origin if spec is not None and spec.origin is not None else "")
