"""Finds the parts of libraries that a server's processes have used, which are the pages in their memory."""

import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from startup.files.prefetch.survey import FileRanges

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_GAP_BYTES: Final = 128 << 10
"""Used parts with a smaller gap between them become one part, because fewer, larger reads are faster."""
_PRESENT: Final = 1 << 63
_ENTRY_BYTES: Final = 8
"""The size of an entry of /proc/PID/pagemap (proc(5)). Its highest bit says that the page is in memory."""


class _Mapping(NamedTuple):
    begin: int
    end: int
    offset: int
    path: str


def used_pages(root_pid: int, *, but: Iterable[Path] = ()) -> list[FileRanges]:
    """Returns the used parts of the files that a process and its descendants have mapped.

    The files are in order of mapping. `but`: files and folders to leave out.
    """
    left_out = tuple(f"{path}/" for path in but)
    found: dict[str, set[int]] = {}
    for process in (psutil.Process(root_pid), *psutil.Process(root_pid).children(recursive=True)):
        with suppress(OSError, psutil.Error):
            for mapping in _mappings(process.pid):
                if not f"{mapping.path}/".startswith(left_out):
                    found.setdefault(mapping.path, set()).update(_used(process.pid, mapping))
    return [_ranges(path, blocks) for path, blocks in found.items() if blocks]


def _mappings(pid: int) -> list[_Mapping]:
    """The mappings of regular files in the order of mapping, which goes from high to low addresses."""
    mappings = []
    with open(f"/proc/{pid}/maps") as maps:  # noqa: PTH123
        for line in maps:
            words = line.rstrip("\n").split(None, 5)
            if len(words) == 6 and words[5].startswith("/") and os.path.isfile(words[5]):  # noqa: PTH113
                begin, end = (int(word, 16) for word in words[0].split("-"))
                mappings.append(_Mapping(begin, end, int(words[2], 16), words[5]))
    return sorted(mappings, reverse=True)


def _used(pid: int, mapping: _Mapping) -> Iterator[int]:
    """Yields the numbers of the file's pages that the process has used."""
    num_pages = (mapping.end - mapping.begin) // _PAGE_BYTES
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:  # noqa: PTH123
        entries = array(
            "Q", os.pread(file.fileno(), num_pages * _ENTRY_BYTES, mapping.begin // _PAGE_BYTES * _ENTRY_BYTES)
        )
    first = mapping.offset // _PAGE_BYTES
    return (first + number for number, entry in enumerate(entries) if entry & _PRESENT)


def _ranges(path: str, pages: Iterable[int]) -> FileRanges:
    size = os.path.getsize(path)  # noqa: PTH202
    ranges: list[tuple[int, int]] = []
    for page in sorted(pages):
        offset = page * _PAGE_BYTES
        if offset >= size:  # this memory is behind the end of the file
            break
        end = min(offset + _PAGE_BYTES, size)
        if ranges and offset - sum(ranges[-1]) <= _GAP_BYTES:
            ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
        else:
            ranges.append((offset, end - offset))
    return FileRanges(path, size, tuple(ranges))
