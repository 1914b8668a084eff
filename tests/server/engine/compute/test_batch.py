"""A packed row has the right token order. Its decode groups are neighbours that share an attention call."""

import pytest
import torch

from server.engine.compute.batch import PackedBatch, pack
from server.engine.sequence import Chunk, Sequence
from server.terms.types import SamplingParams

SLOT_LEN = 4096
CPU = torch.device("cpu")


def test_neighbours_of_equal_length_share_a_call_without_a_mask():
    [group] = _pack([_chunk(slot=s, computed=9) for s in (3, 4, 5)]).decode_groups
    assert (group.first_slot, group.last_slot, group.length) == (3, 6, 10)
    assert group.mask is None
    assert group.slot_rows is None


def test_free_slots_in_a_group_use_another_members_row():
    [group] = _pack([_chunk(slot=s, computed=9) for s in (1, 4)]).decode_groups
    assert group.slot_rows.tolist() == [0, 0, 0, 1]
    assert group.row_slots.tolist() == [0, 3]
    assert group.lengths.tolist() == [10, 1, 1, 10]


def test_a_much_longer_neighbour_gets_its_own_call():
    batch = _pack([_chunk(slot=s, computed=c) for s, c in enumerate((10, 12, 3000, 11, 3001))])
    groups = batch.decode_groups
    assert [(g.first_slot, g.last_slot, g.length) for g in groups] == [
        (0, 2, 13),
        (2, 3, 3001),
        (3, 4, 12),
        (4, 5, 3002),
    ]
    assert [g.rows for g in groups] == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]


def test_a_distant_slot_gets_its_own_call():
    groups = _pack([_chunk(slot=s, computed=99) for s in (0, 1, 60)]).decode_groups
    assert [(g.first_slot, g.last_slot) for g in groups] == [(0, 2), (60, 61)]


def test_neighbours_with_a_long_shared_prefix_are_a_group_that_attends_to_it_once():
    chunks = [_chunk(slot=s, computed=c) for s, c in enumerate((900, 900, 840, 1100, 850, 900))]
    groups = _pack(chunks, {2: ("a", 840), 3: ("a", 800), 4: ("a", 850)}).decode_groups
    assert [(g.rows, g.num_shared_tokens) for g in groups] == [
        (slice(0, 2), 0),
        (slice(2, 5), 800),
        (slice(5, 6), 0),
    ]
    assert (groups[1].mask[:, 0, 0] == 0).sum(1).tolist() == [841, 1101, 851]


@pytest.mark.parametrize(("num_sequences", "length"), [(9, 511), (3, 767), (2, 1535)])
def test_a_short_shared_prefix_needs_no_call_of_its_own(num_sequences, length):
    chunks = [_chunk(slot=s, computed=1600) for s in range(num_sequences)]
    for shared, expected in ((length, 0), (length + 1, length + 1)):
        [group] = _pack(chunks, dict.fromkeys(range(num_sequences), ("a", shared))).decode_groups
        assert group.num_shared_tokens == expected


def test_a_free_slot_does_not_split_a_group_with_a_shared_prefix():
    chunks = [_chunk(slot=s, computed=3000) for s in (0, 1, 3)]
    [group] = _pack(chunks, dict.fromkeys((0, 1, 3), ("a", 2900))).decode_groups
    assert (group.num_shared_tokens, group.lengths.tolist()) == (2900, [3001, 3001, 2901, 3001])


def _chunk(*, slot: int, computed: int) -> Chunk:
    sequence = Sequence(f"slot {slot}", [slot * 100 + i for i in range(computed + 1)], SamplingParams(max_tokens=1))
    sequence.slot, sequence.num_computed_tokens = slot, computed
    return Chunk(sequence, 1)


def _pack(chunks: list[Chunk], prefixes: dict[int, tuple[str, int]] | None = None) -> PackedBatch:
    """`prefixes`: slot -> name and length of its beginning. Slots with the same name share this beginning."""

    def count_shared(slots: list[int]) -> int:
        names, lengths = zip(*((prefixes or {}).get(slot, (slot, 0)) for slot in slots), strict=True)
        return min(lengths) if len(set(names)) == 1 else 0

    return pack(chunks, slot_len=SLOT_LEN, dtype=torch.float32, device=CPU, count_shared=count_shared)
