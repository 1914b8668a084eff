"""Sets page cache and compile cache to a state for one start, then restores the compile cache."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from server.machine.page_cache import ResidencyProbe
from vllm_cli.bench.startup.config import COLD_COMPILE, COLD_PAGES, StartState, StartupBenchConfig
from vllm_cli.errors import InputError

_ASIDE_SUFFIX = ".aside-by-bench"


class Residency(NamedTuple):
    """How much of some files is in memory."""

    total_bytes: int
    resident_bytes: int

    @property
    def share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0


class StartupCaches:
    """The page cache and the compile cache of one benchmark."""

    def __init__(self, config: StartupBenchConfig) -> None:
        self._compile_cache = config.compile_cache
        self._evicted = list_files([*config.evict_paths, *(_list_libraries(config) if config.evict_libraries else [])])
        if "fresh-root-cold" in config.states:
            self._evicted = list_files([*self._evicted, *_list_environments(config)])
        if config.needs_cold_compile and self._compile_cache:
            _restore(self._compile_cache)

    @contextmanager
    def in_state(self, state: StartState) -> Iterator[Residency | None]:
        """Sets the state for the block; yields what stayed in memory after an eviction; None without one.

        Raises:
            InputError: something cannot be evicted or moved.
        """
        aside = self._compile_cache if state in COLD_COMPILE else None
        with _moved_aside(aside) if aside else nullcontext():
            yield self._evict() if state in COLD_PAGES else None

    def _evict(self) -> Residency:
        try:
            return evict_files(self._evicted)
        except OSError as err:
            raise InputError(
                f"The page cache cannot be emptied of {err.filename or 'the files'}: {err.strerror}"
            ) from err


def find_libraries(command: str) -> list[Path]:
    """The shared libraries of the Python environment of a command's program; none outside of one."""
    return [path for folder in _find_packages(command) for path in sorted(folder.glob("**/*.so*"))]


def _find_packages(command: str) -> list[Path]:
    """The folders of installed packages of the Python environment of a command's program."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Za-z_]\w*=", word)]
    program = shutil.which(words[0]) if words else None
    if program is None:
        return []
    return sorted(Path(program).absolute().parent.parent.glob("lib/python3*/site-packages"))


def _list_environments(config: StartupBenchConfig) -> list[Path]:
    """The packages of the commands' Python environments, and the libraries of their Python."""
    packages = [folder for spec in config.targets for folder in _find_packages(spec.command or "")]
    pythons = {(folder.parents[2] / "bin" / "python").resolve() for folder in packages}
    return [*packages, *(lib for python in sorted(pythons) for lib in python.parents[1].glob("lib/python3.*"))]


def find_models(command: str) -> list[Path]:
    """The model folders among a command's words."""
    return [Path(word) for word in shlex.split(command) if (Path(word) / "config.json").is_file()]


def _list_libraries(config: StartupBenchConfig) -> list[Path]:
    commands = [spec.command or "" for spec in config.targets]
    if config.floor_model:
        commands.append(shlex.quote(sys.executable))
    return [file for command in commands for file in find_libraries(command)]


@contextmanager
def _moved_aside(folder: Path) -> Iterator[None]:
    aside = _aside(folder)
    try:
        if folder.exists():
            os.rename(folder, aside)  # noqa: PTH104 - documented as atomic
    except OSError as err:
        raise InputError(f"--compile-cache: {folder} cannot be moved to {aside}: {err.strerror}") from err
    try:
        yield
    finally:
        _restore(folder)


def _restore(folder: Path) -> None:
    """Moves the folder back, also after a killed run; deletes what a start with cold caches has compiled."""
    aside = _aside(folder)
    if aside.exists():
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(aside, folder)  # noqa: PTH104 - documented as atomic


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + _ASIDE_SUFFIX)


def evict_files(files: Sequence[Path]) -> Residency:
    """Drops the files' pages, and writes back those that are changed; returns what stayed in memory.

    Pages that another process has mapped stay, and so do files on tmpfs. Writing back takes a millisecond per
    file, whether or not it is changed.

    Raises:
        OSError: a file cannot be opened, or the system cannot do it.
    """
    for file in files:
        _drop(file)
    for file in files:
        if measure_residency([file]).resident_bytes:
            _drop(file, writes_back=True)
    return measure_residency(files)


def measure_residency(files: Iterable[Path]) -> Residency:
    """How much of the files is in memory, from cachestat(2) or mincore(2); reads no page."""
    total_bytes = resident_bytes = 0
    for file in files:
        with ResidencyProbe(str(file)) as probe:
            total_bytes += file.stat().st_size
            resident_bytes += probe.resident_bytes()
    return Residency(total_bytes, resident_bytes)


def _drop(file: Path, *, writes_back: bool = False) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if writes_back:
            os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def list_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths and in the folders among them, each once and with links resolved."""
    found: dict[Path, None] = {}
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            real = file.resolve()
            if real.is_file():
                found[real] = None
    return list(found)
