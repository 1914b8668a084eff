"""Imports modules from an import file, without a search of folders and without a read per module.

A module is served only where Python's own search would find the same source: the folders searched before it
and its own folder have not changed, and neither have the source's time and size. Times without fractions, as
in images, may be the same for all files: then the installed distributions must not have changed either.
Everything else is left to Python's own finders. Modules get Python's own loader.
"""

import _imp
import logging
import marshal
import os
import sys
from collections.abc import Sequence
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

from server.machine.file_stamps import read_stamp
from startup.imports.distributions import distribution_stamps, installed_folders
from startup.imports.finder import serve, stop_serving
from startup.imports.import_file_layout import (
    Index,
    ModuleEntry,
    UnusableFileError,
    checksum,
    has_whole_seconds,
    read_index,
)

logger = logging.getLogger(__name__)

_SOURCE_ENDING: Final = ".py"
_NS_PER_S: Final = 10**9


class ImportFile:
    """One file, whose modules can be imported until it is closed."""

    def __init__(self, path: str) -> None:
        """Opens the file.

        Raises:
            OSError, UnusableFileError: it cannot be used.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.index = _applicable_index(self._fd)
        except BaseException:
            self.close()
            raise
        self._modules = self.index.modules
        self._has_same_distributions: bool | None = None
        self._are_unchanged: dict[str, bool] = {}
        self._names: dict[str, frozenset[str] | None] = {}
        self._num_path_hooks = len(sys.path_hooks)
        self.served: set[str] = set()
        """The modules whose code came from the file."""
        self.outdated: set[str] = set()
        """The modules whose source, folder or part of the file has changed."""

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def find_spec(self, fullname: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        """None for what is not in the file or has changed."""
        fields = self._modules.get(fullname)
        if fields is None or len(sys.path_hooks) != self._num_path_hooks:
            return None
        entry = ModuleEntry(*fields)  # type: ignore[arg-type]
        folder, _, file = entry.origin.rpartition("/")
        searched = folder.rpartition("/")[0] if entry.is_package else folder
        if not self._is_searched_first(fullname, searched, path):
            return None
        if not self.is_current(entry):
            self.outdated.add(fullname)
            return None
        loader = SourceFileLoader(fullname, entry.origin)
        setattr(loader, "get_code", lambda name: self._load(name, loader, entry))  # noqa: B010 - removed by _load
        spec = ModuleSpec(fullname, loader, origin=entry.origin, is_package=entry.is_package)
        spec.has_location = True
        if entry.is_package:
            spec.submodule_search_locations = [folder]
        if sys.pycache_prefix is None:  # otherwise the spec computes it
            spec.cached = f"{folder}/__pycache__/{file[: -len(_SOURCE_ENDING)]}.{sys.implementation.cache_tag}.pyc"
        return spec

    def is_current(self, entry: ModuleEntry) -> bool:
        """Whether the source and its folder are as they were; a frozen file was checked as a whole."""
        if self.index.is_frozen:
            return True
        if read_stamp(entry.origin)[:2] != (entry.mtime_ns, entry.size):
            return False
        if has_whole_seconds(entry.mtime_ns) and not self._is_of_same_distributions(entry):
            return False
        return self._is_unchanged(entry.origin.rpartition("/")[0])

    def close(self) -> None:
        """Ends the use of the file; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _load(self, name: str, loader: SourceFileLoader, entry: ModuleEntry) -> CodeType | None:
        """The code from the file; from now on the loader is as Python creates it."""
        vars(loader).pop("get_code", None)
        try:
            data = os.pread(self._fd, entry.length, entry.offset)
            if checksum(data) != entry.checksum:
                raise ValueError("its part of the file is damaged")
            code: CodeType = marshal.loads(data)
        except (OSError, ValueError, EOFError, TypeError) as err:  # closed meanwhile, or damaged
            logger.debug("%s is not imported from %s: %s", name, self.path, err)
            self.outdated.add(name)
            return loader.get_code(name)
        _imp._fix_co_filename(code, entry.origin)  # type: ignore[attr-defined]
        self.served.add(name)
        return code

    def _is_searched_first(self, name: str, folder: str, path: Sequence[str] | None) -> bool:
        """Whether no folder that offers another module of this name is searched before this one."""
        if path is not None:
            return type(path) is list and path[:1] == [folder]
        for earlier in sys.path:
            if earlier == folder:
                return True
            if (offered := self._names_in(earlier)) is None or name in offered:
                return False
        return False

    def _names_in(self, folder: str) -> frozenset[str] | None:
        """What a folder on the import path may offer; None for anything but a folder, such as an archive."""
        if folder not in self._names:
            try:
                entries = os.listdir(folder or os.curdir)  # noqa: PTH208
            except FileNotFoundError:
                self._names[folder] = frozenset()
            except OSError:
                self._names[folder] = None
            else:
                self._names[folder] = frozenset(entry.partition(".")[0] for entry in entries)
        return self._names[folder]

    def _is_of_same_distributions(self, entry: ModuleEntry) -> bool:
        """Whether an installer wrote the source, and has changed nothing since."""
        if self._has_same_distributions is None:
            self._installed = installed_folders()
            self._has_same_distributions = self.index.distributions == distribution_stamps()
        return self._has_same_distributions and entry.origin.startswith(self._installed)

    def _is_unchanged(self, folder: str) -> bool:
        """Whether nothing was added to the folder or removed from it."""
        if folder not in self._are_unchanged:
            has_own_finder = not isinstance(sys.path_importer_cache.get(folder), FileFinder | None)
            recorded = self.index.folders.get(folder)
            self._are_unchanged[folder] = not has_own_finder and recorded == read_stamp(folder).mtime_ns
        return self._are_unchanged[folder]


def install(path: str | os.PathLike[str]) -> int:
    """From now on, imports use the file; returns how many modules it can serve, 0 if it does not apply."""
    path = os.fspath(path)
    try:
        file = ImportFile(path)
    except FileNotFoundError:
        return 0
    except (OSError, UnusableFileError, ValueError, EOFError, TypeError) as err:
        logger.debug("the import file %s is not used: %s", path, err)
        return 0
    serve(file)
    return len(file.index.modules)


def uninstall() -> list[str]:
    """Ends the use of all files, whose descriptors forks would inherit.

    Returns:
        The modules that this process has imported and that the files lack or have in an old version.
    """
    files = [file for file in stop_serving() if isinstance(file, ImportFile)]
    for file in files:
        file.close()
    known: set[str] = set()
    known.update(*(file.index.modules for file in files), *(file.index.refused for file in files))
    known.difference_update(*(file.outdated for file in files))
    return [name for name, module in list(sys.modules.items()) if name not in known and _is_from_source(name, module)]


def why_not(path: str | os.PathLike[str]) -> str | None:
    """Why the file is not used, or is used only in part; None if all of it is as when it was written.

    Thorough, for reports: also compares all sources of a frozen file.
    """
    path = os.fspath(path)
    try:
        file = ImportFile(path)
    except (OSError, UnusableFileError, ValueError, EOFError, TypeError) as err:
        return str(err)
    file.close()
    for name, fields in file.index.modules.items():
        entry = ModuleEntry(*fields)  # type: ignore[arg-type]
        if read_stamp(entry.origin).stored[0] != entry.mtime_ns // _NS_PER_S or not file.is_current(entry):
            return f"{name} was changed: {entry.origin}"
    return None


def _applicable_index(fd: int) -> Index:
    index = read_index(fd)
    if index.is_frozen and index.distributions != distribution_stamps():
        raise UnusableFileError("distributions were installed, changed or removed since it was written")
    hooks = [getattr(hook, "__name__", "") for hook in sys.path_hooks]
    if hooks != ["zipimporter", "path_hook_for_FileFinder"]:
        raise UnusableFileError(f"the program has import hooks of its own: {', '.join(hooks)}")
    return index


def _is_from_source(name: str, module: ModuleType) -> bool:
    """Whether Python's own loader has imported it, under this name."""
    spec: ModuleSpec | None = getattr(module, "__dict__", {}).get("__spec__")
    return spec is not None and getattr(spec, "name", None) == name and type(spec.loader) is SourceFileLoader
