"""Records which environment variables Python code reads and sets, by name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class EnvironmentAccesses:
    """Filled while `record_environment_reads` is active, by all threads."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        """Read, whether they were set or not; without those that had been set by recorded code before."""
        self.written: dict[str, str | None] = {}
        """Set or removed (None) by the recorded code, with the last value."""
        self._listed: dict[int, Any] = {}

    def add_listed(self, key: Any) -> None:
        """A name that a listing of the environment has returned."""
        self._listed[id(key)] = key

    def add_read(self, key: Any) -> None:
        """A read of one variable.

        `dict(os.environ)` and `os.environ.copy()` list the names and then read each one. Such a read has the
        very object that the listing returned, which a read by name never has.
        """
        if self._listed.get(id(key)) is not key and (name := _name(key)) not in self.written:
            self.names.add(name)

    def add_write(self, key: Any, value: Any) -> None:
        """A variable that was set, or removed if the value is None."""
        self.written[_name(key)] = None if value is None else os.fsdecode(value)


@contextmanager
def record_environment_reads() -> Iterator[EnvironmentAccesses]:
    """Records accesses to `os.environ` in this block; listing or copying the environment is no read."""
    accesses = EnvironmentAccesses()
    mappings: tuple[Any, ...] = (os.environ, os.environb)
    recording = _recording_class(accesses)
    for mapping in mappings:
        mapping.__class__ = recording
    try:
        yield accesses
    finally:
        for mapping in mappings:
            mapping.__class__ = os._Environ


def _name(key: Any) -> str:
    return os.fsdecode(key) if isinstance(key, str | bytes) else str(key)


def _recording_class(accesses: EnvironmentAccesses) -> type:
    """A subclass to which the existing mappings can be switched, so that all references to them record."""

    class RecordingEnvironment(os._Environ):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            accesses.add_read(key)
            return super().__getitem__(key)

        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            accesses.add_write(key, value)

        def __delitem__(self, key: Any) -> None:
            super().__delitem__(key)
            accesses.add_write(key, None)

        def __iter__(self) -> Iterator[Any]:
            for key in super().__iter__():
                accesses.add_listed(key)
                yield key

    return RecordingEnvironment
