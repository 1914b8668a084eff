"""Keeps what a vision model has computed of recent images, found again by their content."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from server.model_files.vision_models import VISION_MODEL_TYPES

_MAX_BYTES = 128 << 20
"""A LLaVA image of 576 rows of 4096 bfloat16 numbers takes 4.7 MB."""


class ImageCache:
    """Replaces the model's `get_image_features`; used on the engine's thread.

    The images of a prompt are one entry: the next turn of a conversation finds them, also with other texts.
    """

    def __init__(self, model: PreTrainedModel, *, max_bytes: int = _MAX_BYTES) -> None:
        self._compute = model.base_model.get_image_features
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, Any] = OrderedDict()
        model.base_model.get_image_features = self._find_or_compute

    def clear(self) -> None:
        """Forgets all images."""
        self._kept.clear()
        self._num_bytes = 0

    def _find_or_compute(self, *args: Any, **kwargs: Any) -> Any:
        key = _digest((*enumerate(args), *sorted(kwargs.items())))
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        output = self._compute(*args, **kwargs)
        # Without the hidden states of all layers, which the model's forward pass does not use.
        self._keep(key, type(output)(pooler_output=output.pooler_output))
        return output

    def _keep(self, key: bytes, output: Any) -> None:
        if _num_bytes(output) > self._max_bytes:
            return
        self._kept[key] = output
        self._num_bytes += _num_bytes(output)
        while self._num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= _num_bytes(oldest)


def cache_images(model: PreTrainedModel) -> ImageCache | None:
    """The cache of a vision model; None for other models."""
    return ImageCache(model) if model.config.model_type in VISION_MODEL_TYPES else None


def _digest(arguments: Iterable[tuple[int | str, Any]]) -> bytes:
    """Cryptographic, so that no client can construct an image that is taken for another one."""
    digest = hashlib.blake2b(digest_size=32)
    for name, value in arguments:
        if isinstance(value, torch.Tensor):
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr((name, value)).encode())
    return digest.digest()


def _num_bytes(output: Any) -> int:
    features = output.pooler_output
    tensors = [features] if isinstance(features, torch.Tensor) else features
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
