"""The input of one step: chunks (consecutive tokens) of sequences, packed into one row of tokens."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from server.engine.compute.attention_kernels import additive_mask
from server.engine.prompt_features import PlacedRows
from server.engine.sequence import Chunk, Sequence

_CALL_COST_TOKENS = 256
"""The cost of an attention call, in padded tokens. A call takes 10 us, and a padded token 0.05 us."""
_MIN_SHARED_TOKENS = 512
_MIN_SAVED_TOKENS = 1536
"""The fewest key reads that a separate call for a shared prefix must save. The call itself costs as much."""

CountShared = Callable[[list[int]], int]
"""Slots -> the number of first tokens that these slots have in the same memory."""


@dataclass(frozen=True)
class DecodeGroup:
    """Decoding sequences (members) in neighbouring slots of the KV cache, which share one attention call."""

    first_slot: int
    last_slot: int
    length: int
    """The number of keys that the call reads in each slot. The longest member has as many keys."""
    rows: slice
    """The members' rows in the packed batch, in the order of slots."""
    slot_rows: torch.Tensor | None
    """For each slot, the row that the call uses. None if no free slots lie between the members."""
    row_slots: torch.Tensor | None
    """For each row, its slot relative to the first one. None if no free slots lie between the members."""
    mask: torch.Tensor | None
    """An additive mask [slots, 1, 1, length]. None if all slots have `length` keys."""
    lengths: torch.Tensor
    """The number of keys in each slot, shape [slots]."""
    num_shared_tokens: int
    """How many first tokens all members have in the same memory. 0 if too few for a separate call."""


@dataclass(frozen=True)
class PrefillChunk:
    """Consecutive tokens of one sequence's prompt."""

    slot: int
    begin: int
    end: int
    rows: slice


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of one step in one row: decoding sequences in the order of slots, then prompt chunks."""

    chunks: list[Chunk]
    input_ids: torch.Tensor
    """Shape [1, num_tokens]."""
    position_ids: torch.Tensor
    """Shape [1, num_tokens], or [axes, 1, num_tokens] if images have positions on several axes."""
    cache_index: torch.Tensor
    """The index of each token's keys and values in the cache, counted over all slots. Shape [num_tokens]."""
    decode_groups: list[DecodeGroup]
    prefills: list[PrefillChunk]
    chunk_rows: list[slice]
    placed_rows: list[PlacedRows]
    """Rows that replace the embeddings of tokens."""
    prefill_masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    """(slot, sliding window) -> mask of a prompt chunk. The first layer that needs a mask adds it."""


def pack(
    chunks: list[Chunk],
    *,
    slot_len: int,
    dtype: torch.dtype,
    device: torch.device,
    count_shared: CountShared = lambda slots: 0,
) -> PackedBatch:
    """Packs the chunks. Sorts decoding sequences by slot, so that neighbours can share an attention call."""
    decodes = sorted((c for c in chunks if c.is_decode), key=lambda c: c.sequence.slot)
    prefills = [c for c in chunks if not c.is_decode]
    input_ids: list[int] = []
    positions: list[int] = []
    cache_index: list[int] = []
    rows: list[slice] = []
    for sequence, num_tokens in (ordered := decodes + prefills):
        begin = sequence.num_computed_tokens
        rows.append(slice(len(input_ids), len(input_ids) + num_tokens))
        input_ids.extend(sequence.token_ids[begin : begin + num_tokens])
        positions.extend(_positions(sequence, begin, begin + num_tokens))
        first = sequence.slot * slot_len + begin
        cache_index.extend(range(first, first + num_tokens))
    ints = torch.tensor([input_ids, positions, cache_index], dtype=torch.long, device=device)
    return PackedBatch(
        chunks=ordered,
        input_ids=ints[0:1],
        position_ids=_spread_over_axes(ints[1:2], ordered, rows),
        cache_index=ints[2],
        decode_groups=[
            _decode_group(decodes[r.rows], r.rows.start, r.num_shared_tokens, dtype=dtype, device=device)
            for run in _split_by_prefix(decodes, count_shared)
            for r in _split_by_length(decodes, run)
        ],
        prefills=[
            PrefillChunk(c.sequence.slot, c.begin, c.end, r)
            for c, r in zip(prefills, rows[len(decodes) :], strict=True)
        ],
        chunk_rows=rows,
        placed_rows=[
            PlacedRows(r.start, c.sequence.features.embeds[c.begin : c.begin + c.num_prompt_rows])
            for c, r in zip(ordered, rows, strict=True)
            if c.sequence.features is not None and c.num_prompt_rows
        ],
    )


def _positions(sequence: Sequence, begin: int, end: int) -> Iterable[int]:
    """Yields the positions of tokens. After the prompt, a token has the same position on all axes."""
    if sequence.features is None or not sequence.features.position_delta:
        return range(begin, end)
    first, delta = sequence.num_prompt_tokens, sequence.features.position_delta
    return (i if i < first else i + delta for i in range(begin, end))


def _spread_over_axes(positions: torch.Tensor, chunks: list[Chunk], rows: list[slice]) -> torch.Tensor:
    """Copies positions [1, num_tokens] to all axes, if a prompt's images have positions on several axes."""
    placed = [
        (r.start, features.positions[:, c.begin : c.begin + c.num_prompt_rows])
        for c, r in zip(chunks, rows, strict=True)
        if (features := c.sequence.features) is not None and features.positions is not None and c.num_prompt_rows
    ]
    if not placed:
        return positions
    spread = positions.repeat(len(placed[0][1]), 1)
    for begin, own in placed:
        spread[:, begin : begin + own.shape[1]] = own
    return spread[:, None]


class _Run(NamedTuple):
    """Consecutive decoding sequences, and the number of first tokens that they share."""

    rows: slice
    num_shared_tokens: int


def _split_by_prefix(decodes: list[Chunk], count_shared: CountShared) -> Iterator[_Run]:
    """Splits decoding sequences where a shared prefix begins or ends."""
    slots = [c.sequence.slot for c in decodes]
    pairs = (slots[i : i + 2] for i in range(len(slots) - 1))
    shares = [count_shared(pair) >= _MIN_SHARED_TOKENS for pair in pairs]
    begin = 0
    for end in range(1, len(slots) + 1):
        is_sharing = any(shares[max(end - 2, 0) : end + 1])
        if end == len(slots) or (not shares[end - 1] and is_sharing):
            num_shared = count_shared(slots[begin:end]) if end - begin > 1 and shares[begin] else 0
            is_worth_it = (end - begin - 1) * num_shared >= _MIN_SAVED_TOKENS
            yield _Run(slice(begin, end), num_shared if is_worth_it else 0)
            begin = end


def _split_by_length(decodes: list[Chunk], run: _Run) -> Iterator[_Run]:
    """Splits decoding sequences where padding to the longest sequence would cost more than another call."""
    begin = run.rows.start
    longest = 0
    call_cost = _CALL_COST_TOKENS + run.num_shared_tokens  # each call reads the shared tokens
    for i in range(run.rows.start, run.rows.stop):
        length = decodes[i].end - run.num_shared_tokens
        if i > begin:
            span = decodes[i].sequence.slot - decodes[begin].sequence.slot + 1
            span_before = decodes[i - 1].sequence.slot - decodes[begin].sequence.slot + 1
            merged = span * max(longest, length)
            if merged > span_before * longest + length + call_cost:
                yield _Run(slice(begin, i), run.num_shared_tokens)
                begin, longest = i, 0
        longest = max(longest, length)
    yield _Run(slice(begin, run.rows.stop), run.num_shared_tokens)


def _decode_group(
    members: list[Chunk], first_row: int, num_shared: int, *, dtype: torch.dtype, device: torch.device
) -> DecodeGroup:
    slots = [c.sequence.slot for c in members]
    first, last = slots[0], slots[-1] + 1
    length = max(c.end for c in members)
    num_shared = num_shared if len(members) > 1 else 0
    lengths = [num_shared + 1] * (last - first)
    slot_rows = [first_row] * (last - first)
    for row, chunk in enumerate(members, start=first_row):
        lengths[chunk.sequence.slot - first] = chunk.end
        slot_rows[chunk.sequence.slot - first] = row
    has_holes = len(members) < last - first
    keys = torch.tensor(lengths, device=device)
    mask = None
    if min(lengths) < length:
        visible = torch.arange(length, device=device)[None, :] < keys[:, None]
        mask = additive_mask(visible, dtype)[:, None, None, :]
    return DecodeGroup(
        first_slot=first,
        last_slot=last,
        length=length,
        rows=slice(first_row, first_row + len(members)),
        slot_rows=torch.tensor(slot_rows, device=device) if has_holes else None,
        row_slots=torch.tensor([s - first for s in slots], device=device) if has_holes else None,
        mask=mask,
        lengths=keys,
        num_shared_tokens=num_shared,
    )


class StepLogits(NamedTuple):
    """The logits of a step, shape [rows, vocab]. `rows[i]` are the rows of `chunks[i]`."""

    chunks: list[Chunk]
    logits: torch.Tensor
    rows: list[slice]
