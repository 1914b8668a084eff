"""Ids of embedding rows, by which the prefix cache compares prompts without token ids."""

import secrets
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

RowIds = npt.NDArray[np.int64]

_IS_ROW = np.int64(-(1 << 63))
"""The sign bit: row ids are negative, token ids are not."""
_HIGH = np.uint64(32)
_LOW_31 = np.uint64((1 << 31) - 1)


class RowHasher:
    """Gives equal rows at equal positions equal ids; different ones collide by chance only, in 2**63 values.

    Multilinear hashing (Lemire and Kaser, 2014) with random keys that never leave the process, so that a
    client cannot construct colliding rows.
    """

    def __init__(self) -> None:
        self._keys: dict[int, npt.NDArray[np.uint64]] = {}

    def identify(self, embeds: torch.Tensor, positions: torch.Tensor | None) -> RowIds:
        """One id per row.

        Args:
            embeds: shape [rows, width].
            positions: shape [axes, rows]; None if they count from 0.
        """
        words = _words(embeds)
        if positions is not None:
            words = np.concatenate((words, positions.cpu().numpy().T.astype(np.uint32)), axis=1)
        sums = words.astype(np.uint64) @ self._keys_of(words.shape[1])
        high, low = sums[:, 0] >> _HIGH, sums[:, 1] >> _HIGH
        ids: RowIds = (((high & _LOW_31) << _HIGH) | low).view(np.int64) | _IS_ROW
        return ids

    @cached_property
    def _random(self) -> "np.random.Generator":
        """Created on first use: importing numpy's generators takes 5 ms of the start."""
        return np.random.Generator(np.random.PCG64(secrets.randbits(128)))

    def _keys_of(self, num_words: int) -> npt.NDArray[np.uint64]:
        if num_words not in self._keys:
            self._keys[num_words] = self._random.integers(1 << 64, size=(num_words, 2), dtype=np.uint64, endpoint=False)
        return self._keys[num_words]


def _words(embeds: torch.Tensor) -> npt.NDArray[np.uint32]:
    """The rows' bytes as words of four or two bytes."""
    octets = embeds.cpu().contiguous().view(torch.uint8).numpy()
    if octets.shape[1] % 4 == 0:
        return octets.view(np.uint32)
    return octets.view(np.uint16).astype(np.uint32)
