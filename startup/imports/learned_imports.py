"""The import file that starts write when they are ready and that later starts import from.

There is one per virtual environment, for all processes of both engines; a baked one lies below it.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from startup.caches import layers
from startup.hooks.hook import uses
from startup.imports.distributions import distribution_stamps
from startup.imports.import_file import ImportFile, Index, UnusableFileError, install, uninstall
from startup.imports.import_file_writer import write

logger = logging.getLogger(__name__)


class _State:
    is_open = False
    """Whether imports use the import files now."""


_state = _State()


class LearnedImports(NamedTuple):
    """The user's import file."""

    path: Path
    num_modules: int
    num_bytes: int


def import_file_paths() -> tuple[Path, ...]:
    """The places of the import file: the user's, then the baked one, if there is one."""
    return layers(f"imports/{sha256(sys.prefix.encode()).hexdigest()[:16]}.code")


@contextmanager
def learned_imports() -> Iterator[None]:
    """While open, imports use the import files. What they lack is noted for `learn`.

    Forks inherit the open files, so none should happen meanwhile.
    """
    if _state.is_open or not uses("import file"):
        yield
        return
    distribution_stamps()  # before imports change the path
    for path in import_file_paths():
        install(path)
    _state.is_open = True
    try:
        yield
    finally:
        _state.is_open = False
        _note(uninstall())


def learn(more: Iterable[str] = ()) -> None:
    """Adds what the processes of this start have missed to the user's import file, if they have.

    Takes up to half a second. Failures are logged for debugging only.

    Args:
        more: further modules that the next start will import.
    """
    if not uses("import file") or sys.dont_write_bytecode:
        return
    path = import_file_paths()[0]
    own, *others = map(_read, import_file_paths())
    known = {name for index in (own, *others) if index is not None for name in (*index.modules, *index.refused)}
    wanted = [*_take_noted(), *(name for name in more if name not in known)]
    if not wanted:
        return
    kept = (*own.modules, *own.refused) if own is not None else ()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, (*kept, *wanted))
    except OSError as err:
        logger.debug("the import file was not written: %s", err)


def read_learned() -> LearnedImports | None:
    """The user's import file; None if there is none that this Python can use."""
    path = import_file_paths()[0]
    index = _read(path)
    return None if index is None else LearnedImports(path, len(index.modules), path.stat().st_size)


def delete_learned() -> bool:
    """Removes the user's import file; returns whether there was one."""
    path = import_file_paths()[0]
    _notes(path).unlink(missing_ok=True)
    was_there = path.exists()
    path.unlink(missing_ok=True)
    return was_there


def _note(names: Iterable[str]) -> None:
    if names := list(names):
        notes = _notes(import_file_paths()[0])
        with suppress(OSError):
            notes.parent.mkdir(parents=True, exist_ok=True)
            with notes.open("a", encoding="utf-8") as file:
                file.write("".join(f"{name}\n" for name in names))


def _take_noted() -> list[str]:
    notes = _notes(import_file_paths()[0])
    try:
        names = notes.read_text(encoding="utf-8").splitlines()
        notes.unlink()
    except (OSError, ValueError):
        return []
    return names


def _notes(path: Path) -> Path:
    """Where the processes of a start write the names of modules that they have missed."""
    return path.with_suffix(".missed")


def _read(path: Path) -> Index | None:
    try:
        file = ImportFile(str(path))
    except (OSError, UnusableFileError, ValueError, EOFError, TypeError):
        return None
    file.close()
    return file.index
