"""Slots that share the memory of common prefixes. Records which segments a slot or the prefix cache holds.

Each sequence writes into its own segment of a memory file, behind the tokens that it shares. Memory that
several slots map is never written, because a shared part ends on a block boundary. The rest of a common
prefix is copied.
"""

import math
import mmap
from typing import NamedTuple

from server.engine.memory.memory_file import MappedRange, MemoryFile


class Reference(NamedTuple):
    """Holds the tokens of a segment, from the segment's begin to `end`."""

    segment: "_Segment"
    end: int


class _Segment:
    """The tokens that one sequence has written. Earlier tokens of its slot are in other segments.

    While the sequence runs, it holds its segment up to the end of the slot.
    """

    def __init__(self, number: int, begin: int) -> None:
        self.number = number
        self.begin = begin
        self.read_ends: list[int] = []
        """The ends of all references that slots hold."""
        self.cached_ends: list[int] = []
        """The ends of all references that the prefix cache holds."""

    @property
    def read_end(self) -> int:
        return max(self.read_ends, default=self.begin)

    @property
    def end(self) -> int:
        return max((self.read_end, *self.cached_ends))

    @property
    def num_cached_tokens(self) -> int:
        return self.end - self.read_end

    @property
    def num_shared_tokens(self) -> int:
        return sum(end - self.begin for end in self.read_ends) - (self.read_end - self.begin)


class SharedSlots:
    """The memory of slots, on the engine's thread. Common prefixes share memory."""

    def __init__(self, *, num_slots: int, slot_len: int, token_bytes: list[int]) -> None:
        """See `MemoryFile`. `slot_len` may be any number, because it is rounded up to whole blocks."""
        page = mmap.PAGESIZE
        self.block_len = math.lcm(*(page // math.gcd(page, each) for each in token_bytes))
        """The fewest tokens that fill whole pages of each part."""
        self.slot_len = self._round_up(slot_len)
        """The most tokens of a slot."""
        self.memory = MemoryFile(num_slots=num_slots, slot_len=self.slot_len, token_bytes=token_bytes)
        self.num_shared_tokens = 0
        """How many tokens sharing saves: open slots would hold so many more if they shared nothing."""
        self.num_cached_tokens = 0
        """The number of tokens that only the prefix cache holds."""
        self._held: dict[int, list[Reference]] = {}
        """Open slot -> the references that it holds, in the order of its tokens."""
        self._held_before: dict[int, list[Reference]] = {}
        """Closed slot -> its last references. They stay mapped: mapping 2000 tokens again costs 10 ms."""
        self._num_slots = num_slots
        self._free_segments = set(range(num_slots))
        self._num_segments = num_slots

    @property
    def has_too_many_mappings(self) -> bool:
        """Whether cached prefixes must be dropped before another slot can share memory."""
        return not self.memory.can_map(1)

    def open(self, slot: int, source: int | list[Reference] | None = None, length: int = 0) -> None:
        """Allocates a slot. Its first `length` tokens come from `source`, an open slot or kept tokens."""
        prefix = _cut(self._references(source), length)
        if prefix and prefix[-1].end == prefix[-1].segment.end:
            # Nothing follows these tokens, so the sequence continues the segment of the ended one.
            mapped_end = length
            held = [*prefix[:-1], Reference(prefix[-1].segment, self.slot_len)]
        else:
            mapped = _cut(prefix, length // self.block_len * self.block_len)
            if not self.memory.can_map(len(mapped) + 1):  # +1: the slot's own segment
                mapped = []
            mapped_end = mapped[-1].end if mapped else 0
            held = [*mapped, Reference(_Segment(self._take_segment(slot), mapped_end), self.slot_len)]
        ranges = [MappedRange(segment.number, segment.begin, end) for segment, end in held]
        self.memory.map(slot, ranges)
        for segment, end in prefix:
            if end > mapped_end:
                self.memory.copy(slot, segment.number, max(segment.begin, mapped_end), end)
        self._held[slot] = held
        self._held_before.pop(slot, None)
        self._hold(held, is_cached=False)

    def close(self, slot: int, length: int) -> None:
        """Frees the memory of a slot with `length` tokens, except tokens that are also held elsewhere."""
        # Frees the whole slot, because reading behind a sequence's tokens also commits memory.
        self._held_before[slot] = self._held.pop(slot)
        self._release(self._held_before[slot], is_cached=False)

    def hide_closed(self, slots: range) -> None:
        """Called before a step reads a range of slots. Reading a closed slot would commit memory for ever."""
        for slot in slots:
            if slot not in self._held:
                held_end = _held_end(self._held_before.get(slot, []))
                self.memory.unmap(slot, self._round_up(held_end))

    def keep(self, slot: int, length: int) -> list[Reference]:
        """Holds the first `length` tokens of an open slot, until `drop` is called with the result."""
        cached = _cut(self._held[slot], length)
        self._hold(cached, is_cached=True)
        return cached

    def drop(self, cached: list[Reference]) -> None:
        self._release(cached, is_cached=True)

    def count_running_tokens(self, source: int | list[Reference], length: int) -> int:
        """Returns how many of the source's first `length` tokens could be shared with running sequences."""
        shared = _cut(self._references(source), length // self.block_len * self.block_len)
        return sum(max(0, min(end, segment.read_end) - segment.begin) for segment, end in shared)

    def count_common_tokens(self, slots: list[int]) -> int:
        """Returns how many first tokens of these open slots are in the same memory."""
        num_tokens = 0
        for references in zip(*(self._held[slot] for slot in slots), strict=False):
            if len({segment for segment, _ in references}) > 1:
                break
            ends = {end for _, end in references}
            num_tokens = min(ends)
            if len(ends) > 1:
                break
        return num_tokens

    def _round_up(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_len) * self.block_len

    def _references(self, source: int | list[Reference] | None) -> list[Reference]:
        return self._held[source] if isinstance(source, int) else source or []

    def _take_segment(self, slot: int) -> int:
        """Returns a free segment: if possible the last one mapped into the slot, or else number `slot`."""
        present = [mapped.segment for mapped in self.memory.ranges(slot)[-1:]]
        number = next((n for n in (*present, slot) if n in self._free_segments), None)
        if number is None:
            number = max(self._free_segments, default=0)
            if number < self._num_slots:
                number = self._num_segments
                self._num_segments += 1
        self._free_segments.discard(number)
        return number

    def _hold(self, references: list[Reference], *, is_cached: bool) -> None:
        for segment, end in references:
            self._count(segment, -1)
            (segment.cached_ends if is_cached else segment.read_ends).append(end)
            self._count(segment, 1)

    def _release(self, references: list[Reference], *, is_cached: bool) -> None:
        for segment, end in references:
            end_before = segment.end
            self._count(segment, -1)
            (segment.cached_ends if is_cached else segment.read_ends).remove(end)
            self._count(segment, 1)
            if segment.end < end_before:
                # Frees to the end of the block, because only whole pages are freed.
                self.memory.free(segment.number, segment.end, self._round_up(end_before))
            if segment.end == segment.begin:
                self._free_segments.add(segment.number)

    def _count(self, segment: _Segment, sign: int) -> None:
        self.num_cached_tokens += sign * segment.num_cached_tokens
        self.num_shared_tokens += sign * segment.num_shared_tokens


def _held_end(references: list[Reference]) -> int:
    """Returns how many first tokens of `references` are still held by a slot or by the prefix cache."""
    held = 0
    for segment, end in references:
        held = min(segment.end, end)
        if held < end:
            break
    return held


def _cut(references: list[Reference], length: int) -> list[Reference]:
    """Returns the parts of the references that lie within the first `length` tokens."""
    return [Reference(segment, min(end, length)) for segment, end in references if segment.begin < length]
