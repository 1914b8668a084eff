"""Prompts that are more than token ids: rows that take the place of embeddings, and where their tokens stand."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from server.engine.row_ids import RowHasher, RowIds
from server.errors import EngineStartError
from server.types import PromptInputs, TensorData

_PROBE_TOKENS = 4
_TOLERANCE = 0.1
"""Of the largest logit: a model that looks at more than the embeddings differs by more."""


class PromptFeaturesError(Exception):
    """A prompt's inputs are nothing that the model takes; the message is fit for a client."""


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """What the model computes a prompt from; shared by the sequences that continue the same prompt.

    Kept until these end: a sequence that is preempted is computed again.
    """

    embeds: torch.Tensor
    """Shape [num_prompt_tokens, width], in the model's type and on its device."""
    has_token_ids: bool
    """Whether the prompt's token ids mean something, or only tell how long it is."""
    positions: torch.Tensor | None = None
    """Shape [axes, num_prompt_tokens], for models whose rotary embedding has several; None counts from 0."""
    position_delta: int = 0
    """From the index of a token that follows the prompt to its position."""
    row_ids: RowIds | None = None
    """What the prefix cache knows the rows by; None keeps the prompt out of it."""


class PlacedRows(NamedTuple):
    """Rows of a prompt's features and where they go in a batch."""

    begin: int
    embeds: torch.Tensor


def embed(model: PreTrainedModel, input_ids: torch.Tensor, placed: Iterable[PlacedRows]) -> torch.Tensor:
    """The embeddings of a batch of shape [1, num_tokens], with the rows that prompts bring along in their places."""
    embeds: torch.Tensor = model.get_input_embeddings()(input_ids)
    for begin, rows in placed:
        embeds[0, begin : begin + len(rows)] = rows
    return embeds


EncodeImages = Callable[[list[int], dict[str, TensorData]], PromptFeatures]
"""Makes features of a prompt's token ids and of what the processor made of its images."""


class FeatureBuilder:
    """Makes features of inputs, once for all sequences of a prompt; lives on the engine's thread."""

    def __init__(
        self, model: PreTrainedModel, encode_images: EncodeImages | None = None, *, has_prefix_cache: bool = True
    ) -> None:
        """`encode_images` is for models that see some; only a prefix cache needs to know the rows apart."""
        self._model = model
        self._encode_images = encode_images
        self._hasher = RowHasher() if has_prefix_cache else None
        self._built: WeakKeyDictionary[PromptInputs, PromptFeatures] = WeakKeyDictionary()

    def build(self, token_ids: list[int], inputs: PromptInputs) -> PromptFeatures:
        """The prompt's features; the same object for the same inputs.

        Raises:
            PromptFeaturesError: the model cannot take them.
        """
        features = self._built.get(inputs)
        if features is None:
            features = self._built[inputs] = self._build(token_ids, inputs)
        return features

    def _build(self, token_ids: list[int], inputs: PromptInputs) -> PromptFeatures:
        features = self._compute(token_ids, inputs)
        if self._hasher is None:
            return features
        return replace(features, row_ids=self._hasher.identify(features.embeds, features.positions))

    def _compute(self, token_ids: list[int], inputs: PromptInputs) -> PromptFeatures:
        if inputs.embeds is not None:
            return self._from_embeds(token_ids, inputs.embeds)
        if self._encode_images is None:
            raise PromptFeaturesError("this model takes no images")
        return self._encode_images(token_ids, inputs.mm or {})

    def _from_embeds(self, token_ids: list[int], given: TensorData) -> PromptFeatures:
        shape = (len(token_ids), embeds_width(self._model))
        if given.shape != shape:
            raise PromptFeaturesError(f"embeddings have the shape {list(given.shape)} instead of {list(shape)}")
        embeds = to_tensor(given).to(self._model.device, self._model.dtype)
        return PromptFeatures(embeds, has_token_ids=False)


def to_tensor(data: TensorData) -> torch.Tensor:
    """A tensor over the same memory."""
    dtype: torch.dtype = getattr(torch, data.dtype)
    if not len(data.data):
        return torch.empty(data.shape, dtype=dtype)
    return torch.frombuffer(data.data, dtype=dtype).reshape(data.shape)


def embeds_width(model: PreTrainedModel) -> int:
    """Numbers in the row that stands for a token."""
    return int(model.get_input_embeddings().weight.shape[-1])


def check_takes_embeds(model: PreTrainedModel) -> None:
    """Compares what the model makes of a few tokens with what it makes of their embeddings.

    Call it while the model still has attention of its own.

    Raises:
        EngineStartError: it does not compute from embeddings alone.
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
    return bool((found - wanted).abs().max() < _TOLERANCE * wanted.abs().max())
