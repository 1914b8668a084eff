"""The input of one step: chunks of sequences, laid out as one packed row of tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from server.engine.prompt_features import PlacedRows
from server.engine.sequence import Sequence

_CALL_COST_TOKENS = 256
"""An attention call costs as much as about this many padded tokens (10 us against 0.05 us per token)."""


class Chunk(NamedTuple):
    """`num_tokens` of a sequence, from its first token that is not computed."""

    sequence: Sequence
    num_tokens: int

    @property
    def begin(self) -> int:
        return self.sequence.num_computed_tokens

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def num_prompt_rows(self) -> int:
        """Tokens of the chunk that belong to the prompt."""
        return max(0, min(self.end, self.sequence.num_prompt_tokens) - self.begin)

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == 1 and self.begin > 0

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be sampled after this chunk."""
        return self.end == self.sequence.num_tokens

    @property
    def wants_all_logits(self) -> bool:
        """Whether log-probabilities of the prompt are requested and not reported yet."""
        return self.sequence.params.prompt_logprobs is not None and self.sequence.is_first_pass


@dataclass(frozen=True)
class DecodeGroup:
    """Decoding sequences in neighbouring slots that share one attention call."""

    first_slot: int
    last_slot: int
    length: int
    """Keys that the call reads: those of the longest member."""
    rows: slice
    """The members' rows of the packed batch, in slot order."""
    slot_rows: torch.Tensor | None
    """With free slots in between: the row that the call uses for each slot."""
    row_slots: torch.Tensor | None
    """With free slots in between: the slot of each row, relative to the group's first."""
    mask: torch.Tensor | None
    """Additive, shape [slots, 1, 1, length]; None if every member has the full length."""
    lengths: torch.Tensor
    """Keys of each slot, shape [slots]."""


@dataclass(frozen=True)
class PrefillChunk:
    """Consecutive prompt tokens of one sequence."""

    slot: int
    begin: int
    end: int
    rows: slice


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of one step in one row: decoding sequences first, in slot order, then prompt chunks."""

    chunks: list[Chunk]
    input_ids: torch.Tensor
    """Shape [1, num_tokens]."""
    position_ids: torch.Tensor
    """Shape [1, num_tokens]; [axes, 1, num_tokens] if a sequence's positions differ between axes."""
    cache_index: torch.Tensor
    """The cache position of each token's keys and values, flat over slots; shape [num_tokens]."""
    decode_groups: list[DecodeGroup]
    prefills: list[PrefillChunk]
    chunk_rows: list[slice]
    """The rows of each chunk."""
    placed_rows: list[PlacedRows]
    """Rows that replace the tokens' embeddings."""


def pack(chunks: list[Chunk], *, slot_len: int, dtype: torch.dtype, device: torch.device) -> PackedBatch:
    """Lays the chunks out; sorts decoding ones by slot so that neighbours can share a call."""
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
        decode_groups=_group(decodes, dtype=dtype, device=device),
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
    """The tokens' positions if all axes are equal, as they are after the prompt."""
    if sequence.features is None or not sequence.features.position_delta:
        return range(begin, end)
    first, delta = sequence.num_prompt_tokens, sequence.features.position_delta
    return (i if i < first else i + delta for i in range(begin, end))


def _spread_over_axes(positions: torch.Tensor, chunks: list[Chunk], rows: list[slice]) -> torch.Tensor:
    """Positions [1, num_tokens], spread over several axes if a prompt's features have them."""
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


def _group(decodes: list[Chunk], *, dtype: torch.dtype, device: torch.device) -> list[DecodeGroup]:
    """Splits decoding sequences if padding to the longest would cost more than another call."""
    groups: list[DecodeGroup] = []
    begin = 0
    longest = 0
    for i, chunk in enumerate(decodes):
        if i > begin:
            span = chunk.sequence.slot - decodes[begin].sequence.slot + 1
            span_before = decodes[i - 1].sequence.slot - decodes[begin].sequence.slot + 1
            merged = span * max(longest, chunk.end)
            if merged > span_before * longest + chunk.end + _CALL_COST_TOKENS:
                groups.append(_decode_group(decodes[begin:i], begin, dtype=dtype, device=device))
                begin, longest = i, 0
        longest = max(longest, chunk.end)
    if decodes:
        groups.append(_decode_group(decodes[begin:], begin, dtype=dtype, device=device))
    return groups


def _decode_group(members: list[Chunk], first_row: int, *, dtype: torch.dtype, device: torch.device) -> DecodeGroup:
    slots = [c.sequence.slot for c in members]
    first, last = slots[0], slots[-1] + 1
    length = max(c.end for c in members)
    lengths = [1] * (last - first)
    slot_rows = [first_row] * (last - first)
    for row, chunk in enumerate(members, start=first_row):
        lengths[chunk.sequence.slot - first] = chunk.end
        slot_rows[chunk.sequence.slot - first] = row
    has_holes = len(members) < last - first
    keys = torch.tensor(lengths, device=device)
    mask = None
    if min(lengths) < length:
        visible = torch.arange(length, device=device)[None, :] < keys[:, None]
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, float("-inf"))
        mask = mask[:, None, None, :]
    return DecodeGroup(
        first_slot=first,
        last_slot=last,
        length=length,
        rows=slice(first_row, first_row + len(members)),
        slot_rows=torch.tensor(slot_rows, device=device) if has_holes else None,
        row_slots=torch.tensor([s - first for s in slots], device=device) if has_holes else None,
        mask=mask,
        lengths=keys,
    )
