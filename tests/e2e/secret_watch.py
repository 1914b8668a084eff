"""Looks for a mark in the command lines of all processes and in small files while other programs run."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_INTERVAL_S = 0.005
_SMALL_BYTES = 1 << 20


class SecretWatch:
    """Watches during its `with` block.

    A process may show words that the user has typed until it has masked them, which is before it starts
    another process. No process may show any other word with the mark.
    """

    def __init__(self, mark: str, temporary: Path) -> None:
        """`temporary`: a folder whose files are searched all the time, because some are removed."""
        self._mark = mark.encode()
        self._temporary = temporary
        self._typed: list[list[bytes]] = []
        self._found: set[str] = set()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="secret-watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def allow(self, words: Sequence[str]) -> None:
        """A command that the user types."""
        self._typed.append([word.encode() for word in words])

    def check(self, *folders: Path) -> None:
        """Fails if the mark was found, or is in a file of the folders."""
        self._found.update(str(path) for folder in folders for path in self._files_with_mark(folder))
        assert not self._found, self._found

    def _run(self) -> None:
        while not self._has_ended.wait(_INTERVAL_S):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    self._look_at(process)
            self._found.update(map(str, self._files_with_mark(self._temporary, _SMALL_BYTES)))

    def _look_at(self, process: Path) -> None:
        if self._mark not in (process / "cmdline").read_bytes():
            return
        has_children = any((task / "children").read_bytes() for task in (process / "task").iterdir())
        words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        if self._mark in b"\0".join(words) and (has_children or not self._is_typed(words)):
            self._found.add(b" ".join(words).decode(errors="replace"))

    def _is_typed(self, words: list[bytes]) -> bool:
        return any(
            words[begin : begin + len(typed)] == typed
            for typed in self._typed
            for begin in range(len(words) - len(typed) + 1)
        )

    def _files_with_mark(self, folder: Path, most_bytes: float = float("inf")) -> Iterator[Path]:
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and path.stat().st_size <= most_bytes and self._mark in path.read_bytes():
                    yield path
