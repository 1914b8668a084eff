"""Slots share memory. A common beginning is stored once, never changes, and is freed after its last use."""

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.memory.shared_slots import Reference, SharedSlots
from tests.support.properties import settings, st

_TOKEN_BYTES = [64, 128]
_BLOCK = 64
_SLOT_LEN = 8 * _BLOCK


def test_a_block_fills_whole_pages_of_each_part():
    assert SharedSlots(num_slots=1, slot_len=100, token_bytes=[384, 384]).block_len == 32
    assert SharedSlots(num_slots=1, slot_len=100, token_bytes=[64, 4096]).slot_len == 128


def test_a_common_beginning_is_held_once():
    memory = _Memory(num_slots=16)
    memory.open(0)
    memory.write(0, 0, 400)
    alone = memory.num_committed_bytes
    for slot in range(1, 16):
        memory.open(slot, 0, 6 * _BLOCK)
        memory.check()
    assert memory.num_committed_bytes == alone
    assert memory.slots.num_shared_tokens == 15 * 6 * _BLOCK


def test_a_kept_beginning_costs_nothing_and_is_freed_when_it_is_dropped():
    memory = _Memory()
    memory.open(0)
    memory.write(0, 0, 300)
    before = memory.num_committed_bytes
    cached = memory.keep(0, 300)
    assert (memory.slots.num_cached_tokens, memory.num_committed_bytes) == (0, before)
    memory.close(0)
    assert (memory.slots.num_cached_tokens, memory.num_committed_bytes) == (300, before)
    memory.open(1, cached, 290)
    memory.close(1)
    memory.drop(cached)
    assert (memory.slots.num_cached_tokens, memory.num_committed_bytes) == (0, 0)


def test_memory_is_freed_up_to_what_others_hold():
    memory = _Memory()
    memory.open(0)
    memory.write(0, 0, 8 * _BLOCK)
    memory.open(1, 0, 3 * _BLOCK + 5)
    memory.close(0)
    assert memory.num_committed_bytes == 3 * _BLOCK * sum(_TOKEN_BYTES) + 2 * 4096
    memory.check()


def test_reading_closed_slots_takes_no_memory():
    """Steps read closed slots that lie between the slots of their sequences."""
    memory = _Memory(num_slots=4)
    for slot in range(4):
        memory.open(slot)
        memory.write(slot, 0, 300)
    cached = memory.keep(1, 290)
    for slot in (1, 2):
        memory.close(slot)
    before = memory.num_committed_bytes
    memory.slots.hide_closed(range(4))
    for part in memory.parts:
        assert part[1, :290].all(), "a kept beginning stays mapped"
        assert not part[1, 5 * _BLOCK :].any()
        assert not part[2].any()
    memory.check()
    assert memory.num_committed_bytes == before
    memory.drop(cached)
    memory.slots.hide_closed(range(4))
    assert not any(part[1:3].any() for part in memory.parts)
    assert memory.num_committed_bytes == 2 * 5 * _BLOCK * sum(_TOKEN_BYTES)
    for slot in (1, 2):
        memory.open(slot, 0, 300)
        memory.write(slot, 300, 8 * _BLOCK)
    memory.check()


def test_a_sequence_that_continues_an_ended_one_needs_no_memory_of_its_own():
    memory = _Memory()
    memory.open(0)
    memory.write(0, 0, 100)
    for end in range(130, 500, 30):
        cached = memory.keep(0, end - 30)
        memory.close(0)
        memory.open(0, cached, end - 30)
        memory.write(0, end - 30, end)
        memory.drop(cached)
        memory.check()
    assert memory.slots.memory.num_mappings == 0
    assert memory.num_committed_bytes == 8 * _BLOCK * sum(_TOKEN_BYTES)


def test_beginnings_are_copied_when_too_many_mappings_are_in_use():
    memory = _Memory(num_slots=16)
    memory.slots.memory._max_mappings = 10  # of two parts and two ranges each: two slots
    memory.open(0)
    memory.write(0, 0, 300)
    for slot in range(1, 16):
        memory.open(slot, 0, 290)
        memory.write(slot, 290, 310)
        memory.check()
    assert memory.slots.memory.num_mappings == 8
    assert memory.slots.num_shared_tokens == 2 * 4 * _BLOCK


@settings(max_examples=4, stateful_step_count=100)
class _Calls(RuleBasedStateMachine):
    """Makes calls as the cache manager does, and checks that slots contain what was written to them."""

    max_mappings = 1000

    def __init__(self) -> None:
        super().__init__()
        self.memory = _Memory(num_slots=6)
        self.memory.slots.memory._max_mappings = self.max_mappings

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        memory = self.memory
        free = sorted(set(range(memory.num_slots)) - set(memory.written))
        if not free:
            return
        sources: list[tuple[int | list[Reference] | None, int]] = [(None, 0)]
        sources += [(slot, memory.lengths[slot]) for slot in memory.written if memory.lengths[slot]]
        sources += [(cached, len(values)) for cached, values in memory.cached]
        source, length = data.draw(st.sampled_from(sources))
        least = min(1, length)
        memory.open(data.draw(st.sampled_from(free)), source, data.draw(st.just(length) | st.integers(least, length)))

    @precondition(lambda self: self.memory.written)
    @rule(data=st.data(), call=st.sampled_from(["write", "write", "write", "end", "abort"]))
    def use(self, data: st.DataObject, call: str) -> None:
        memory = self.memory
        slot = data.draw(st.sampled_from(sorted(memory.written)))
        length = memory.lengths[slot]
        if call == "write" and length < _SLOT_LEN - 3:
            memory.write(slot, length, data.draw(st.integers(length + 1, _SLOT_LEN - 3)))
        elif call == "end" and length:
            memory.keep(slot, length)
            memory.close(slot)
        elif call == "abort":
            memory.close(slot)

    @precondition(lambda self: self.memory.cached)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.memory.drop(data.draw(st.sampled_from(self.memory.cached))[0])

    @invariant()
    def check(self) -> None:
        self.memory.check()
        if self.max_mappings == 1000:
            self.memory.read_closed()

    def teardown(self) -> None:
        memory = self.memory
        for slot, expected in memory.written.items():
            assert all((part[slot] == expected[:, None]).all() for part in memory.parts), "behind it are zeros"
        for slot in list(memory.written):
            memory.close(slot)
        while memory.cached:
            memory.drop(memory.cached[0][0])
        assert memory.num_committed_bytes == 0
        assert (memory.slots.num_cached_tokens, memory.slots.num_shared_tokens) == (0, 0)
        assert len(memory.slots._free_segments) == memory.slots._num_segments


class _CallsOnFewMappings(_Calls):
    max_mappings = 20


TestCalls = _Calls.TestCase
TestCallsOnFewMappings = pytest.mark.thorough(_CallsOnFewMappings.TestCase)


@dataclass
class _Memory:
    """Slots, and their expected contents."""

    num_slots: int = 3
    written: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Open slot -> its expected contents: one value per token, 0 if nothing is written."""
    lengths: dict[int, int] = field(default_factory=dict)
    cached: list[tuple[list[Reference], npt.NDArray[np.uint8]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = SharedSlots(num_slots=self.num_slots, slot_len=_SLOT_LEN - 3, token_bytes=_TOKEN_BYTES)
        assert (self.slots.block_len, self.slots.slot_len) == (_BLOCK, _SLOT_LEN)
        pages = np.frombuffer(self.slots.memory.pages, np.uint8)
        first, second = np.split(pages, [self.num_slots * _SLOT_LEN * _TOKEN_BYTES[0]])
        self.parts = [part.reshape(self.num_slots, _SLOT_LEN, -1) for part in (first, second)]

    @property
    def num_committed_bytes(self) -> int:
        return os.fstat(self.slots.memory._file).st_blocks * 512

    def open(self, slot: int, source: int | list[Reference] | None = None, length: int = 0) -> None:
        self.slots.open(slot, source, length)
        self.written[slot] = np.zeros(_SLOT_LEN, np.uint8)
        self.lengths[slot] = length
        if source is not None:
            known = self.written[source] if isinstance(source, int) else next(w for k, w in self.cached if k is source)
            self.written[slot][:length] = known[:length]

    def write(self, slot: int, begin: int, end: int) -> None:
        values = np.random.default_rng(begin + end).integers(1, 255, end - begin, np.uint8)
        self.written[slot][begin:end] = values
        self.lengths[slot] = end
        for part in self.parts:
            part[slot, begin:end] = values[:, None]

    def keep(self, slot: int, length: int) -> list[Reference]:
        cached = self.slots.keep(slot, length)
        self.cached.append((cached, self.written[slot][:length].copy()))
        return cached

    def drop(self, cached: list[Reference]) -> None:
        self.slots.drop(cached)
        self.cached = [(k, w) for k, w in self.cached if k is not cached]

    def close(self, slot: int) -> None:
        self.slots.close(slot, self.lengths[slot])
        del self.written[slot]

    def check(self) -> None:
        """Checks the contents. Reads only what was written, because reading commits memory, too."""
        for slot, expected in self.written.items():
            length = self.lengths[slot]
            assert all((part[slot, :length] == expected[:length, None]).all() for part in self.parts)

    def read_closed(self) -> None:
        slots = sorted(set(range(self.num_slots)) - set(self.written))
        self.slots.hide_closed(range(self.num_slots))
        for part in self.parts:
            part[slots].any()
