"""Bytecode that Python may not write beside the modules: kept in the cache folder, or in the baked folder.

Python itself writes bytecode that is valid for one time and size of its source. Two images can have both in
common, with other sources. So this bytecode is valid for one content: Python compares a hash of the source.
"""

import functools
import importlib.util
import marshal
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path
from types import CodeType
from typing import Any, Final

from base.machine.file_stamps import read_file, read_stamp
from base.machine.files import why_changeable
from startup.storage.caches import DONT_WRITE, PREFIX, cache_folder

BY_TIME: Final = bytes(4)
"""Marks bytecode that is valid for one time and size of its source."""
UNCHECKED: Final = b"\1\0\0\0"
"""Marks bytecode that Python uses for any content of its source."""
_BY_CONTENT: Final = b"\3\0\0\0"
HEAD_BYTES: Final = 16

_KEPT: Final = "checked-bytecode"
"""The folder of kept bytecode. Until release 0.5.0, the folder `bytecode` had bytecode by time."""
_BOOTSTRAP: Final[Any] = importlib._bootstrap_external
_WRITER: Final = "_code_to_timestamp_pyc"
"""The function of importlib that makes the content of a new file with bytecode. 3.11 to 3.14 have it."""
_PROBES: Final = ("__init__.py", "envs.py", "entrypoints/cli/serve.py")
"""Modules of vLLM whose bytecode is looked for. The first one exists in every package."""


def keep_bytecode(package: Path) -> str | None:
    """Sets the bytecode cache of this process and of later processes, if `package` needs one.

    Returns:
        A warning for the user. None if all bytecode exists, if bytecode can be written beside the package's
        modules, or if a bytecode cache is set already.
    """
    if sys.pycache_prefix is not None or all(path.exists() for path in _compiled(package)):
        return None
    if os.access(package, os.W_OK) and not sys.dont_write_bytecode:
        return None
    text = f"{package} has no compiled modules and "
    text += f"{DONT_WRITE} is set" if sys.dont_write_bytecode else "cannot be written to"
    if (reason := _why_unusable(folder := _kept_folder())) is not None:
        return f"{text}, so every start compiles them: {reason}"
    _keep_in(folder)
    return f"{text}: they are kept in {folder}"


def use_kept_bytecode(package: Path) -> None:
    """Uses the bytecode that `keep_bytecode` has kept, if `package` needs it. Call it before most imports."""
    folder = _kept_folder()
    is_wanted = sys.dont_write_bytecode and sys.pycache_prefix is None and folder.is_dir()
    if is_wanted and not all(path.exists() for path in _compiled(package)) and _why_unusable(folder) is None:
        _keep_in(folder)


def resume_keeping_bytecode() -> None:
    """Makes this program keep bytecode if the program that has started it does.

    Programs that do not call this function, such as those of vLLM, only read kept bytecode.
    """
    folder = _kept_folder()
    if sys.pycache_prefix == str(folder) and _why_unusable(folder) is None:
        _keep_in(folder)


def check_by_content(folder: Path) -> None:
    """Makes bytecode in a folder that was PYTHONPYCACHEPREFIX valid for the present content of its sources.

    Removes bytecode that is not valid now.
    """
    for path in folder.rglob("*.pyc"):
        source = Path("/", path.relative_to(folder).with_name(f"{path.name.partition('.')[0]}.py"))
        data = path.read_bytes()
        head = MAGIC_NUMBER + BY_TIME + stamp_bytes(read_stamp(source).stored)
        if data[:HEAD_BYTES] == head:
            path.write_bytes(_head_by_content(read_file(str(source))) + data[HEAD_BYTES:])
        else:
            path.unlink()


def stamp_bytes(stamp: tuple[int, int]) -> bytes:
    """Time and size of a source, as bytecode by time has them."""
    return b"".join((value & 0xFFFF_FFFF).to_bytes(4, "little") for value in stamp)


def _kept_folder() -> Path:
    return cache_folder() / _KEPT


def _keep_in(folder: Path) -> None:
    sys.pycache_prefix = os.environ[PREFIX] = str(folder)
    os.environ[DONT_WRITE] = "1"
    sys.dont_write_bytecode = False  # nothing is written beside the modules
    by_time = getattr(_BOOTSTRAP, _WRITER)
    if not isinstance(by_time, functools.partial):
        setattr(_BOOTSTRAP, _WRITER, functools.partial(_bytecode_by_content, by_time))


def _bytecode_by_content(
    by_time: Callable[..., bytearray], code: CodeType, mtime: int = 0, source_size: int = 0
) -> bytearray:
    """What Python writes for a module. The code was compiled from a source of this time and size."""
    path = code.co_filename
    try:
        source = read_file(path)
    except OSError:
        source = b""
    is_same = (int(mtime), source_size) == read_stamp(path).stored and len(source) == source_size
    if not is_same:  # the source has just changed: for this bytecode, no source is valid
        return bytearray(MAGIC_NUMBER + _BY_CONTENT + bytes(8) + marshal.dumps(code))
    return bytearray(_head_by_content(source) + by_time(code)[HEAD_BYTES:])


def _head_by_content(source: bytes) -> bytes:
    return MAGIC_NUMBER + _BY_CONTENT + importlib.util.source_hash(source)


def _why_unusable(folder: Path) -> str | None:
    """Why the folder cannot be used. Python executes the folder's files, so no other user may change them."""
    if not hasattr(_BOOTSTRAP, _WRITER):
        return f"Python {platform.python_version()} writes bytecode in another way"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = f"{folder} is a link" if folder.is_symlink() else why_changeable(folder.lstat(), folder)
    except OSError as err:
        return f"{folder}: {err.strerror}"
    return reason and f"{reason}: remove it"


def _compiled(package: Path) -> Iterator[Path]:
    for name in _PROBES:
        path = package / name
        if path.exists():
            yield Path(cache_from_source(str(path)))
