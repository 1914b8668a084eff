"""Checks whether everything that a template has imported is still installed as it was.

A template keeps modules for days. An upgrade, an edit of a source file or another interpreter makes them
stale: a program started now would run other code. Standard library only.
"""

import os
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final, NamedTuple

from server.machine.file_stamps import MISSING, FileStamp, read_stamp

_METADATA: Final = (".dist-info", ".egg-info")
_METADATA_FILES: Final = ("RECORD", "METADATA", "PKG-INFO", "direct_url.json")
_SITE_ENTRIES: Final = (*_METADATA, ".egg-link", ".pth")
_MODULES: Final = (".py", ".so")
_EDITABLE: Final = "__editable__"
_DELETED: Final = " (deleted)"
_SETTLED_NS: Final = 1_000_000_000
"""Age from which a folder's unchanged modification time proves that nothing was added: clocks are coarse."""


class InstalledFiles:
    """The files of all loaded modules and libraries, and the distributions of each folder on the path.

    Created in the template before its imports, completed after them. Each fork then checks for changes.
    """

    def __init__(self) -> None:
        self._since_ns = time.time_ns()
        self._folders: dict[str, _Folder] = {folder: _Folder.read(folder, ()) for folder in _path_folders()}
        self._first_path = tuple(folder + os.sep for folder in self._folders)
        self._changed_early: str | None = None
        self._files = _Files({})

    def record_loaded(self) -> None:
        """Called once after the imports; what changed during them counts as changed."""
        self._changed_early = self._find_changed_folder()
        sites = tuple(folder + os.sep for folder in _path_folders() if _has_distributions(folder))
        top_level = {name for name in list(sys.modules) if "." not in name}
        for folder in _path_folders():
            self._folders[folder] = _Folder.read(folder, () if folder + os.sep in sites else top_level)
        for folder in _package_folders():
            if folder not in self._folders and not folder.startswith(sites):
                self._folders[folder] = _Folder.read(folder, None)
        paths = dict(_loaded_files())
        paths.update({path: os.path.exists(path) for path in self._metadata_files()})  # noqa: PTH110
        for path in (*_mapped_files(), *_interpreter_files()):
            paths.setdefault(path, path.startswith(sites) or _is_replaced(path))
        stamps = {path: read_stamp(path) for path in sorted(paths)}
        for path, stamp in stamps.items():
            is_newer = stamp.mtime_ns > self._since_ns and not self._is_generated(path)
            if paths[path] and (stamp is MISSING or is_newer):
                self._changed_early = self._changed_early or f"{path} was changed"
        self._files = _Files(stamps)

    def find_change(self) -> str | None:
        """The first change found, as a reason in words; None if everything is as it was recorded."""
        change = self._changed_early or self._find_changed_folder()
        if change is None and (path := self._files.find_changed()) is not None:
            return f"{path} was changed"
        return change

    def _metadata_files(self) -> Iterator[str]:
        """Files that an installer writes anew with each version."""
        for path, folder in self._folders.items():
            for name in folder.names if folder.top_level is not None else ():
                if name.endswith(_METADATA):
                    yield from (os.path.join(path, name, file) for file in _METADATA_FILES)  # noqa: PTH118
                elif name.endswith(_SITE_ENTRIES) or name.startswith(_EDITABLE):
                    yield os.path.join(path, name)  # noqa: PTH118

    def _is_generated(self, path: str) -> bool:
        """Whether the imports probably wrote the file themselves, as they do with a model's own code."""
        if path.startswith(self._first_path):
            return False
        added = tuple(folder + os.sep for folder in _path_folders())
        return path.startswith((*added, tempfile.gettempdir() + os.sep)) or f"{os.sep}.cache{os.sep}" in path

    def _find_changed_folder(self) -> str | None:
        for path, folder in self._folders.items():
            if (change := folder.find_change(path, self._since_ns)) is not None:
                return change
        return None


class _Files:
    """Paths and stamps in a few large objects: reading many small ones copies their pages in each fork."""

    def __init__(self, stamps: Mapping[str, FileStamp]) -> None:
        self._paths = b"\0".join(map(os.fsencode, stamps))
        self._columns = tuple(array("q", column) for column in zip(*stamps.values(), strict=True))

    def find_changed(self) -> str | None:
        """The first file that differs; this loop decides how long a check takes."""
        stat = os.stat
        for path, mtime_ns, size, inode in zip(self._paths.split(b"\0"), *self._columns, strict=True):
            try:
                now = stat(path)
            except (OSError, ValueError):
                if size != MISSING.size:
                    return os.fsdecode(path)
            else:
                if now.st_mtime_ns != mtime_ns or now.st_ino != inode or now.st_size != size:
                    return os.fsdecode(path)
        return None


class _Folder(NamedTuple):
    """What decides which modules a folder on the path or of a package offers."""

    stamp: FileStamp
    names: frozenset[str]
    """Modules and the entries that installers write."""
    top_level: frozenset[str] | None
    """Loaded modules that a new folder of the same name would hide; None for a package's folder."""

    @classmethod
    def read(cls, path: str, top_level: Iterable[str] | None) -> "_Folder":
        hidden = None if top_level is None else frozenset(top_level)
        return cls(read_stamp(path), frozenset(_significant_names(path, hidden)), hidden)

    def find_change(self, path: str, since_ns: int) -> str | None:
        """The first change as a reason in words; None if nothing was added or removed.

        A folder whose modification time is the same, and old, needs no listing.
        """
        if read_stamp(path) == self.stamp and self.stamp.mtime_ns < since_ns - _SETTLED_NS:
            return None
        names = frozenset(_significant_names(path, self.top_level))
        for verb, entries in (("added to", names - self.names), ("removed from", self.names - names)):
            if entries:
                return f"{min(entries)} was {verb} {path}"
        return None


def _significant_names(path: str, top_level: frozenset[str] | None) -> Iterator[str]:
    """Entries that change what can be imported; not `__pycache__`, which changes the folder's time."""
    try:
        entries = os.listdir(path)  # noqa: PTH208
    except OSError:
        return
    for name in entries:
        is_site_entry = name.endswith(_SITE_ENTRIES) or name.startswith(_EDITABLE)
        if top_level is None:
            if name.endswith(_MODULES):
                yield name
        elif is_site_entry or (top_level and (name.endswith(_MODULES) or name in top_level)):
            yield name


def _path_folders() -> list[str]:
    return [folder for folder in dict.fromkeys(sys.path) if os.path.isabs(folder)]  # noqa: PTH117


def _has_distributions(folder: str) -> bool:
    """Whether installers write to the folder; one with only `.egg-info` may hold sources in development."""
    try:
        return any(name.endswith(_METADATA[0]) for name in os.listdir(folder))  # noqa: PTH208
    except OSError:
        return False


def _package_folders() -> Iterator[str]:
    for module in list(sys.modules.values()):
        paths = _attribute(module, "__path__")
        try:
            yield from (path for path in paths or () if isinstance(path, str) and os.path.isabs(path))  # noqa: PTH117
        except Exception:  # noqa: BLE001 - an object of another library that only looks like a path
            continue


def _loaded_files() -> Iterator[tuple[str, bool]]:
    """Each module's file, and whether the import system has read it from there."""
    for module in list(sys.modules.values()):
        spec = _attribute(module, "__spec__")
        origin = getattr(spec, "origin", None) if getattr(spec, "has_location", False) else None
        for path in {_attribute(module, "__file__"), origin}:
            if isinstance(path, str) and os.path.isabs(path):  # noqa: PTH117
                yield _existing_part(path), path == origin and type(spec.loader).__name__ == "SourceFileLoader"


def _attribute(module: ModuleType | object, name: str) -> Any:
    """Without `__getattr__`: a lazy module would import something."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:
        return None


def _existing_part(path: str) -> str:
    """The archive, for a module inside of one."""
    part = path
    while not os.path.lexists(part) and len(parent := os.path.dirname(part)) > 1:  # noqa: PTH120
        part = parent
    return part if part != path and os.path.isfile(part) else path  # noqa: PTH113


def _mapped_files() -> Iterator[str]:
    """Files that are mapped as code: the interpreter, extension modules and all shared libraries."""
    with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
        lines = maps.readlines()
    for line in lines:
        words = line.rstrip(b"\n").split(None, 5)
        if len(words) == 6 and b"x" in words[1] and words[5].startswith(b"/"):
            yield os.fsdecode(words[5])


def _is_replaced(path: str) -> bool:
    """Whether a file that is mapped has another one in its place; the kernel marks the mapping."""
    return path.endswith(_DELETED) and os.path.exists(path.removesuffix(_DELETED))  # noqa: PTH110


def _interpreter_files() -> Iterator[str]:
    """A virtual environment's link to its interpreter, and the file that names its prefix."""
    if sys.executable:
        yield sys.executable
    yield os.path.join(sys.prefix, "pyvenv.cfg")  # noqa: PTH118
