"""Converts a prompt with images to embeddings, which the rest of the engine treats like any prompt.

The model's own forward pass runs until it calls its language model. The arguments of this call are the
prompt's embeddings, which include the features of images, and positions. A cache keeps the features of
recent images, under a digest of the images' content.
"""

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from server.engine.prompt_features import ImageEncoder, PromptFeatures, PromptFeaturesError, to_tensor
from server.terms.bounded_cache import BoundedCache
from server.terms.types import TensorData
from server.text.model_files import VISION_MODEL_TYPES

logger = logging.getLogger(__name__)

_EXPECTED = {"inputs_embeds", "position_ids", "cache_position", "use_cache", "return_dict"}
"""The only arguments of the language model that may have a value. `PromptFeatures` has these values."""
_MAX_CACHED_BYTES = 128 << 20
"""The size of the cache. For comparison: a LLaVA image of 576 rows of 4096 bfloat16 numbers takes 4.7 MB."""


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Returns the decoder of a vision model. Returns any other model unchanged."""
    return model.get_decoder() if model.config.model_type in VISION_MODEL_TYPES else model


def image_encoder(model: PreTrainedModel) -> ImageEncoder | None:
    """Returns the image encoder of a vision model, or None for any other model."""
    return VisionEncoder(model).encode if model.config.model_type in VISION_MODEL_TYPES else None


class VisionEncoder:
    """Encodes images on the engine's thread. Shares the model with the runner."""

    def __init__(self, model: PreTrainedModel, *, max_cached_bytes: int = _MAX_CACHED_BYTES) -> None:
        self._model = model
        self._language_model = language_model(model)
        self._cache = _ImageCache(model, max_cached_bytes)

    def encode(self, token_ids: list[int], mm: dict[str, TensorData]) -> PromptFeatures:
        """Returns the features of a prompt with images.

        Raises:
            PromptFeaturesError: the tensors do not fit the prompt or the model.
        """
        device = self._model.device
        try:
            tensors = {name: self._prepare(to_tensor(data)) for name, data in mm.items()}
            given = self._run(torch.tensor([token_ids], dtype=torch.long, device=device), tensors)
        except PromptFeaturesError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as err:
            logger.warning("a prompt's images could not be encoded: %s", err)
            raise PromptFeaturesError(f"the images do not fit the prompt or the model: {err}") from err
        return _to_features(given, len(token_ids))

    def _prepare(self, tensor: torch.Tensor) -> torch.Tensor:
        """Converts pixels to the model's type, and boolean masks to integers, which models can multiply."""
        if tensor.dtype == torch.bool:
            return tensor.to(self._model.device, torch.long)
        return tensor.to(self._model.device, self._model.dtype if tensor.is_floating_point() else tensor.dtype)

    def _run(self, input_ids: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Runs the forward pass up to the call of the language model. Returns the arguments of this call."""
        hook = self._language_model.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            with torch.inference_mode():
                self._model(input_ids=input_ids, use_cache=False, **tensors)
        except _ReachedLanguageModel as reached:
            return reached.given
        finally:
            hook.remove()
        raise PromptFeaturesError("the model's forward pass does not call its language model")


class _ReachedLanguageModel(Exception):  # noqa: N818 - it ends the forward pass; not an error
    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given


def _stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _ReachedLanguageModel({**kwargs, **({"args": args} if args else {})})


def _to_features(given: dict[str, Any], num_tokens: int) -> PromptFeatures:
    unexpected = sorted(name for name, value in given.items() if value is not None and name not in _EXPECTED)
    embeds = given.get("inputs_embeds")
    if unexpected or embeds is None or embeds.shape[:2] != (1, num_tokens):
        raise PromptFeaturesError(f"the model's language model takes more than embeddings: {', '.join(unexpected)}")
    positions = given.get("position_ids")
    if positions is None or positions.shape[0] == 1:
        return PromptFeatures(embeds[0].clone(), has_token_ids=True)
    positions = positions[:, 0].clone()
    delta = int(positions.max()) + 1 - num_tokens
    return PromptFeatures(embeds[0].clone(), has_token_ids=True, positions=positions, position_delta=delta)


class _ImageCache:
    """Replaces the model's `get_image_features` by a function that caches results.

    All images of a prompt are one entry. A later turn of a conversation finds the entry if its images are
    the same, even if its text differs.
    """

    def __init__(self, model: PreTrainedModel, max_bytes: int) -> None:
        self._compute = model.base_model.get_image_features
        self._cache: BoundedCache[bytes, Any] = BoundedCache(max_bytes, _num_bytes)
        model.base_model.get_image_features = self._find_or_compute

    def _find_or_compute(self, *args: Any, **kwargs: Any) -> Any:
        key = _digest((*enumerate(args), *sorted(kwargs.items())))
        if (found := self._cache.use(key)) is not None:
            return found
        output = self._compute(*args, **kwargs)
        # Leaves out the hidden states of all layers, which the forward pass does not use.
        self._cache.put(key, BaseModelOutputWithPooling(pooler_output=output.pooler_output))
        return output


def _digest(arguments: Iterable[tuple[int | str, Any]]) -> bytes:
    """Returns a cryptographic digest, so that no client can construct two images with the same digest."""
    digest = hashlib.blake2b(digest_size=32)
    for name, value in arguments:
        if isinstance(value, torch.Tensor):
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            content = value.cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        else:
            digest.update(repr((name, value)).encode())
    return digest.digest()


def _num_bytes(output: Any) -> int:
    features = output.pooler_output
    tensors = [features] if isinstance(features, torch.Tensor) else features
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
