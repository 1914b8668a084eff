"""Checks whether everything that a template has imported is still installed as it was.

A template keeps modules for days. An upgrade, an edit of a source file or another interpreter makes them
stale: a program started now would run other code. Standard library only.
"""

import os
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from base.machine.file_stamps import MISSING, FileStamp, read_stamp
from startup.imports.distributions import distribution_files

_DELETED: Final = " (deleted)"


class InstalledFiles:
    """The files of all loaded modules and libraries, and of the installed distributions.

    Created in the template before its imports, completed after them. Each fork then checks for changes. A new
    file that no installer has written is no change, even if it would hide a loaded module.
    """

    def __init__(self) -> None:
        self._since_ns = time.time_ns()
        self._path = [folder for folder in sys.path if os.path.isabs(folder)]  # noqa: PTH117
        self._distributions = frozenset(distribution_files(self._path))
        self._changed_early: str | None = None
        self._files = _Files({})

    def record_loaded(self) -> None:
        """Called once after the imports; what changed during them counts as changed."""
        mapped = set(_mapped_files())
        paths = {*self._distributions, *_loaded_files(), *mapped, *_interpreter_files()}
        stamps = {path: read_stamp(path) for path in sorted(paths)}
        on_path = tuple(folder + os.sep for folder in self._path)  # elsewhere imports write modules themselves
        for path, stamp in stamps.items():
            is_newer = stamp.mtime_ns > self._since_ns and path.startswith(on_path)
            if is_newer or (path in mapped and _is_replaced(path)):
                self._changed_early = path
        self._files = _Files(stamps)

    def find_change(self) -> str | None:
        """A file that has changed, as a reason in words; None if everything is as it was recorded."""
        installed = self._distributions.symmetric_difference(distribution_files(self._path))
        path = self._changed_early or min(installed, default=None) or self._files.find_changed()
        return None if path is None else f"{path} was changed"


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


def _loaded_files() -> Iterator[str]:
    for module in list(sys.modules.values()):
        for path in (_attribute(module, "__file__"), getattr(_attribute(module, "__spec__"), "origin", None)):
            if isinstance(path, str) and os.path.isabs(path):  # noqa: PTH117
                yield path


def _attribute(module: ModuleType | object, name: str) -> Any:
    """Without `__getattr__`: a lazy module would import something."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:
        return None


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
