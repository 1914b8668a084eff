"""The import file holds the bytecode of many modules. Starts write it when they are ready, for later starts.

Each virtual environment has one file for all processes of both engines. In an image, `vllm-cli bake` may have
written another import file, which is searched after the user's file.
"""

import builtins
import dataclasses
import fcntl
import functools
import json
import logging
import marshal
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from types import CodeType, MappingProxyType
from typing import Any, BinaryIO, Final

from base.machine.file_stamps import StoredStamp, checksum, read_file, read_stamp, written_times
from base.machine.files import MODE
from startup.hook import uses
from startup.imports import import_file
from startup.imports.distributions import distribution_stamps, installed_folders
from startup.imports.import_file import Index, ModuleEntry, Part, install, open_file, uninstall
from startup.processes.helper import Helper, HelperEndedError, Send
from startup.storage.bytecode import BY_TIME, UNCHECKED, resume_keeping_bytecode, stamp_bytes
from startup.storage.caches import digest, layers

logger = logging.getLogger(__name__)

_SETTLED_NS: Final = 2_000_000_000
"""The least age of a source file. A younger one may have changed since its bytecode was made."""
_FEW_METHODS: Final = 50
"""If a start misses no module, and at most this many methods, it does not write the file."""

_PATH: Final = [*sys.path]
"""The path before imports, such as setuptools, add folders to it."""

_is_open = False
"""Whether this process has import files in use."""


def import_file_paths() -> tuple[Path, ...]:
    """The paths of the import files: the user's, then the baked one if there is one."""
    return layers(f"imports/{digest(sys.prefix)}.code")


def installation() -> object:
    """Interpreter and installed packages. An import file fits only where they are the same."""
    return import_file.this_interpreter(), distribution_stamps()


@contextmanager
def learned_imports() -> Iterator[None]:
    """During the block, imports use the import files. Modules that the files lack are recorded for `learn`.

    Do not fork during the block, because forks would inherit the open files.
    """
    global _is_open
    if _is_open or not uses("import file"):
        yield
        return
    resume_keeping_bytecode()
    distribution_stamps()  # before imports change the path
    files = [file for file in map(install, import_file_paths()) if file is not None]
    known = {text: code for file in files for text, code in file.load_methods().items()}
    missed: dict[str, None] = {}
    _is_open = True
    try:
        with _code_used(known, missed):
            yield
    finally:
        _is_open = False
        _note([*uninstall(), *missed])


def learn(more: Iterable[str] = ()) -> None:
    """Adds modules and methods to the user's import file.

    These are the modules in `more`, and all that this start's processes have recorded as missing. Takes up to
    half a second. Failures are logged for debugging only.
    """
    if not uses("import file"):
        return
    path = import_file_paths()[0]
    modules, texts = _take_noted()
    with ExitStack() as stack:
        files = [file and stack.enter_context(closing(file)) for file in map(open_file, import_file_paths())]
        known = {name for file in files if file for name in (*file.index.modules, *file.index.refused)}
        modules += (name for name in more if name not in known)
        if not modules and len(texts) <= _FEW_METHODS:
            return
        own = files[0]
        kept = (*own.index.modules, *own.index.refused) if own else ()
        methods = own.load_methods() if own else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, (*kept, *modules), _compile_texts(texts, methods))
    except OSError as err:
        logger.debug("the import file was not written: %s", err)


def learn_beside(more: Iterable[str]) -> None:
    """Does what `learn` does in a process of low priority, so that no request waits for it."""
    own = {"path": _PATH, "prefix": sys.prefix, "dont_write_bytecode": sys.dont_write_bytecode}
    job = (own, [*more])
    with suppress(OSError, HelperEndedError), closing(Helper("imports", f"{__name__}:learn_as", job)) as helper:
        helper.receive()


def learn_as(job: tuple[Mapping[str, Any], Iterable[str]], _: Send) -> None:
    """The helper's job: learns as the launcher would, with these attributes of its module `sys`."""
    os.nice(10)
    vars(sys).update(job[0])
    resume_keeping_bytecode()
    learn(job[1])


def _note(missed: Sequence[str]) -> None:
    """Appends names of modules or source code of methods to the record, each as one line of JSON."""
    if missed:
        notes = _notes(import_file_paths()[0])
        with suppress(OSError):
            notes.parent.mkdir(parents=True, exist_ok=True)
            with notes.open("ab", buffering=0) as file:  # in one piece, because other processes write here, too
                file.write("".join(f"{json.dumps(each)}\n" for each in missed).encode())


def _take_noted() -> tuple[list[str], list[str]]:
    notes = _notes(import_file_paths()[0])
    noted: list[str] = []
    with suppress(OSError):
        lines = notes.read_text().splitlines()
        notes.unlink()
        for line in dict.fromkeys(lines):
            with suppress(ValueError):  # written by another release
                noted.append(str(json.loads(line)))
    return [each for each in noted if "\n" not in each], [each for each in noted if "\n" in each]


def _notes(path: Path) -> Path:
    """The file in which the processes of a start record modules and methods that the import files lack."""
    return path.with_suffix(".missed")


@contextmanager
def _code_used(known: Mapping[str, CodeType], missed: dict[str, None]) -> Iterator[None]:
    """During the block, methods of dataclasses with a known text are not compiled. Others go to `missed`.

    Compiling takes a tenth of the import time.
    """

    def execute(text: Any, *namespaces: Any) -> None:
        code = known.get(text) if isinstance(text, str) else text
        if code is None:
            missed[text] = None
            code = _compile_text(text)
        builtins.exec(code, *namespaces)

    vars(dataclasses)["exec"] = execute
    try:
        yield
    finally:
        del vars(dataclasses)["exec"]


def _compile_text(text: str) -> CodeType:
    """Compiles a text as in a module without `__future__` imports. Raises SyntaxError or ValueError."""
    return compile(text, "<string>", "exec", dont_inherit=True)


def _compile_texts(texts: Iterable[str], known: Mapping[str, CodeType]) -> dict[str, CodeType]:
    """Returns the known code, plus the compiled code of the other texts. Skips texts that are not Python."""
    codes = dict(known)
    for text in texts:
        if text not in codes:
            with suppress(SyntaxError, ValueError):
                codes[text] = _compile_text(text)
    return codes


def write(
    path: str | os.PathLike[str], names: Iterable[str], methods: Mapping[str, CodeType] = MappingProxyType({})
) -> None:
    """Writes the modules' bytecode, in this order. Replaces the file as a whole or not at all.

    Writes only modules whose source Python's own path finder finds in a distribution or in the standard
    library, because other sources may change unnoticed. Imports no module.

    Does nothing while another process writes the file. If the file cannot be written, raises OSError and
    leaves an old file unchanged.
    """
    path = os.fspath(path)
    beside = f"{path}.new"
    fd = _lock(beside)
    if fd is None:
        return
    try:
        with open(fd, "wb") as file:  # noqa: PTH123
            os.fchmod(fd, MODE)  # whatever the umask: others may read a file in an image, but not write it
            file.truncate()
            _write(file, names, methods)
            file.flush()
            os.fsync(fd)
            os.replace(beside, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
        raise


def _lock(path: str) -> int | None:
    """Opens the file for writing, even if a killed process left it. None while another process writes it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):  # noqa: PTH116 - else another process has just finished
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _write(file: BinaryIO, names: Iterable[str], methods: Mapping[str, CodeType]) -> None:
    find_spec = _spec_finder()
    installed = installed_folders()
    entries: dict[str, ModuleEntry] = {}
    refused: list[str] = []
    file.seek(import_file.HEAD_BYTES)
    for name in dict.fromkeys(names):
        spec = find_spec(name)
        if spec is None or type(spec.loader) is not SourceFileLoader or not str(spec.origin).startswith(installed):
            refused.append(name)
            continue
        origin = str(spec.origin)
        stamp = read_stamp(origin)
        if time.time_ns() - stamp.mtime_ns < _SETTLED_NS:
            continue
        with suppress(OSError):
            source = read_file(origin)
            if (code := _bytecode(name, origin, stamp.stored, source)) is not None:
                is_package = spec.submodule_search_locations is not None
                entries[name] = ModuleEntry(is_package, origin, stamp.stored, checksum(source), _append(file, code))
        if name not in entries:
            refused.append(name)
    place = _append(file, marshal.dumps(dict(methods)))
    interpreter = import_file.this_interpreter()
    content = Index(interpreter, distribution_stamps(), _without_needless_checks(entries), tuple(refused), place)
    index = marshal.dumps(tuple[Any, ...](content))
    offset = file.tell()
    file.write(index)
    file.seek(0)
    file.write(import_file.pack_head(offset, index))


def _without_needless_checks(entries: Mapping[str, ModuleEntry]) -> dict[str, tuple[object, ...]]:
    """The entries' fields. Removes the checksum of a source whose time and size are proof of its content.

    A start would read 3,600 sources to compare checksums, for 25 ms, or seconds from a slow disk.
    """
    written = written_times(entry.stamp[0] for entry in entries.values())
    return {
        name: tuple(entry._replace(source=b"") if entry.stamp[0] in written else entry)
        for name, entry in entries.items()
    }


def _append(file: BinaryIO, data: bytes) -> Part:
    place = (file.tell(), len(data), checksum(data))
    file.write(data)
    return place


def _spec_finder() -> Callable[[str], ModuleSpec | None]:
    """Returns a function that finds modules like Python's path finder, without importing their packages."""

    @functools.cache
    def find(name: str) -> ModuleSpec | None:
        parent, _, _ = name.rpartition(".")
        if not parent:
            return PathFinder.find_spec(name)
        package = find(parent)
        if package is None or package.submodule_search_locations is None:
            return None
        try:
            return PathFinder.find_spec(name, package.submodule_search_locations)
        except KeyError:  # a namespace package within a package that this process has not imported
            return None

    return find


def _bytecode(name: str, origin: str, stamp: StoredStamp, source: bytes) -> bytes | None:
    """The module's marshalled code. None if the module cannot or must not be compiled here.

    With PYTHONDONTWRITEBYTECODE, existing bytecode of an installer is used, but no module is compiled.
    Otherwise each start would compile thousands of modules, which would delay requests by seconds.
    """
    with suppress(OSError), open(cache_from_source(origin), "rb") as file:  # noqa: PTH123
        magic, flags, source_id, code = (file.read(num_bytes) for num_bytes in (4, 4, 8, -1))
        is_by_time = flags == BY_TIME
        if magic == MAGIC_NUMBER and source_id == (stamp_bytes(stamp) if is_by_time else source_hash(source)):
            return code
        if magic == MAGIC_NUMBER and flags == UNCHECKED:  # Python uses it although the source has changed
            return None
    if sys.dont_write_bytecode:
        return None
    with suppress(Exception):  # a faulty source; importing it reports the error
        return marshal.dumps(SourceFileLoader(name, origin).get_code(name))
    return None
