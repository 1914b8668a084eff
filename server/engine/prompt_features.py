"""Features of prompts with images or embeddings: rows that replace tokens' embeddings, and positions."""

import inspect
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from base.errors import EngineStartError
from server.terms.types import PromptInputs, TensorData

_PROBE_TOKENS = 4
_TOLERANCE = 0.1
"""The allowed difference between logits from token ids and logits from their embeddings, as a share of the
largest logit. A model that uses more than the embeddings exceeds this difference."""

RowIds = npt.NDArray[np.int64]

_IS_ROW = np.int64(-(1 << 63))
"""The sign bit. Ids of rows are negative, and ids of tokens are not negative."""


class PromptFeaturesError(Exception):
    """The model cannot compute the inputs of a prompt. The message is for clients."""


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """The model's input for one prompt, which all sequences with this prompt share.

    The engine keeps this object until these sequences end, because a preempted sequence is computed again.
    """

    embeds: torch.Tensor
    """Shape [num_prompt_tokens, width], in the model's type, on its device."""
    has_token_ids: bool
    """Whether the ids of the prompt's tokens have a meaning. If not, only the number of tokens matters."""
    positions: torch.Tensor | None = None
    """Shape [axes, num_prompt_tokens], for rotary embeddings with several axes. None if positions count
    from 0."""
    position_delta: int = 0
    """The position of a token after the prompt is its index plus this number."""
    row_ids: RowIds | None = None
    """The keys of the rows in the prefix cache. If None, the prompt does not use the prefix cache."""


class PlacedRows(NamedTuple):
    """Rows of a prompt's features, and the index of their first token in a batch."""

    begin: int
    embeds: torch.Tensor


def embed(model: PreTrainedModel, input_ids: torch.Tensor, placed: Iterable[PlacedRows]) -> torch.Tensor:
    """Returns embeddings of a batch [1, num_tokens]. Placed rows replace the embeddings of their tokens."""
    embeds: torch.Tensor = model.get_input_embeddings()(input_ids)
    for begin, rows in placed:
        embeds[0, begin : begin + len(rows)] = rows
    return embeds


ImageEncoder = Callable[[list[int], dict[str, TensorData]], PromptFeatures]
"""Takes a prompt's token ids, and the processor's outputs for its images. Raises PromptFeaturesError."""


class FeatureBuilder:
    """Builds features, once for all sequences of a prompt, on the engine's thread."""

    def __init__(
        self, model: PreTrainedModel, images: ImageEncoder | None = None, *, has_prefix_cache: bool = True
    ) -> None:
        """`images` is None unless the model is a vision model. Without a prefix cache, rows get no ids."""
        self._model = model
        self._images = images
        self._key = secrets.token_bytes(16) if has_prefix_cache else None
        self._built: WeakKeyDictionary[PromptInputs, PromptFeatures] = WeakKeyDictionary()

    def build(self, token_ids: list[int], inputs: PromptInputs) -> PromptFeatures:
        """Returns the prompt's features. Calls with the same `inputs` object return the same features.

        Raises:
            PromptFeaturesError: the model cannot compute the features.
        """
        features = self._built.get(inputs)
        if features is None:
            features = self._compute(token_ids, inputs)
            if self._key is not None:
                features = replace(features, row_ids=identify_rows(features.embeds, features.positions, self._key))
            self._built[inputs] = features
        return features

    def _compute(self, token_ids: list[int], inputs: PromptInputs) -> PromptFeatures:
        if inputs.embeds is not None:
            return self._from_embeds(token_ids, inputs.embeds)
        if self._images is None:
            raise PromptFeaturesError("this model takes no images")
        return self._images(token_ids, inputs.mm or {})

    def _from_embeds(self, token_ids: list[int], given: TensorData) -> PromptFeatures:
        shape = (len(token_ids), embeds_width(self._model))
        if given.shape != shape:
            raise PromptFeaturesError(f"embeddings have the shape {list(given.shape)} instead of {list(shape)}")
        embeds = to_tensor(given).to(self._model.device, self._model.dtype)
        return PromptFeatures(embeds, has_token_ids=False)


def identify_rows(embeds: torch.Tensor, positions: torch.Tensor | None, key: bytes) -> RowIds:
    """Returns ids: equal rows at equal positions have the same id, others with a chance of 1 to 2**63.

    Args:
        embeds: shape [rows, width].
        positions: shape [axes, rows]. None if positions count from 0.
        key: random and secret, so that no client can construct rows with equal ids.
    """
    rows = embeds.cpu().contiguous().view(torch.uint8).numpy()
    if positions is not None:
        places = positions.cpu().T.contiguous().view(torch.uint8).numpy()
        rows = np.concatenate((rows, places), axis=1)
    digests = b"".join(blake2b(row, digest_size=8, key=key).digest() for row in rows)
    ids: RowIds = np.frombuffer(digests, np.int64) | _IS_ROW
    return ids


def to_tensor(data: TensorData) -> torch.Tensor:
    """Returns a tensor that shares the memory of `data`."""
    dtype: torch.dtype = getattr(torch, data.dtype)
    if not len(data.data):
        return torch.empty(data.shape, dtype=dtype)
    return torch.frombuffer(data.data, dtype=dtype).reshape(data.shape)


def embeds_width(model: PreTrainedModel) -> int:
    """The width of the model's token embeddings."""
    return int(model.get_input_embeddings().weight.shape[-1])


def check_takes_embeds(model: PreTrainedModel) -> None:
    """Checks that a few tokens and their embeddings give the same logits.

    Called before the model's attention is replaced.

    Raises:
        EngineStartError: the model does not compute from embeddings alone.
    """
    if "inputs_embeds" in inspect.signature(model.forward).parameters and _agrees(model):
        return
    raise EngineStartError(
        f"{type(model).__name__} does not compute from embeddings alone: start without --enable-prompt-embeds"
    )


def _agrees(model: PreTrainedModel) -> bool:
    input_ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    try:
        with torch.inference_mode():
            wanted = model(input_ids=input_ids, use_cache=False).logits
            found = model(inputs_embeds=embed(model, input_ids, ()), use_cache=False).logits
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    difference = (found - wanted).abs().max()
    return bool(difference < _TOLERANCE * wanted.abs().max())
