"""Imports many modules from one import file, without a search of folders for each module.

    head    of fixed length: format, position and checksum of the index, size of the file
    code    the modules' marshalled code in order of import, then the code of the dataclasses' methods
    index   marshalled: interpreter, distributions, each module's stamp and position

An import file is used until the installed distributions change. A module comes from the file if its source
has the same time and size as in the index; if a tool may have set this time, the same content. Also, no
folder that is searched earlier may offer a module of this name. Python's own finders find all other modules.
All modules get Python's own loader.

A start reads the import file before its other imports. So this module itself imports little, and only from
the standard library and this project.
"""

import _imp
import logging
import marshal
import os
import stat
import struct
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import MAGIC_NUMBER
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple, TypeAlias

from base.machine.file_stamps import StoredStamp, checksum, read_file, read_stamp
from base.machine.files import why_changeable
from startup.imports.distributions import distribution_stamps
from startup.imports.finder import serve, stop_serving

logger = logging.getLogger(__name__)

_MARK: Final = b"vllm-cli import file"
_FORMAT: Final = 4
_HEAD: Final = struct.Struct("<20sIQQQ8s")
HEAD_BYTES: Final = _HEAD.size
_SOURCE_ENDING: Final = ".py"


Part: TypeAlias = tuple[int, int, bytes]
"""A part of the file: offset, length and checksum."""


class ModuleEntry(NamedTuple):
    """A module in the import file."""

    is_package: bool
    origin: str
    stamp: StoredStamp
    source: bytes
    """The checksum of the source. Empty if its time and size are proof of its content."""
    code: Part

    @property
    def is_outdated(self) -> bool:
        """Whether the source has changed since the code was compiled."""
        if not self.source:
            return read_stamp(self.origin).stored != self.stamp
        try:
            return checksum(read_file(self.origin)) != self.source
        except OSError:
            return True


class Index(NamedTuple):
    """The contents of the file, and the facts that decide whether they are valid."""

    interpreter: tuple[object, ...]
    distributions: tuple[tuple[str, bytes], ...]
    """The result of `distribution_stamps` when the file was written."""
    modules: dict[str, tuple[object, ...]]
    """The fields of a `ModuleEntry` by the module's name, in order of import."""
    refused: tuple[str, ...]
    """Modules that cannot be in the file.

    Python's path finder does not find their source, or no installer has written it, or it cannot be compiled.
    """
    methods: Part
    """The compiled methods of dataclasses, by their source text."""


class UnusableFileError(Exception):
    """The file cannot be used. The message names the reason."""


class ImportFile:
    """An open import file. Its modules can be imported until it is closed."""

    def __init__(self, path: str) -> None:
        """Opens the file. Raises OSError or UnusableFileError if it cannot be used."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.index = _read_index(self._fd)
        except BaseException:
            self.close()
            raise
        self._modules = self.index.modules
        self._names: dict[str, frozenset[str] | None] = {}
        self._num_path_hooks = len(sys.path_hooks)
        self.served: set[str] = set()
        """The modules whose code came from the file."""
        self.outdated: set[str] = set()
        """The modules whose source has changed, or whose part of the file is damaged."""

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def find_spec(self, fullname: str, path: Sequence[str] | None = None) -> ModuleSpec | None:
        """The module's spec. None if the file lacks the module or if Python's finder must find it."""
        fields = self._modules.get(fullname)
        if fields is None or len(sys.path_hooks) != self._num_path_hooks:
            return None
        entry = ModuleEntry(*fields)  # type: ignore[arg-type]
        folder, _, file = entry.origin.rpartition("/")
        searched = folder.rpartition("/")[0] if entry.is_package else folder
        if not self._is_searched_first(fullname, searched, path):
            return None
        if entry.is_outdated:
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

    def load_methods(self) -> dict[str, CodeType]:
        """The compiled methods of dataclasses by their source text. Empty if this part is damaged."""
        try:
            return dict(_read_part(self._fd, self.index.methods))
        except (OSError, ValueError, EOFError, TypeError) as err:
            logger.debug("no methods of dataclasses are taken from %s: %s", self.path, err)
            return {}

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _load(self, name: str, loader: SourceFileLoader, entry: ModuleEntry) -> CodeType | None:
        """Returns the module's code from the file, and restores the original `get_code` of its loader."""
        vars(loader).pop("get_code", None)
        try:
            code: CodeType = _read_part(self._fd, entry.code)
        except (OSError, ValueError, EOFError, TypeError) as err:  # closed meanwhile, or damaged
            logger.debug("%s is not imported from %s: %s", name, self.path, err)
            self.outdated.add(name)
            return loader.get_code(name)
        _imp._fix_co_filename(code, entry.origin)  # type: ignore[attr-defined]
        self.served.add(name)
        return code

    def _is_searched_first(self, name: str, folder: str, path: Sequence[str] | None) -> bool:
        """Whether this folder comes before all folders that offer another module of this name."""
        if path is not None:
            return type(path) is list and path[:1] == [folder]
        for earlier in sys.path:
            if earlier == folder:
                return True
            if (offered := self._names_in(earlier)) is None or name in offered:
                return False
        return False

    def _names_in(self, folder: str) -> frozenset[str] | None:
        """The names that a folder may offer. None for an archive or an unreadable folder."""
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


def install(path: str | os.PathLike[str]) -> ImportFile | None:
    """Starts the use of this import file. Returns None if the file cannot be used."""
    file = open_file(path)
    if file is not None:
        serve(file)
    return file


def open_file(path: str | os.PathLike[str]) -> ImportFile | None:
    """Opens the file, which the caller must close. Returns None if the file cannot be used."""
    try:
        return ImportFile(os.fspath(path))
    except FileNotFoundError:
        return None
    except (OSError, UnusableFileError, ValueError, EOFError, TypeError) as err:
        logger.debug("the import file %s is not used: %s", path, err)
        return None


def uninstall() -> list[str]:
    """Ends the use of all import files. Closes them, because forks would inherit their descriptors.

    Returns:
        The modules that this process has imported, but that the files lack or have in an old version.
    """
    files: list[ImportFile] = stop_serving()
    for file in files:
        file.close()
    known: set[str] = set()
    known.update(*(file.index.modules for file in files), *(file.index.refused for file in files))
    known.difference_update(*(file.outdated for file in files))
    others = [(name, module) for name, module in list(sys.modules.items()) if name not in known]
    return [name for name, module in others if _is_from_source(name, module)]


def _read_part(fd: int, part: Part) -> Any:
    """Returns the unmarshalled part. Raises OSError, ValueError, EOFError or TypeError if it is damaged."""
    offset, length, expected = part
    data = os.pread(fd, length, offset)
    if checksum(data) != expected:
        raise ValueError("its part of the file is damaged")
    return marshal.loads(data)


def this_interpreter() -> tuple[object, ...]:
    """The properties of the interpreter that decide whether bytecode and paths fit."""
    return (MAGIC_NUMBER, sys.version, sys.flags.optimize, sys.prefix, sys.base_prefix)


def pack_head(index_offset: int, index: bytes) -> bytes:
    """The first bytes of the file. `index_offset` is the position of the index, the last part of the file."""
    size = index_offset + len(index)
    return _HEAD.pack(_MARK, _FORMAT, index_offset, len(index), size, checksum(index))


def _read_index(fd: int) -> Index:
    """Reads the index. Raises UnusableFileError if it is untrusted, incomplete or of another installation."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError("it is not a regular file")
    if (reason := why_changeable(status)) is not None:
        raise UnusableFileError(reason)
    head = os.pread(fd, HEAD_BYTES, 0)
    if len(head) != HEAD_BYTES:
        raise UnusableFileError("it is incomplete")
    mark, file_format, offset, length, size, expected = _HEAD.unpack(head)
    if (mark, file_format) != (_MARK, _FORMAT):
        raise UnusableFileError("it has another format")
    data = os.pread(fd, length, offset) if size == status.st_size else b""
    if checksum(data) != expected:
        raise UnusableFileError("it is incomplete or damaged")
    index = Index(*marshal.loads(data))
    if index.interpreter != this_interpreter():
        raise UnusableFileError("it was written by another interpreter, or with other flags of it")
    if index.distributions != distribution_stamps():
        raise UnusableFileError("distributions were installed, changed or removed since it was written")
    hooks = [getattr(hook, "__name__", "") for hook in sys.path_hooks]
    if hooks != ["zipimporter", "path_hook_for_FileFinder"]:
        raise UnusableFileError(f"the program has import hooks of its own: {', '.join(hooks)}")
    return index


def _is_from_source(name: str, module: ModuleType) -> bool:
    """Whether Python's own loader has imported the module under this name."""
    try:
        spec: ModuleSpec | None = object.__getattribute__(module, "__dict__").get("__spec__")  # loads no late module
    except AttributeError:
        return False
    return spec is not None and getattr(spec, "name", None) == name and type(spec.loader) is SourceFileLoader
