"""Memory for the KV cache on a CPU. Segments of a memory file are mapped into the addresses of slots.

The file is sparse. The system commits a page when the page is first written or read, and frees it when a hole
is punched into the file.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

from base.errors import EngineStartError
from base.machine.libc import check, last_error, load_libc

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
"""Linux: reserves address space without counting it against the commit limit (mmap(2))."""
_PUNCH_HOLE = 0x02 | 0x01
"""Linux: frees a range of a file, and keeps the file's size (fallocate(2))."""
_FILE_BYTES = 1 << 62
_MAPPINGS_SHARE = 0.5
"""The share of the process's mappings (vm.max_map_count) that shared prefixes may use."""


class MappedRange(NamedTuple):
    """A range of a slot's tokens, and the segment that holds these tokens at the same positions."""

    segment: int
    begin: int
    end: int


class MemoryFile:
    """Maps segments into slots. `shared_slots` decides which segments.

    A segment has room for all tokens of a slot. At first, segment i is mapped into slot i. Further segments
    take no address space.
    """

    def __init__(self, *, num_slots: int, slot_len: int, token_bytes: list[int]) -> None:
        """Reserves the memory.

        Args:
            slot_len: the tokens of a slot. A slot must fill whole pages of each part.
            token_bytes: the bytes per token of each part. A part is one layer's keys or values. The parts
                follow each other in `pages`, and each part consists of slots.

        Raises:
            OSError: the system has no memory files, or forbids them.
            EngineStartError: there is not enough address space.
        """
        self._num_slots = num_slots
        self._slot_len = slot_len
        self._parts = list(zip(token_bytes, accumulate(token_bytes, initial=0), strict=False))
        """For each part: its bytes per token, and its offset, which is the sum of the parts before it."""
        self._segment_bytes = slot_len * sum(token_bytes)
        self._file = os.memfd_create("kv-cache")
        finalize(self, os.close, self._file)
        os.ftruncate(self._file, _FILE_BYTES)
        self.pages = reserve_pages(num_slots * self._segment_bytes)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        self._mmap(0, len(self.pages), 0)
        self._max_mappings = int(Path("/proc/sys/vm/max_map_count").read_text()) * _MAPPINGS_SHARE
        self._mapped: dict[int, list[MappedRange]] = {}
        """Slot -> its mapped ranges. A slot that maps its own segment as a whole has no entry."""
        self.free(0, 0, slot_len)  # fails here if the system forbids it

    @property
    def num_mappings(self) -> int:
        """The number of mappings of changed slots. The unmapped end of a slot counts as one more mapping."""
        mapped = self._mapped.values()
        num_ranges = sum(map(len, mapped))
        num_unmapped = sum(not ranges or ranges[-1].end < self._slot_len for ranges in mapped)
        return len(self._parts) * (num_ranges + num_unmapped)

    def can_map(self, num_ranges: int) -> bool:
        """Whether the system permits the mappings of another slot with so many ranges."""
        return self.num_mappings + len(self._parts) * num_ranges <= self._max_mappings

    def ranges(self, slot: int) -> list[MappedRange]:
        return self._mapped.get(slot, [MappedRange(slot, 0, self._slot_len)])

    def map(self, slot: int, ranges: list[MappedRange]) -> None:
        """Maps ranges into a slot. Together, the ranges must fill the slot."""
        present = self.ranges(slot)
        for segment, first, end in ranges:
            of_segment = [p for p in present if p.segment == segment]
            begin = max((p.end for p in of_segment if p.begin <= first < p.end), default=first)
            if begin < end:
                for in_slot, in_file, num_bytes in self._places(slot, segment, begin, end):
                    self._mmap(in_slot, num_bytes, in_file)
        self._mapped[slot] = ranges
        if self.ranges(slot) == [MappedRange(slot, 0, self._slot_len)]:
            del self._mapped[slot]

    def unmap(self, slot: int, begin: int) -> None:
        """Unmaps the tokens of a slot from `begin` on. Their addresses then read as zeros and take no memory.

        Reading a mapped page would commit it. Does nothing if the system permits no more mappings.
        """
        present = self.ranges(slot)
        if not present or present[-1].end <= begin or not self.can_map(1):
            return
        for in_slot, _, num_bytes in self._places(slot, 0, begin, self._slot_len):
            self._mmap(in_slot, num_bytes, None)
        self._mapped[slot] = [MappedRange(n, first, min(end, begin)) for n, first, end in present if first < begin]

    def copy(self, slot: int, segment: int, begin: int, end: int) -> None:
        """Copies tokens of a segment to the same positions of a slot."""
        with memoryview(self.pages) as pages:
            for in_slot, in_file, num_bytes in self._places(slot, segment, begin, end):
                os.preadv(self._file, [pages[in_slot : in_slot + num_bytes]], in_file)

    def free(self, segment: int, begin: int, end: int) -> None:
        """Returns the memory of these tokens to the system. Their addresses then read as zeros."""
        for _, in_file, num_bytes in self._places(0, segment, begin, end):
            result = load_libc().fallocate(self._file, _PUNCH_HOLE, in_file, num_bytes)
            check(result, "fallocate of the KV cache")

    def _places(self, slot: int, segment: int, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields for each part the tokens' offsets in `pages` and in the file, and their number of bytes."""
        for token_bytes, bytes_before in self._parts:
            part = self._num_slots * self._slot_len * bytes_before
            in_slot = part + (slot * self._slot_len + begin) * token_bytes
            if segment < self._num_slots:
                in_file = part + (segment * self._slot_len + begin) * token_bytes
            else:
                in_file = segment * self._segment_bytes + self._slot_len * bytes_before + begin * token_bytes
            yield in_slot, in_file, (end - begin) * token_bytes

    def _mmap(self, in_pages: int, num_bytes: int, in_file: int | None) -> None:
        """Maps bytes of the file into `pages`. Without `in_file`, maps zeros that can only be read."""
        address = self._address + in_pages
        flags, protection, file = mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, self._file
        if in_file is None:
            flags, protection, file = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ, -1
        flags |= _MAP_FIXED | _MAP_NORESERVE
        if load_libc().mmap(address, num_bytes, protection, flags, file, in_file or 0) != address:
            raise last_error("mmap of the KV cache")


def reserve_pages(num_bytes: int) -> mmap.mmap:
    """Reserves address space. The system commits a page when the page is first written.

    Raises:
        EngineStartError: there is not enough address space.
    """
    try:
        return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except (OSError, OverflowError) as err:
        raise EngineStartError(
            f"cannot reserve {num_bytes / (1 << 30):.1f} GiB of address space for the KV cache ({err}): "
            "lower --max-num-seqs or --max-model-len"
        ) from err
