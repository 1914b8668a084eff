"""Which parts of which files a start reads: recorded by `vllm-cli bake`, read in this order by later starts.

The helper process imports this module, so it must stay light.
"""

import json
import os
from collections.abc import Iterable
from typing import Any, NamedTuple


class FileRanges(NamedTuple):
    """The wanted parts of a file."""

    path: str
    size: int
    """The file's; one of another size has other content, and is left out."""
    ranges: tuple[tuple[int, int], ...]
    """Offsets and lengths."""


def whole_file(path: str) -> FileRanges:
    """All of a file. Raises OSError."""
    size = os.stat(path).st_size  # noqa: PTH116
    return FileRanges(path, size, ((0, size),))


def write_pages(path: str, files: Iterable[FileRanges]) -> None:
    """Writes the record; files in the record's folder are named relative to it."""
    folder = f"{os.path.dirname(path)}/"  # noqa: PTH120
    content = [(name.removeprefix(folder), size, ranges) for name, size, ranges in files]
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)


def read_pages(path: str) -> list[FileRanges]:
    """The files of a record, without those that are gone or have another size; empty for a damaged record."""
    folder = os.path.dirname(path)  # noqa: PTH120
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            entries: list[Any] = json.load(file)
        found = []
        for name, size, ranges in entries:
            place = os.path.join(folder, name)  # noqa: PTH118
            if _size(place) == size:
                found.append(FileRanges(place, size, tuple((int(offset), int(length)) for offset, length in ranges)))
    except (OSError, ValueError, TypeError):
        return []
    return found


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1
