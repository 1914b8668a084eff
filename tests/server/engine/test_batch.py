"""The packed row and its decode groups: token order, and which neighbours share an attention call."""

import torch

from server.engine.batch import Chunk, PackedBatch, pack
from server.engine.sequence import Sequence
from server.types import SamplingParams

SLOT_LEN = 4096
CPU = torch.device("cpu")


def test_decodes_come_first_in_slot_order_then_prompt_chunks_as_given() -> None:
    chunks = [_chunk(slot=5, computed=4, new=3), _chunk(slot=7, computed=9, new=1), _chunk(slot=2, computed=6, new=1)]
    batch = _pack([chunks[1], chunks[0], chunks[2]])
    assert batch.chunks == [chunks[2], chunks[1], chunks[0]]
    assert batch.chunk_rows == [slice(0, 1), slice(1, 2), slice(2, 5)]
    assert batch.position_ids.tolist() == [[6, 9, 4, 5, 6]]
    assert batch.input_ids.tolist() == [[206, 709, 504, 505, 506]]
    assert batch.cache_index.tolist() == [
        2 * SLOT_LEN + 6,
        7 * SLOT_LEN + 9,
        5 * SLOT_LEN + 4,
        5 * SLOT_LEN + 5,
        5 * SLOT_LEN + 6,
    ]


def test_a_single_token_prompt_is_a_prefill_not_a_decode() -> None:
    batch = _pack([_chunk(slot=0, computed=0, new=1)])
    assert not batch.decode_groups
    assert [(p.begin, p.end) for p in batch.prefills] == [(0, 1)]


def test_neighbours_of_equal_length_share_a_call_without_a_mask() -> None:
    [group] = _pack([_chunk(slot=s, computed=9, new=1) for s in (3, 4, 5)]).decode_groups
    assert (group.first_slot, group.last_slot, group.length) == (3, 6, 10)
    assert group.mask is None
    assert group.slot_rows is None


def test_shorter_members_are_masked_to_their_own_length() -> None:
    [group] = _pack([_chunk(slot=0, computed=1, new=1), _chunk(slot=1, computed=3, new=1)]).decode_groups
    assert group.mask is not None
    assert (group.mask[:, 0, 0] == 0).tolist() == [[True, True, False, False], [True, True, True, True]]


def test_free_slots_in_a_group_use_another_members_row() -> None:
    [group] = _pack([_chunk(slot=s, computed=9, new=1) for s in (1, 4)]).decode_groups
    assert group.slot_rows is not None
    assert group.row_slots is not None
    assert group.slot_rows.tolist() == [0, 0, 0, 1]
    assert group.row_slots.tolist() == [0, 3]
    assert group.lengths.tolist() == [10, 1, 1, 10]


def test_a_much_longer_neighbour_gets_its_own_call() -> None:
    batch = _pack([_chunk(slot=s, computed=c, new=1) for s, c in enumerate((10, 12, 3000, 11, 3001))])
    groups = batch.decode_groups
    assert [(g.first_slot, g.last_slot, g.length) for g in groups] == [
        (0, 2, 13),
        (2, 3, 3001),
        (3, 4, 12),
        (4, 5, 3002),
    ]
    assert [g.rows for g in groups] == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]


def test_a_distant_slot_gets_its_own_call() -> None:
    groups = _pack([_chunk(slot=s, computed=99, new=1) for s in (0, 1, 60)]).decode_groups
    assert [(g.first_slot, g.last_slot) for g in groups] == [(0, 2), (60, 61)]


def _chunk(*, slot: int, computed: int, new: int) -> Chunk:
    sequence = Sequence(f"slot {slot}", [slot * 100 + i for i in range(computed + new)], SamplingParams(max_tokens=1))
    sequence.slot, sequence.num_computed_tokens = slot, computed
    return Chunk(sequence, new)


def _pack(chunks: list[Chunk]) -> PackedBatch:
    return pack(chunks, slot_len=SLOT_LEN, dtype=torch.float32, device=CPU)
