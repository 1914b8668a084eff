"""The variables and files on which the imports of a template process depend.

A server that is forked from the template process has these imports, but the environment of the process that
the user started. A module keeps the values of variables that it has read on import, as do C libraries and the
interpreter. So a start is cold if such a variable has another value, or if a file has changed.
"""

import json
import os
import sys
import time
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, NamedTuple

from base.machine.file_stamps import MISSING, read_stamp
from envs.environment import changes, snapshot
from envs.registry import env
from startup.imports.distributions import distribution_files
from startup.imports.torch_environment import hides_gpus

_OF_C_LIBRARIES: Final = (
    "ACC_DEVICE_",
    "BLIS_",
    "DNNL_",
    "GCONV_PATH",
    "GFORTRAN_",
    "GLIBC_",
    "GOMP_",
    "GOTOBLAS_",
    "GOTO_",
    "GRPC_",
    "HEAP",
    "INTEL_",
    "I_MPI_",
    "KINETO_",
    "KMP_",
    "LD_",
    "LIBC_",
    "LLVM_",
    "LOCPATH",
    "LRU_CACHE_CAPACITY",
    "MALLOC_",
    "MKLDNN_",
    "MKL_",
    "MPI_",
    "NLSPATH",
    "NPY_",
    "NUMEXPR_",
    "NUMPY_",
    "OMPI_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "OPENCV_",
    "OPENSSL_",
    "PYTHON",
    "PYTORCH_",
    "RUST_LOG",
    "TCMALLOC",
    "THP_MEM_ALLOC_ENABLE",
    "TOKENIZERS_LOG",
    "TORCH_",
    "TQDM_",
    "TRITON_",
    "XGRAMMAR_",
)
"""Prefixes of variables that libraries or the interpreter read, or that code finds by listing variables."""

_READ_LATER: Final = frozenset(
    {
        "CI",
        "COLUMNS",
        "FORCE_COLOR",
        "LANG",
        "LANGUAGE",
        "LINES",
        "LNAME",
        "LOGNAME",
        "NO_COLOR",
        "PATH",
        "TZ",
        "USER",
        "USERNAME",
        "PYTHONSTARTUP",
        "PYTHON_BASIC_REPL",
        "TORCHINDUCTOR_CACHE_DIR",
        "VCLI_BAKED",
        "XDG_RUNTIME_DIR",
        "VCLI_ROUTER",
        "VCLI_STANDBY_FOLDER",
        "VLLM_CACHE_ROOT",
        "VLLM_LOGGING_COLOR",
        "VLLM_LOGGING_LEVEL",
        "VLLM_LOGGING_STREAM",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "PROMETHEUS_MULTIPROC_DIR",
        "TRANSFORMERS_OFFLINE",
    }
)
"""Variables that are read on import, but may differ.

They are read again at each use, or set again (`startup.processes.state`), or have an effect
only in an interactive interpreter.
"""
_DELETED: Final = " (deleted)"


class ImportEnvironment(NamedTuple):
    """The environment of a template's imports. The template creates it after them, and each fork uses it."""

    given: Mapping[str, str]
    """The variables that the user gave to the standby."""
    read: frozenset[str]
    """Variables that Python code read on import, even if they were not set."""
    written: Mapping[str, str | None]
    """The variables that the imports have set, with their values, or None for a removed variable."""

    def why_cold(self, environment: Mapping[str, str]) -> str | None:
        """Returns why a start must be cold, or None. The reason names a variable, but never its value."""
        for name in changes(self.given, environment):
            if name in self.written:
                return f"{name} differs, which the standby's imports have set"
            if name in _READ_LATER or name.startswith("LC_"):
                continue
            if name == "CUDA_VISIBLE_DEVICES":  # read later; but on import, vLLM disables Triton if no GPU is visible
                if hides_gpus(self.given) != hides_gpus(environment):
                    return f"{name} differs: it hides all GPUs, or did so at the standby's start"
            elif name.startswith(_OF_C_LIBRARIES):
                return f"{name} differs, which libraries read when they are loaded"
            elif name in self.read:
                return f"{name} differs, which was read on import"
        return None

    def applied_to(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Returns a start's environment with the changes that the imports make to it."""
        result = {**environment, **self.written}
        return {name: value for name, value in result.items() if value is not None}


@contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """Collects the names of variables that Python code reads in this block, on all threads."""
    names: set[str] = set()
    recording = _recording_class(names)
    os.environ.__class__ = os.environb.__class__ = recording
    try:
        yield names
    finally:
        os.environ.__class__ = os.environb.__class__ = os._Environ


def written_since(before: Mapping[str, str]) -> dict[str, str | None]:
    """Returns the variables that have changed since `before`, with their values (None if removed)."""
    now = snapshot()
    return {name: now.get(name) for name in changes(before, now)}


def execute_with(wanted: Mapping[str, str]) -> dict[str, str]:
    """Executes this program again with the variables `wanted`, unless this process has them already.

    Libraries read these variables when they are loaded, so this process cannot set them later. Returns the
    user's environment without these variables. Starts are compared with it.
    """
    marker = env.VCLI_GIVEN_VARIABLES.name
    if (before := env.VCLI_GIVEN_VARIABLES.raw) is not None:
        os.environ.pop(marker)
        given = {**snapshot(), **json.loads(before)}
        return {name: value for name, value in given.items() if value is not None}
    environment = snapshot()
    present = {name: environment.get(name) for name in wanted}
    changed = {name: value for name, value in present.items() if value != wanted[name]}
    if changed:
        with_wanted = {**environment, **wanted, marker: json.dumps(changed)}
        os.execve(sys.executable, sys.orig_argv, with_wanted)
    return environment


def _recording_class(names: set[str]) -> type:
    """Returns a class for the existing `os.environ`, so that reads by any reference to it are recorded.

    `dict(os.environ)` and `os.environ.copy()` list the names and then read each variable. These reads are not
    recorded. They pass the same object that the listing returned. A read by name passes another object.
    """
    listed: dict[int, Any] = {}

    class RecordingEnvironment(os._Environ):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            if listed.get(id(key)) is not key:
                names.add(os.fsdecode(key))
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[Any]:
            for key in super().__iter__():
                listed[id(key)] = key
                yield key

    return RecordingEnvironment


class InstalledFiles:
    """The files of all loaded modules and libraries, and of the installed distributions.

    The template creates this object before its imports, and calls `record_loaded` after them. Each fork then
    looks for changes. A new file that no installer has written is no change, even if the file would hide a
    loaded module.
    """

    def __init__(self) -> None:
        self._since_ns = time.time_ns()
        self._path = [folder for folder in sys.path if os.path.isabs(folder)]  # noqa: PTH117
        self._distributions = frozenset(distribution_files(self._path))
        self._changed_early: str | None = None
        self._paths = b""
        self._columns: tuple[array[int], ...] = ()
        """The stamps of the paths. Reads of many small objects would copy their pages in a fork."""

    def record_loaded(self) -> None:
        """Called once, after the imports. `find_change` also finds files that changed during the imports."""
        mapped = set(_mapped_files())
        paths = {*self._distributions, *_loaded_files(), *mapped, *_interpreter_files()}
        stamps = {path: read_stamp(path) for path in sorted(paths)}
        on_path = tuple(folder + os.sep for folder in self._path)  # elsewhere, imports write modules themselves
        for path, stamp in stamps.items():
            is_newer = stamp.mtime_ns > self._since_ns and path.startswith(on_path)
            if is_newer or (path in mapped and _is_replaced(path)):
                self._changed_early = path
        self._paths = b"\0".join(map(os.fsencode, stamps))
        columns = zip(*stamps.values(), strict=True)
        self._columns = tuple(array("q", column) for column in columns)

    def find_change(self) -> str | None:
        """Returns a reason that names a file that has changed. None if no file has changed."""
        installed = self._distributions.symmetric_difference(distribution_files(self._path))
        path = self._changed_early or min(installed, default=None) or self._find_changed()
        return None if path is None else f"{path} was changed"

    def _find_changed(self) -> str | None:
        """The first file that differs, or None. This loop takes most of the time of a check."""
        stat = os.stat
        paths = self._paths.split(b"\0")
        for path, mtime_ns, size, inode in zip(paths, *self._columns, strict=True):
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
    """Gets an attribute without `__getattr__`, because this call would import a lazy module."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except AttributeError:
        return None


def _mapped_files() -> Iterator[str]:
    """Yields files that are mapped as code: the interpreter, extension modules and all shared libraries."""
    with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
        lines = maps.readlines()
    for line in lines:
        words = line.rstrip(b"\n").split(None, 5)
        if len(words) == 6 and b"x" in words[1] and words[5].startswith(b"/"):
            yield os.fsdecode(words[5])


def _is_replaced(path: str) -> bool:
    """Whether another file has replaced a mapped file. The kernel marks such a mapping as deleted."""
    return path.endswith(_DELETED) and os.path.exists(path.removesuffix(_DELETED))  # noqa: PTH110


def _interpreter_files() -> Iterator[str]:
    """Yields a virtual environment's link to the interpreter, and its file `pyvenv.cfg`."""
    if sys.executable:
        yield sys.executable
    yield os.path.join(sys.prefix, "pyvenv.cfg")  # noqa: PTH118
